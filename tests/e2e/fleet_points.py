"""A change of one node by a `Fleet` that something happens to at one point of what it says to the node.

    python -m tests.e2e.fleet_points FILE    makes the change that FILE describes, and is killed at its point

when:

    before    the request is not sent; of "dial", the new connection for the confirmation is not made
    sent      it is sent, and nothing is heard any more
    answered  its answer arrives, and is the last thing that does
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bpfleet.agent import wire
from bpfleet.transport.channel import Broken, Connection, Connector, Deadline, DialFailed, Stream
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.outcome import Changes, Outcome
from bpfleet.transport.ssh import SshConnector
from bpfleet.transport.target import Target

Point = Sequence[str]
DEADLINE_SECONDS = 20.0
"""To confirm in: not the usual minute, which somebody would wait for after each change that is cut off."""
SCHEDULE = Schedule(attempts=2, seconds=10.0)
TIMEOUTS = Timeouts(request=10.0, by_method={"stage": 60.0, "apply": 60.0, "rollback": 10.0})


class Points(Protocol):
    """What happens at a point."""

    reached: bool
    """Whether the host is cut off."""

    def at(self, method: str, when: str, until: Deadline) -> None:
        """This is the point, of work that has so long. Broken if the host is cut off there."""

    def check(self) -> None:
        """Broken if the host is cut off."""


class Interrupted(Connector):
    """SSH until the point; there `happen`, and if that returns, the host is cut off for good."""

    local = False

    def __init__(self, point: Point, happen: Callable[[], None]) -> None:
        self.reached = False
        self._point = tuple(point)
        self._happen = happen
        self._inner = SshConnector()
        self._dials = 0

    def __call__(self, target: Target, until: Deadline) -> Connection:
        self._dials += 1
        try:
            if self._dials == 2:
                self.at("dial", "before", until)
            self.check()
        except Broken as broken:
            raise DialFailed(str(broken), again=False) from broken
        return WatchedConnection(self._inner(target, until), self)

    def close(self) -> None:
        self._inner.close()

    def at(self, method: str, when: str, until: Deadline) -> None:
        if not self.reached and (method, when) == self._point:
            self.reached = True
            self._happen()
            self.check()

    def check(self) -> None:
        if self.reached:
            raise Broken("cut off")


class WatchedConnection(Connection):
    """A connection whose points are told."""

    def __init__(self, inner: Connection, points: Points) -> None:
        self._inner = inner
        self._points = points

    def open(self, command: str, until: Deadline) -> Stream:
        self._points.check()
        return _Stream(self._inner.open(command, until), self._inner, self._points)

    @property
    def alive(self) -> bool:
        return self._inner.alive and not self._points.reached

    def close(self) -> None:
        self._inner.close()


class _Stream:
    def __init__(self, inner: Stream, connection: Connection, points: Points) -> None:
        self._inner = inner
        self._connection = connection
        self._points = points
        self._method = ""
        # Everything but sending and receiving is as it is.
        self.complaint, self.exit_status, self.leave = inner.complaint, inner.exit_status, inner.leave
        self.end_input, self.close = inner.end_input, inner.close

    def send(self, data: bytes, until: Deadline) -> None:
        self._points.check()
        if data.startswith(b"{"):
            request = wire.decode(data)
            self._method = str(request.get("method"))
            if self._method == "apply":
                request["params"]["deadline_seconds"] = DEADLINE_SECONDS
                data = wire.encode(request)
        self._at("before", until)
        self._inner.send(data, until)
        self._at("sent", until)

    def receive(self, until: Deadline) -> bytes:
        self._points.check()
        data = self._inner.receive(until)
        if data:
            self._at("answered", until)
        return data

    def _at(self, when: str, until: Deadline) -> None:
        try:
            self._points.at(self._method, when, until)
        except Broken:
            self._connection.close()
            raise


def change(target: Target, changes: Changes, point: Point, happen: Callable[[], None]) -> Outcome:
    """The outcome, if there is one; AssertionError if the point was never reached."""
    connector = Interrupted(point, happen)
    with Fleet(connector=connector, schedule=SCHEDULE, timeouts=TIMEOUTS) as fleet:
        outcome = fleet.transact({target.name: target}, changes)[target.name]
    assert connector.reached, f"{point} was never reached: {outcome}"
    return outcome


def main(described: Mapping[str, Any]) -> None:
    changes = Changes(described["puts"], owner=described["owner"])
    change(Target(**described["target"]), changes, described["point"], lambda: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
