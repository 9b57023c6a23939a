"""What this machine must have to hold a lab, and running programs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bpfleet.errors import HostFailed, HostUnfit

# program -> the Debian package that has it
_PROGRAMS = {
    "/usr/bin/python3": "python3-minimal",
    "env": "coreutils",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "setpriv": "util-linux",
    "sh": "dash",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "umount": "mount",
    "unshare": "util-linux",
}
_FILESYSTEMS = ("overlay", "bpf", "cgroup2", "tmpfs")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_SECONDS = 30.0


def check_root() -> None:
    """Raise HostUnfit unless we are root."""
    if os.geteuid() != 0:
        raise HostUnfit("a lab needs root (namespaces, mounts, bpf)", remedy="Run the command as root")


def check() -> None:
    """Raise HostUnfit naming everything that is missing for a lab on this machine."""
    check_root()
    missing = {program for program in _PROGRAMS if shutil.which(program, path=PATH) is None}
    if missing:
        packages = sorted({_PROGRAMS[program] for program in missing})
        raise HostUnfit(
            f"missing on this machine: {', '.join(sorted(missing))}",
            remedy=f"apt-get install {' '.join(packages)}",
        )
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    absent = [name for name in _FILESYSTEMS if name not in known]
    if absent:
        raise HostUnfit(
            f"this machine's kernel lacks the file systems {', '.join(absent)}",
            remedy="Load them (modprobe overlay) or use another kernel",
        )
    cgroup_root()


def cgroup_root() -> Path:
    """Where this machine has cgroup2 mounted (/sys/fs/cgroup, or .../unified on a hybrid set-up)."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(target)
    raise HostUnfit(
        "cgroup2 is not mounted on this machine",
        remedy="mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def started(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if there is none (a zombie counts as none).

    Together with the pid this names one process for ever: a pid that is used again has another start time.
    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def run(
    arguments: Sequence[str],
    *,
    input: str | None = None,
    keep: Sequence[int] = (),
    netns: Path | None = None,
) -> str:
    """Run a program to its end and return its standard output; HostFailed with its words if it fails.

    `keep`: descriptors that the program inherits (a lock: whoever waits for it waits for the program too).
    `netns`: run in this network namespace.
    """
    command = [*(["nsenter", f"--net={netns}", "--"] if netns else []), *arguments]
    try:
        done = subprocess.run(
            command,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            pass_fds=tuple(keep),
            env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as expired:
        raise HostFailed(
            f"{' '.join(command)} did not end within {COMMAND_SECONDS:.0f} s",
            remedy="Look at the machine's load and kernel log, then run bpfleet lab down",
        ) from expired
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise HostFailed(
            f"{' '.join(command)}: {'; '.join(said[-3:])}",
            remedy="If this machine is fit for it otherwise, run bpfleet lab down and try again",
            details={"command": command, "input": input, "exit_code": done.returncode},
        )
    return done.stdout
