"""Where controllers that know nothing of each other meet: at points of what they say to hosts.

Each comes by points named WHO.HOST.METHOD.WHEN (METHOD and WHEN as in fleet_points.py), of which it leaves a file in a
shared folder when it is there for the first time. A file `plan.json` there says what is before it may go on:

    {POINT: [POINT, ...]}   until all these were passed; one that is KILL has it killed once the ones before it were
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpfleet.transport.channel import Connection, Connector, Deadline
from bpfleet.transport.ssh import SshConnector
from bpfleet.transport.target import Target
from tests.e2e.fleet_points import WatchedConnection

WAIT_SECONDS = 120.0
KILL = "kill"
Plan = Mapping[str, Sequence[str]]


class Meeting:
    """The folder. In a test: what is planned there, and what has happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, plan: Plan) -> None:
        """Begin anew, with this plan."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def passed(self, point: str) -> bool:
        return (self.folder / point).exists()

    def wait_for(self, *points: str) -> None:
        """Until these were passed; AssertionError if they are not in time."""
        until = time.monotonic() + WAIT_SECONDS
        while missing := [point for point in points if not self.passed(point)]:
            assert time.monotonic() < until, f"never passed: {missing}"
            time.sleep(0.02)

    def come(self, point: str, until: Deadline) -> None:
        """Somebody is there: leave the file, and wait as planned, or until the work is called off."""
        if self.passed(point):
            return
        awaited = json.loads((self.folder / "plan.json").read_text()).get(point, [])
        (self.folder / point).touch()
        for other in awaited:
            if other == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            while not self.passed(other):
                until.check(other)
                time.sleep(0.02)


class MeetingConnector(Connector):
    """SSH of `who`, who comes by the meeting's points."""

    local = False

    def __init__(self, meeting: Meeting, who: str) -> None:
        self._meeting = meeting
        self._who = who
        self._inner = SshConnector()

    def __call__(self, target: Target, until: Deadline) -> Connection:
        return WatchedConnection(self._inner(target, until), _Of(self._meeting, f"{self._who}.{target.name}"))

    def close(self) -> None:
        self._inner.close()


class _Of:
    """The points of one host."""

    reached = False

    def __init__(self, meeting: Meeting, prefix: str) -> None:
        self._meeting = meeting
        self._prefix = prefix

    def at(self, method: str, when: str, until: Deadline) -> None:
        self._meeting.come(f"{self._prefix}.{method}.{when}", until)

    def check(self) -> None:
        """Nobody is cut off."""
