"""What a connection to a host can do, whatever it runs over: start commands and exchange bytes with them.

Two implementations, SSH (`ssh`) and a local process (`local`), answer to one contract suite. Every wait has a
deadline. `TimedOut`, `Broken` and `DialFailed` are signals inside this package: `node` turns them into errors of the
tree, which know the node and the request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from bpfleet.transport.target import Target

CHUNK = 32768
COMPLAINT_BYTES = 4096


class TimedOut(Exception):
    """The deadline passed first."""


class Broken(Exception):
    """The connection itself is gone (not only the command that ran on it)."""


class DialFailed(Exception):
    """One attempt to connect failed. `again`: another attempt may go better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again


class Deadline:
    """A point in time that everything done for one request shares."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left == 0.0

    def sooner(self, seconds: float) -> Deadline:
        """A deadline `seconds` from now, or this one if it comes first."""
        return Deadline(min(seconds, self.left))


class Stream(Protocol):
    """A running command: its stdin, stdout, end of stderr, exit status. Used by one thread at a time."""

    def send(self, data: bytes, until: Deadline) -> None:
        """Write all of `data` to its stdin. TimedOut; Broken; EOFError if the command reads no more."""

    def end_input(self) -> None:
        """Close its stdin."""

    def receive(self, until: Deadline) -> bytes:
        """Some of its stdout, b"" at the end. TimedOut; Broken."""

    def complaint(self) -> str:
        """The last of what it wrote to stderr so far."""

    def exit_status(self, until: Deadline) -> int | None:
        """Its exit status once it ended; None if a signal ended it or the deadline passed."""

    def close(self) -> None:
        """End it. Idempotent."""


class Connection(Protocol):
    """One working connection to a host. `open` may be called by several threads."""

    def open(self, command: str, until: Deadline) -> Stream:
        """Start a command (a line for the login shell). TimedOut; Broken."""

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone."""

    def close(self) -> None:
        """End it and everything that runs over it. Idempotent."""


class Connector(Protocol):
    """Makes connections, one attempt a call. DialFailed, or an error of the tree where trying again is useless."""

    @property
    def local(self) -> bool:
        """Whether commands run on this machine, without SSH."""

    def __call__(self, target: Target, until: Deadline) -> Connection: ...


@dataclass(frozen=True)
class Finished:
    """A command that ended. `status` is None if a signal ended it."""

    status: int | None
    output: bytes
    complaint: str


def run(connection: Connection, command: str, until: Deadline, data: bytes = b"") -> Finished:
    """Run a command to its end with `data` as its stdin. TimedOut; Broken."""
    stream = connection.open(command, until)
    try:
        try:
            stream.send(data, until)
            stream.end_input()
        except EOFError:
            # It ended without reading everything: what it said and its exit status tell why.
            pass
        output = []
        while chunk := stream.receive(until):
            output.append(chunk)
        return Finished(stream.exit_status(until), b"".join(output), stream.complaint())
    finally:
        stream.close()
