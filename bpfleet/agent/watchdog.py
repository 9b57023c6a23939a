"""The watchdog: puts the last confirmed generation back when nobody else can, then ends.

One process a transaction, outside the session and the cgroup of the agent that applies it (bpfleet/agent/guard.py says
how it is started and what is said over the socket). It waits in two parts:

    socket open    the applying process lives: wait for its words, or for its end
    socket closed  the journal decides: another or no transaction: end; "applying", "putting back": its process is dead,
                   put back; "applied": look again until the deadline, then put back

Putting back is `Agent.resolve`, as at every start of an agent, so of two that do it at once the second finds nothing to
do. Each change waits for its watchdog's start: so what reads the journal is imported when the socket is closed, and
what puts back when that is needed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from bpfleet.agent.guard import APPLY, READY, peer
from bpfleet.errors import BpfleetError

if TYPE_CHECKING:
    from bpfleet.agent.journal import JournalFile, Transaction
    from bpfleet.agent.node import Agent
    from bpfleet.loader.kernel import Kernel

PATIENCE_SECONDS = 300.0
"""An apply that takes longer hangs, and is ended: no controller waits as long (transport.node.Timeouts)."""
POLL_SECONDS = 0.25
PUT_BACK_SECONDS = 600.0
"""Longest time for trying to put back; after that the agent's next start does it."""

_LONGEST_PAUSE_SECONDS = 30.0


def detach() -> None:
    """Become a process that no session, process group, terminal or cgroup of the caller's can take along."""
    with contextlib.suppress(PermissionError):  # a process group's leader is one already
        os.setsid()
    if os.fork():
        os._exit(0)
    leave_cgroup()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def leave_cgroup(proc: Path = Path("/proc")) -> bool:
    """Move this process to the root of the cgroup2 hierarchy, if there is one that lets it; whether it did."""
    for line in (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            with contextlib.suppress(OSError):  # read-only, or a cgroup that may hold no processes: the next one
                Path(mount.split()[4], "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
                return True
    return False


class Watchdog:
    """Waits for the end of one transaction."""

    def __init__(
        self,
        root: Path,
        transaction: str,
        kernel: Callable[[], Kernel],
        patience_seconds: float = PATIENCE_SECONDS,
        pins: Optional[str] = None,
    ) -> None:
        """pins: where events are, which name rules of what is put back (Agent)."""
        self._root = root
        self._transaction = transaction
        self._kernel = kernel
        self._patience = patience_seconds
        self._pins = pins
        self._journal: Optional[JournalFile] = None

    def run(self, name: str) -> int:
        """Connect to the agent's socket and stay until the transaction is over; answers the exit status."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(f"\0{name}")
        except ConnectionRefusedError:
            return 0  # it has ended, or given up on us, and so applied nothing
        if peer(connection)[1] != os.geteuid():
            return 1
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self._accompany(connection):
            return self._guard()
        return 0

    def _accompany(self, connection: socket.socket) -> bool:
        """Answer the agent until its end of the socket closes; whether it said that it would apply."""
        process = _opened(peer(connection)[0])
        applying = False
        until: Optional[float] = None
        with contextlib.suppress(ConnectionError):
            connection.sendall(READY)
            while True:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not select.select([connection], [], [], left)[0]:
                    self._end(process)
                    until = None
                    continue
                words = connection.recv(64)
                if not words:
                    break
                if words.endswith(APPLY):
                    applying, until = True, time.monotonic() + self._patience
                connection.sendall(READY)
        connection.close()
        if process is not None:
            os.close(process)
        return applying

    def _end(self, process: Optional[int]) -> None:
        """End an applying process that hangs: it holds the node's lock, so nobody else can do anything."""
        if process is None:
            self._say(f"it has been applied for {self._patience:g} s; this Python cannot end the process that does it")
            return
        self._say(f"it has been applied for {self._patience:g} s: the process that does it is ended")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def _guard(self) -> int:
        """Look at the journal until the transaction is over, and put back what nobody confirmed."""
        time.sleep(POLL_SECONDS)  # most are confirmed at once, and what is imported now would only be in the way
        from bpfleet.agent import session
        from bpfleet.agent.pending import unfinished

        give_up: Optional[float] = None
        pause, said = POLL_SECONDS, ""
        while give_up is None or time.monotonic() < give_up:
            try:
                pending = self._pending()
                if pending is None:
                    return 0
                if unfinished(pending) is None:
                    left = pending.deadline - session.boot_seconds()
                    time.sleep(min(POLL_SECONDS, max(left, 0.0) + 0.001))
                    continue
                give_up = give_up or time.monotonic() + PUT_BACK_SECONDS
                self._put_back()
            except (BpfleetError, OSError) as problem:
                give_up = give_up or time.monotonic() + PUT_BACK_SECONDS
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                if str(problem) != said:
                    said = str(problem)
                    self._say(f"it could not be put back, which is tried again: {said}")
            time.sleep(pause)
        self._say("it could not be put back in time; the agent's next start tries again")
        return 1

    def _pending(self) -> Optional[Transaction]:
        """Our transaction, if it is still under way."""
        from bpfleet.agent.files import Files
        from bpfleet.agent.journal import JournalFile

        self._journal = self._journal or JournalFile(Files(self._root))
        pending = self._journal.read().transaction
        return pending if pending is not None and pending.id == self._transaction else None

    def _put_back(self) -> None:
        """One attempt; where somebody else holds the lock, nothing."""
        agent = self.agent()
        try:
            done = agent.resolve()
        finally:
            agent.close()
        if done:
            self._say(done)

    def agent(self) -> Agent:
        """The agent that puts back."""
        from bpfleet.agent.node import Agent

        return Agent(self._root, self._kernel, local=True, pins=self._pins)

    def _say(self, text: str) -> None:
        from bpfleet.agent.serve import Log

        Log(self._root / "agent.log").write(f"watchdog of transaction {self._transaction}: {text}")


def _opened(pid: int) -> Optional[int]:
    """A pidfd, by which only that very process can be ended; None where Python was built without."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
