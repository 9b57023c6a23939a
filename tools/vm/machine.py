"""One virtual machine: booted from an image that it does not change, reached by ssh with keys made for it.

It runs without KVM on one CPU. It ends with this process (PR_SET_PDEATHSIG) or with its network's guard.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bpfleet.errors import HostFailed
from tools.vm.command import PATH, run
from tools.vm.image import Image
from tools.vm.network import Network

MEMORY_MIB = 768
BOOT_SECONDS = 900.0
COMMAND_SECONDS = 300.0
_END_SECONDS = 10.0
_ORDER_SECONDS = 60.0
_CONSOLE_LINES = 25
# lsm: as a host has it whose administrator turned BPF LSM on. net.ifnames: the device is eth0. panic: end qemu rather
# than stand still. mitigations: they cost much here, and the verifier spares root's programs them anyway.
# no_timer_check: on a busy computer the timer's first ticks come too late for a kernel that counts them, and it panics.
_CMDLINE = (
    "root=/dev/vda rw console=ttyS0 loglevel=4 systemd.show_status=auto net.ifnames=0 panic=-1 mitigations=off"
    " no_timer_check lsm=landlock,lockdown,yama,bpf"
)
# cx16: qemu 7.2 without KVM now and then gets cmpxchg16b's flags wrong, which kernel 6.12's allocator does not survive.
# la57: a fifth level of page tables to walk, for nothing.
_CPU = "max,cx16=off,la57=off"


class Machine:
    """A running machine; `wait` returns when it answers.

    private_key_file, host_key and known_hosts_file are as bpfleet.transport.target.Target wants them.
    """

    def __init__(self, image: Image, network: Network, name: str) -> None:
        """Starts it. Call this in a thread that lives as long as the machine: the kernel ends it with that thread."""
        directory = network.directory / name
        directory.mkdir()
        self.name = name
        self.image = image
        self.network = network
        self.console = directory / "console.log"
        self.private_key_file = directory / "id"
        self.known_hosts_file = directory / "known_hosts"
        self._directory = directory
        self._control = directory / "qmp"
        self._number, tap = network.add_port()
        self.address = network.address(self._number)
        _make_key(self.private_key_file, "controller")
        _make_key(directory / "host", name)
        self.host_key = " ".join((directory / "host.pub").read_text().split()[:2])
        self.known_hosts_file.write_text(f"{self.address} {self.host_key}\n")
        (directory / "seed.tar").write_bytes(self._seed())
        with (directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(tap), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": PATH}
            )

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Return once it takes our key and shows its own; HostFailed with the console's end if that takes too long."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            if self._process.poll() is not None:
                raise self._failed(f"qemu ended with {self._process.returncode}")
            last = self._ssh(["true"], None, 30.0)
            if last.returncode == 0:
                return
            if time.monotonic() > deadline:
                words = last.stderr.decode(errors="replace").strip()
                raise self._failed(f"no answer within {BOOT_SECONDS:.0f} s ({words})")
            time.sleep(1)

    def run(
        self, command: str, *, input: bytes | None = None, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> str:
        """Standard output of a shell command on the machine; HostFailed with its words if it fails and `check`."""
        done = self._ssh([command], input, seconds)
        output = done.stdout.decode(errors="replace")
        if check and done.returncode:
            words = (done.stderr.decode(errors="replace").strip() or output.strip())[-4000:]
            raise HostFailed(f"{command!r} ended with {done.returncode}: {words}", node=self.name)
        return output

    def succeeds(self, command: str) -> bool:
        """Whether a shell command on the machine ends with 0."""
        return self._ssh([command], None, COMMAND_SECONDS).returncode == 0

    def reboot(self, *, power_cut: bool = False) -> None:
        """Boot it anew and return when it answers: in order, or as when the power fails. What is on its disk stays."""
        before = self._boot_id()
        self._order("set-action", reboot="reset")
        try:
            if power_cut:
                self._order("system_reset")
            else:
                self._ssh(["systemctl reboot"], None, COMMAND_SECONDS)
            deadline = time.monotonic() + BOOT_SECONDS
            while True:
                self.wait()
                if self._boot_id() not in ("", before):
                    return
                if time.monotonic() > deadline:
                    raise self._failed(f"it did not go down within {BOOT_SECONDS:.0f} s")
                time.sleep(1)
        finally:
            if self._process.poll() is None:
                self._order("set-action", reboot="shutdown")

    def _boot_id(self) -> str:
        """Of the boot that answers; empty while it goes down."""
        return self.run("cat /proc/sys/kernel/random/boot_id", check=False).strip()

    def _order(self, order: str, **arguments: str) -> None:
        """Tell qemu something (its QMP), and wait until it has done so."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(_ORDER_SECONDS)
            control.connect(str(self._control))
            with control.makefile("rw") as lines:
                for name, given in (("qmp_capabilities", {}), (order, arguments)):
                    lines.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                    lines.flush()
                    while True:  # a greeting and events come in between
                        answer = json.loads(lines.readline())
                        if "error" in answer:
                            raise self._failed(f"qemu refuses {name}: {answer['error']}")
                        if "return" in answer:
                            break

    def put(self, files: dict[str, bytes]) -> None:
        """Write files on the machine, by absolute path."""
        self.run("tar -C / -xf -", input=_archive({name.lstrip("/"): (data, 0o644) for name, data in files.items()}))

    def ssh_command(self) -> list[str]:
        """How to log in, with the host's key checked."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self.private_key_file),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts_file),
        }
        return ["ssh", "-F", "none", *(f"-o{key}={value}" for key, value in options.items()), f"root@{self.address}"]

    def close(self) -> None:
        """End it at once; nothing of it is kept."""
        self._process.kill()
        self._process.wait(_END_SECONDS)

    def _ssh(self, arguments: Sequence[str], input: bytes | None, seconds: float) -> subprocess.CompletedProcess[bytes]:
        command = [*self.ssh_command(), *arguments]
        try:
            return subprocess.run(command, input=input or b"", capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired as expired:
            raise self._failed(f"{' '.join(arguments)!r} did not end within {seconds:.0f} s") from expired

    def _command(self, tap: str) -> list[str]:
        mac = f"52:54:00:00:00:{self._number:02x}"
        return [
            "setpriv",
            "--pdeathsig=KILL",
            "nsenter",
            f"--net=/run/netns/{self.network.netns}",
            "--",
            *("nice", "-n", "3"),
            *("qemu-system-x86_64", "-name", f"{self.network.netns}-{self.name}", "-no-user-config", "-nodefaults"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", _CPU, "-smp", "1", "-m", str(MEMORY_MIB)),
            *("-display", "none", "-serial", f"file:{self.console}"),
            # What reboots unasked, as a kernel that panics does, is to end; see `reboot`.
            *("-no-reboot", "-qmp", f"unix:{self._control},server=on,wait=off"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", _CMDLINE),
            # What it writes goes to a file that has no name and ends with it.
            *("-drive", f"file={self.image.disk},if=virtio,format=raw,snapshot=on"),
            *("-drive", f"file={self._directory}/seed.tar,if=virtio,format=raw,readonly=on"),
            *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
            # Without ctrl_vlan the device lets the machine judge tagged frames.
            *("-device", f"virtio-net-pci,netdev=net,mac={mac},ctrl_vlan=off"),
            *("-device", "virtio-rng-pci"),
        ]

    def _seed(self) -> bytes:
        """What makes this machine different from the image; see recipe.SEED, which unpacks it."""
        host_key = "etc/ssh/ssh_host_ed25519_key"
        settings = f"ADDRESS={self.address}/24\nGATEWAY={self.network.gateway}\n"
        return _archive(
            {
                "etc/hostname": (f"{self.name}\n".encode(), 0o644),
                "etc/vm-seed": (settings.encode(), 0o644),
                host_key: ((self._directory / "host").read_bytes(), 0o600),
                f"{host_key}.pub": ((self._directory / "host.pub").read_bytes(), 0o644),
                "root/.ssh/authorized_keys": ((self._directory / "id.pub").read_bytes(), 0o600),
            }
        )

    def _failed(self, what: str) -> HostFailed:
        said = [
            line
            for file in (self._directory / "qemu.log", self.console)
            if file.exists()
            for line in file.read_text(errors="replace").splitlines()[-_CONSOLE_LINES:]
        ]
        return HostFailed("\n".join([what, *said]), node=self.name, file=str(self.console))


def _make_key(path: Path, comment: str) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def _archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar archive of these files (path without leading slash -> content, mode), owned by root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
