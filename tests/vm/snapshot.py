"""Runs on a virtual machine: prints everything there that bpfleet changes, for comparing before with after.

Devices, addresses, routes, rules and sysctls of the host and of its named network namespaces; the bpf file system; our
state directory; the BPF programs and maps in the kernel that are not systemd's (which come and go with units).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Iterator, List

SYS_BPF = 321  # x86-64
NEXT_ID, FD_BY_ID, INFO = {"program": 11, "map": 12}, {"program": 13, "map": 14}, 15
NAME_OFFSET = {"program": 64, "map": 24}  # struct bpf_prog_info and bpf_map_info in linux/bpf.h
SYSTEMD = ("sd_", "systemd_", "dump_bpf")
ASKED = (
    "ip -o link",
    "ip -o address",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip rule",
    "ip -6 rule",
    "tc qdisc",
)

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> bytes:
    """bpf(2); the attributes as the kernel left them. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, 64)
    result: int = libc.syscall(SYS_BPF, command, buffer, 64)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result.to_bytes(4, "little") + buffer.raw


def names(kind: str) -> Iterator[str]:
    """Names of all BPF objects of a kind, systemd's left out."""
    number = 0
    while True:
        try:
            number = int.from_bytes(bpf(NEXT_ID[kind], number.to_bytes(4, "little"))[8:12], "little")
            fd = int.from_bytes(bpf(FD_BY_ID[kind], number.to_bytes(4, "little"))[:4], "little")
        except FileNotFoundError:
            return
        info = ctypes.create_string_buffer(256)
        address = ctypes.addressof(info).to_bytes(8, "little")
        bpf(INFO, fd.to_bytes(4, "little") + len(info).to_bytes(4, "little") + address)
        os.close(fd)
        name = info.raw[NAME_OFFSET[kind] :][:16].split(b"\0")[0].decode()
        if not name.startswith(SYSTEMD):
            yield f"{kind} {name}"


def files(top: str) -> List[str]:
    """Every path below a directory."""
    return sorted(str(path) for path in Path(top).rglob("*")) if Path(top).exists() else [f"no {top}"]


def settings() -> Iterator[str]:
    """The host's network sysctls that are for all devices or for one."""
    for family in ("ipv4", "ipv6"):
        for path in sorted(Path(f"/proc/sys/net/{family}/conf").glob("*/*")):
            if path.stat().st_mode & 0o444 and path.name != "stable_secret":  # which has none to be read
                yield f"{path} = {path.read_text().strip()}"


def main() -> None:
    namespaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split("\n")
    places = ["", *(f"ip netns exec {line.split()[0]} " for line in namespaces if line)]
    for place in places:
        for question in ASKED:
            done = subprocess.run((place + question).split(), capture_output=True, text=True, check=True)
            print(place + question, *sorted(done.stdout.splitlines()), sep="\n  ")
    print("bpf", *sorted([*names("program"), *names("map")]), sep="\n  ")
    print("sysctls", *settings(), sep="\n  ")
    print("files", *files("/sys/fs/bpf"), *files("/var/lib/bpfleet"), sep="\n  ")


if __name__ == "__main__":
    main()
