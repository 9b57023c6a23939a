"""The agent's end of the watchdog: started when a change is staged, asked for a sign of life before it is applied.

    agent     listens on a socket without a file, starts the watchdog (bpfleet/agent/watchdog.py), waits for "ready"
    watchdog  connects, says "ready", and says so again whenever it is spoken to
    agent     "apply", waits for "ready", changes the kernel, closes the socket when the journal says "applied"

The kernel closes the socket of a process that dies, so its end says to the watchdog: judge by the journal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Callable, List, Optional, Sequence

from bpfleet.errors import HostFailed

READY_SECONDS = 30.0
"""Longest wait for a started watchdog; a loaded host takes seconds to start a Python."""
ANSWER_SECONDS = 10.0
SYSTEMD = Path("/run/systemd/system")
"""There if systemd is the init of this host: sd_booted(3)."""
READY = b"ready\n"
APPLY = b"apply\n"

_POLL_SECONDS = 0.02
_SEARCHED = ("/usr/bin", "/bin", "/usr/local/bin")

Arm = Callable[[str], "Guard"]
"""Starts the watchdog of a transaction; raises HostFailed if it cannot. `Guard.ready` waits for it."""


def forms(watchdog: Sequence[str], transaction: str) -> List[List[str]]:
    """Commands that start a watchdog outside this session, best first.

    watchdog: the command that runs it. A systemd service belongs to no session; a process that detaches itself is the
    way where there is no systemd, and where systemd does not take the order.
    """
    found = []
    if SYSTEMD.is_dir():
        tool = next(
            (f"{folder}/systemd-run" for folder in _SEARCHED if os.access(f"{folder}/systemd-run", os.X_OK)), ""
        )
        if tool:
            unit = [f"--unit=bpfleet-watchdog-{transaction}", f"--description=bpfleet watchdog of {transaction}"]
            how = ["--collect", "--no-block", "--quiet", "--property=OOMScoreAdjust=-900"]
            found.append([tool, *how, *unit, "--", *watchdog])
    found.append([*watchdog, "--detach"])
    return found


def peer(connection: socket.socket) -> Sequence[int]:
    """Process, user and group at the other end of a unix socket: SO_PEERCRED, unix(7)."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))


class Guard:
    """One transaction's watchdog, seen from the process that applies it."""

    def __init__(self, watchdog: Sequence[str], transaction: str) -> None:
        """Start it; `watchdog` is the command without the options that this adds. HostFailed if nothing starts."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"bpfleet-watchdog-{transaction}-{os.urandom(4).hex()}"
        self._listener.bind(f"\0{name}")  # abstract: gone with the process, whatever becomes of it
        self._listener.listen(1)
        self._connection: Optional[socket.socket] = None
        self._child: Optional[int] = None
        self._forms = forms([*watchdog, "--transaction", transaction, "--socket", name], transaction)
        self._complaints: List[str] = []
        self._start()

    def _start(self) -> None:
        """Start the next form."""
        while self._forms:
            command = self._forms.pop(0)
            quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
            try:
                self._child = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
            except OSError as problem:
                self._complaints.append(f"{command[0]}: {problem.strerror}")
            else:
                self._command = command[0]
                return
        self.close()
        raise HostFailed(
            f"the watchdog that would put this change back cannot be started: {'; '.join(self._complaints)}",
            remedy="Nothing was changed. See that the host is not out of processes or memory, then try again.",
        )

    def ready(self) -> None:
        """Return once the watchdog is there and answers. HostFailed, nothing left behind, if it does not come."""
        while True:
            self._connection = self._accepted()
            if self._connection is not None:
                self._reap(block=True)  # what started it has nothing more to do
                if self.ask(b""):
                    self._listener.close()
                    return
                self._connection.close()
                self._connection = None
                self._complaints.append(f"{self._command}: the watchdog ended")
            self._end_child()
            self._start()

    def _accepted(self) -> Optional[socket.socket]:
        """The connection of a watchdog of our own user; None if the form failed or took too long."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if select.select([self._listener], [], [], _POLL_SECONDS)[0]:
                connection, _ = self._listener.accept()
                if peer(connection)[1] == os.geteuid():
                    return connection
                connection.close()  # anybody may connect; only our own counts
            status = self._reap()
            if status:
                self._complaints.append(f"{self._command}: wait status {status}")
                return None
        self._complaints.append(f"{self._command}: no answer within {READY_SECONDS:g} s")
        return None

    def _reap(self, block: bool = False) -> int:
        """Wait status of what was started, once; 0 while it runs."""
        if self._child is None:
            return 0
        pid, status = os.waitpid(self._child, 0 if block else os.WNOHANG)
        if pid:
            self._child = None
        return status

    def _end_child(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            self._reap(block=True)

    def ask(self, word: bytes = APPLY) -> bool:
        """Tell it something (nothing: hear what it says first) and wait for its sign of life; whether it came."""
        connection = self._connection
        if connection is None:
            return False
        connection.settimeout(ANSWER_SECONDS)
        try:
            if word:
                connection.sendall(word)
            answer = b""
            while not answer.endswith(b"\n"):
                piece = connection.recv(len(READY) - len(answer))
                if not piece:
                    return False
                answer += piece
        except OSError:  # a time-out is one as well
            return False
        return answer == READY

    def close(self) -> None:
        """Leave it alone with the journal. Idempotent."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._end_child()
