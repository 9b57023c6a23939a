"""The connection that carries this process: when it began, where it came in.

When is what a confirmation needs to be worth something.

A confirmation proves that the node is still reachable after a change only if it comes over a connection that was made
after it. Over SSH, sshd keeps one process (or two) for each connection; it is an ancestor of the agent and is as old
as the connection. So the agent looks for the nearest ancestor called sshd and reads when that started.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple, Optional

SSHD_NAMES = ("sshd", "sshd-session", "sshd-auth", "dropbear")
"""Command names of the process of a connection (OpenSSH to 9.7, from 9.8, from 10.0; Dropbear)."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One line of /proc/<pid>/stat: `started` in clock ticks since boot (proc_pid_stat(5), field 22)."""

    pid: int
    parent: int
    name: str
    started: int


def read_process(pid: int, proc: Path = Path("/proc")) -> Optional[Process]:
    """The process, or None if there is none of that number (or it is outside this pid namespace)."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in brackets and may itself hold brackets and spaces.
    start, end = text.index("("), text.rindex(")")
    fields = text[end + 2 :].split()
    return Process(pid, int(fields[1]), text[start + 1 : end], int(fields[19]))


def session_started(*, local: bool, proc: Path = Path("/proc"), pid: Optional[int] = None) -> int:
    """Clock ticks since boot when the connection that carries this process began.

    local: there is no SSH; the channel is a pair of pipes and as old as the process. The same is taken where no sshd
    is among the ancestors, such as in a container that was entered from outside.
    """
    own = read_process(os.getpid() if pid is None else pid, proc)
    if own is None:
        return boot_ticks()
    process: Optional[Process] = own
    while not local and process is not None and process.pid > 1:
        if process.name in SSHD_NAMES:
            return process.started
        process = read_process(process.parent, proc)
    return own.started


class Port(NamedTuple):
    """Where an SSH connection came in: the client's address, and the TCP port of this host."""

    client: str
    port: int


def ssh_port(*, local: bool, proc: Path = Path("/proc"), pid: Optional[int] = None) -> Optional[Port]:
    """Where the SSH connection that carries this process came in, or None if there is none.

    sshd tells its children in SSH_CONNECTION; sudo takes that away from its own, but an ancestor still has it.
    """
    number = os.getpid() if pid is None else pid
    while not local and number > 1:
        try:
            environment = (proc / str(number) / "environ").read_bytes().split(b"\0")
        except OSError:
            return None
        for entry in environment:
            name, _, value = entry.partition(b"=")
            words = value.decode(errors="replace").split()
            if name == b"SSH_CONNECTION" and len(words) == 4 and words[3].isdigit():
                return Port(words[0], int(words[3]))
        process = read_process(number, proc)
        number = 0 if process is None else process.parent
    return None


def boot_seconds() -> float:
    """Seconds since boot, sleep included: the clock that process start times and deadlines are kept in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_ticks() -> int:
    """Now, in the unit of process start times."""
    return int(boot_seconds() * _TICKS)


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's random id of this boot: deadlines of another boot mean nothing."""
    return (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
