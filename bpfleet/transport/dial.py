"""Dialling: how many at once, how often again, and when to give up.

One schedule for every reason to fail (nobody listens, no answer, sshd's MaxStartups drops us): try, wait twice as long
as the last time, try again, until the attempts or the deadline are used up. Waiting holds no place among the dials.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bpfleet.errors import TransactionFailed, Unreachable
from bpfleet.transport.channel import (
    LOOK_SECONDS,
    NEVER,
    Cancelled,
    Connection,
    Connector,
    Deadline,
    DialFailed,
    Stop,
    TimedOut,
)
from bpfleet.transport.target import Target


@dataclass(frozen=True)
class Schedule:
    """`attempts` dials within `seconds` from the first one's begin, pauses `first_pause`, twice that, four times …

    rest: after all of them failed, seconds in which the same is answered without dialling. A run of many transactions
    would otherwise wait for a dead host in each.
    """

    attempts: int = 6
    seconds: float = 20.0
    first_pause: float = 0.25
    rest: float = 30.0


class Dialler:
    """Makes connections. Thread-safe; at most `at_once` attempts run at any time, over all nodes."""

    def __init__(self, connector: Connector, schedule: Schedule, at_once: int) -> None:
        self._connector = connector
        self.schedule = schedule
        self._places = threading.BoundedSemaphore(at_once)
        self._closed = threading.Event()

    def close(self) -> None:
        """Make dials give up, and let go of jump hosts."""
        self._closed.set()
        self._connector.close()

    def dial(self, target: Target, *, report: Callable[[str], None], stop: Stop = NEVER) -> Connection:
        """A working connection, or Unreachable (or one of its kinds) saying what the last attempt met."""
        stop = stop.also(self._closed)
        pause = self.schedule.first_pause
        until: Deadline | None = None
        attempt = 0
        while True:
            with self._place(target, stop):
                # Time spent waiting for a place is not held against this host.
                until = until or Deadline(self.schedule.seconds, stop)
                attempt += 1
                try:
                    return self._connector(target, until)
                except (DialFailed, TimedOut) as failed:
                    reason = str(failed)
                    again = not isinstance(failed, DialFailed) or failed.again
                except Cancelled as cancelled:
                    raise _cancelled(target) from cancelled
            if not again or attempt >= self.schedule.attempts or until.left <= pause:
                raise _unreachable(target, reason, attempt)
            report(f"attempt {attempt}: {reason}; trying again")
            # Spread out, or nodes behind one throttle would come back together.
            stop.wait(pause * random.uniform(0.75, 1.25))
            pause *= 2

    @contextmanager
    def _place(self, target: Target, stop: Stop) -> Iterator[None]:
        while not self._places.acquire(timeout=LOOK_SECONDS):
            if stop():
                raise _cancelled(target)
        try:
            if stop():
                raise _cancelled(target)
            yield
        finally:
            self._places.release()


def _cancelled(target: Target) -> TransactionFailed:
    return TransactionFailed("cancelled while dialling", node=target.name, details={"cancelled": True})


def _unreachable(target: Target, reason: str, attempts: int) -> Unreachable:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    jump = target.on_the_way()
    option = f"-J {jump.user}@{jump.host}:{jump.port} " if jump else ""
    return Unreachable(
        f"{target} is not reachable after {tries}: {reason}",
        remedy=f"See that the host is up and that ssh {option}-p {target.port} {target.user}@{target.host} works "
        "from here",
        node=target.name,
        details={"attempts": attempts, "reason": reason},
    )
