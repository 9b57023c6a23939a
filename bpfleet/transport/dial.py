"""Dialling: how many at once, how often again, and when to give up.

One schedule for every reason to fail (nobody listens, no answer, sshd's MaxStartups drops us): try, wait twice as long
as the last time, try again, until the attempts or the deadline are used up. Waiting holds no place among the dials.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from bpfleet.errors import TransactionFailed, Unreachable
from bpfleet.transport.channel import Connection, Connector, Deadline, DialFailed, TimedOut
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
        """Make dials that are waiting give up."""
        self._closed.set()

    def dial(
        self,
        target: Target,
        *,
        report: Callable[[str], None],
        cancelled: threading.Event | None = None,
    ) -> Connection:
        """A working connection, or Unreachable (or one of its kinds) saying what the last attempt met."""
        pause = self.schedule.first_pause
        until: Deadline | None = None
        attempt = 0
        while True:
            if self._closed.is_set() or (cancelled is not None and cancelled.is_set()):
                raise TransactionFailed("cancelled while dialling", node=target.name)
            with self._places:
                # Time spent waiting for a place is not held against this host.
                until = until or Deadline(self.schedule.seconds)
                attempt += 1
                try:
                    return self._connector(target, until)
                except (DialFailed, TimedOut) as failed:
                    reason = str(failed)
                    again = not isinstance(failed, DialFailed) or failed.again
            if not again or attempt >= self.schedule.attempts or until.left <= pause:
                raise _unreachable(target, reason, attempt)
            report(f"attempt {attempt}: {reason}; trying again")
            # Spread out, or nodes behind one throttle would come back together.
            (cancelled or self._closed).wait(pause * random.uniform(0.75, 1.25))
            pause *= 2


def _unreachable(target: Target, reason: str, attempts: int) -> Unreachable:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return Unreachable(
        f"{target} is not reachable after {tries}: {reason}",
        remedy=f"See that the host is up and that ssh -p {target.port} {target.user}@{target.host} works from here",
        node=target.name,
        details={"attempts": attempts, "reason": reason},
    )
