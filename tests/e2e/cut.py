"""New connections to a lab host's port 22 cut, established ones left alone (cut_port22.bpf.c)."""

from __future__ import annotations

import base64
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bpfleet.lab import Host

SOURCE = Path(__file__).with_name("cut_port22.bpf.c")
_COMPILE = ["clang-19", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I/usr/include/x86_64-linux-gnu"]


def cut(host: Host, folder: Path, allowed: int = 0) -> None:
    """From now on; `allowed` more connections may begin first."""
    built = folder / f"cut_port22_{allowed}.bpf.o"
    subprocess.run([*_COMPILE, f"-DALLOWED={allowed}", "-c", str(SOURCE), "-o", str(built)], check=True)
    there = f"/run/{built.name}"  # hosts do not see this machine's /tmp
    host.run(["sh", "-c", 'base64 -d > "$0"', there], input=base64.b64encode(built.read_bytes()).decode())
    host.run(["ip", "link", "set", "dev", host.device, "xdpgeneric", "obj", there, "sec", "xdp"])


def mend(host: Host) -> None:
    """Let all connections begin again."""
    host.run(["ip", "link", "set", "dev", host.device, "xdpgeneric", "off"])


@contextlib.contextmanager
def mended(host: Host) -> Iterator[None]:
    """Whatever is cut within is mended afterwards."""
    try:
        yield
    finally:
        mend(host)
