"""What a connection to a host can do, whatever it runs over: start commands and exchange bytes with them.

Two implementations, SSH (`ssh`) and a local process (`local`), answer to one contract suite. Every wait has a
deadline, and may be called off. `TimedOut`, `Cancelled`, `Broken` and `DialFailed` are signals inside this package:
`node` turns them into errors of the tree, which know the node and the request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bpfleet.transport.target import Target

T = TypeVar("T")

CHUNK = 32768
COMPLAINT_BYTES = 4096
LOOK_SECONDS = 0.1
"""How long a wait goes on before it looks again whether it was called off."""
_JOIN_SECONDS = 5.0


class TimedOut(Exception):
    """The deadline passed first."""


class Cancelled(Exception):
    """The work was called off first."""


class Broken(Exception):
    """The connection itself is gone (not only the command that ran on it)."""


class NoRoom(Broken):
    """The connection is fine, but the host opens no more sessions on it."""


class DialFailed(Exception):
    """One attempt to connect failed. `again`: another attempt may go better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again


class Stop:
    """Whether work is called off: by any of these events. Empty: never."""

    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self) -> bool:
        return any(event.is_set() for event in self._events)

    def also(self, *events: threading.Event) -> Stop:
        """Called off by these events as well."""
        return Stop(*self._events, *events)

    def wait(self, seconds: float) -> bool:
        """Sleep; True as soon as the work is called off."""
        end = time.monotonic() + seconds
        while not self():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(LOOK_SECONDS, left))
        return True


NEVER = Stop()


class Deadline:
    """A point in time that everything done for one request shares, and what may call that off before.

    grace: seconds to go on after it was called off, for work that is better ended than left.
    """

    def __init__(self, seconds: float, stop: Stop = NEVER, grace: float = 0.0) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._stop = stop
        self._grace = grace
        self._called_off: float | None = None

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left == 0.0

    @property
    def cancelled(self) -> bool:
        """Whether the work was called off and the grace is used up."""
        if self._called_off is None:
            if not self._stop():
                return False
            self._called_off = time.monotonic()
        return time.monotonic() - self._called_off >= self._grace

    @property
    def look(self) -> float:
        """Seconds to wait at a time."""
        return min(LOOK_SECONDS, self.left)

    def check(self, missing: str) -> None:
        """TimedOut ("no `missing` within …") or Cancelled, if it is time for that."""
        if self.cancelled:
            raise Cancelled(f"cancelled while waiting for {missing}")
        if self.passed:
            raise TimedOut(f"no {missing} within {self.seconds:.0f} s")

    def sooner(self, seconds: float) -> Deadline:
        """A deadline `seconds` from now, or this one if it comes first; called off together with it."""
        return Deadline(min(seconds, self.left), self._stop, self._grace)


@contextmanager
def ended_at(until: Deadline, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` when the deadline passes or is called off while the body runs: for what waits without looking."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(until.look):
            if until.passed or until.cancelled:
                end()
                return

    watcher = threading.Thread(target=watch, name="bpfleet-deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(_JOIN_SECONDS)


def within(until: Deadline, missing: str, work: Callable[[], T], discard: Callable[[T], None]) -> T:
    """The result of `work`, which waits without looking; TimedOut or Cancelled in time all the same. It then goes on
    by itself, and what it still brings is given to `discard`."""
    settled = threading.Event()
    lock = threading.Lock()
    results: list[T] = []
    failures: list[BaseException] = []
    given_up: list[bool] = []

    def run() -> None:
        try:
            result = work()
        except BaseException as failed:  # noqa: BLE001 - handed on, or nobody's any more
            failures.append(failed)
            settled.set()
            return
        with lock:
            results.append(result)
            unwanted = bool(given_up)
        settled.set()
        if unwanted:
            discard(result)

    threading.Thread(target=run, name="bpfleet-wait", daemon=True).start()
    try:
        while not settled.wait(until.look):
            until.check(missing)
    except (TimedOut, Cancelled):
        with lock:
            given_up.append(True)
            late = list(results)
        for result in late:
            discard(result)
        raise
    if failures:
        raise failures[0]
    return results[0]


class Stream(Protocol):
    """A running command: its stdin, stdout, end of stderr, exit status. Used by one thread at a time."""

    def send(self, data: bytes, until: Deadline) -> None:
        """Write all of `data` to its stdin. TimedOut; Cancelled; Broken; EOFError if the command reads no more."""

    def end_input(self) -> None:
        """Close its stdin."""

    def receive(self, until: Deadline) -> bytes:
        """Some of its stdout, b"" at the end. TimedOut; Cancelled; Broken."""

    def complaint(self) -> str:
        """The last of what it wrote to stderr so far."""

    def exit_status(self, until: Deadline) -> int | None:
        """Its exit status once it ended; None if a signal ended it or the deadline passed."""

    def leave(self) -> None:
        """Let it finish what it does without us: it finds its input ended and nobody listening. Waits for nothing."""

    def close(self) -> None:
        """End it. Idempotent."""


class Connection(Protocol):
    """One working connection to a host. `open` may be called by several threads."""

    def open(self, command: str, until: Deadline) -> Stream:
        """Start a command (a line for the login shell). TimedOut; Cancelled; Broken."""

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone."""

    def close(self) -> None:
        """End it and everything that runs over it. Idempotent."""


class Connector(Protocol):
    """Makes connections, one attempt a call. DialFailed; Cancelled; an error of the tree where trying again is
    useless."""

    @property
    def local(self) -> bool:
        """Whether commands run on this machine, without SSH."""

    def __call__(self, target: Target, until: Deadline) -> Connection: ...

    def close(self) -> None:
        """End what is kept for connections that are gone (jump hosts). The connections themselves are the caller's."""


@dataclass(frozen=True)
class Finished:
    """A command that ended. `status` is None if a signal ended it."""

    status: int | None
    output: bytes
    complaint: str


def run(connection: Connection, command: str, until: Deadline, data: bytes = b"") -> Finished:
    """Run a command to its end with `data` as its stdin. TimedOut; Cancelled; Broken."""
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
