"""Targets, the artefact that is delivered, and the schedule of dials."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from bpfleet.agent.artefact import build
from bpfleet.errors import AuthenticationFailed, InvalidInput, TransactionFailed, Unreachable
from bpfleet.transport.artefact import current, of_bytes
from bpfleet.transport.channel import Deadline, DialFailed
from bpfleet.transport.dial import Dialler, Schedule
from bpfleet.transport.target import Target


def test_a_target_survives_its_metadata() -> None:
    target = Target("h1", "192.0.2.1", 2222, "admin", "~/.ssh/fleet", "ssh-ed25519 AAAA", "/etc/known")
    assert Target.from_metadata("h1", target.to_metadata()) == target
    assert Target.from_metadata("h1", Target("h1", "web").to_metadata()) == Target("h1", "web")


def test_a_node_is_dialled_at_its_address_unless_a_host_is_given() -> None:
    assert Target.from_metadata("h1", {}, "192.0.2.1") == Target("h1", "192.0.2.1")
    assert Target.from_metadata("h1", {"host": "web", "host_key": None}, "192.0.2.1").host == "web"
    with pytest.raises(InvalidInput) as caught:
        Target.from_metadata("h1", {})
    assert (caught.value.resource, caught.value.field) == ("node/h1", "ssh.host")


@pytest.mark.parametrize(
    ("target", "name", "text"),
    [
        (Target("h", "Web.example.org"), "web.example.org", "root@Web.example.org"),
        (Target("h", "web", 2222), "[web]:2222", "root@web:2222"),
        (Target("h", "2001:db8::7", 22), "2001:db8::7", "root@2001:db8::7"),
        (Target("h", "2001:db8::7", 2222), "[2001:db8::7]:2222", "root@[2001:db8::7]:2222"),
    ],
)
def test_names_of_a_target(target: Target, name: str, text: str) -> None:
    assert (target.known_hosts_name, str(target)) == (name, text)


def test_what_is_delivered_belongs_to_this_code() -> None:
    assert current().digest == build().digest == of_bytes(current().data).digest


class Line:
    """A connector that fails as told and then connects (to nothing: a schedule only counts)."""

    local = False

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.dials = 0
        self.connection: Any = object()

    def __call__(self, target: Target, until: Deadline) -> Any:
        self.dials += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.connection


def dial(line: Line, schedule: Schedule, cancelled: threading.Event | None = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    dialler = Dialler(line, schedule, at_once=1)
    return dialler.dial(Target("h1", "web"), report=said.append, cancelled=cancelled), said


QUICK = Schedule(attempts=4, seconds=30, first_pause=0.001)


def test_what_may_pass_is_tried_again() -> None:
    line = Line(DialFailed("refused", again=True), DialFailed("dropped", again=True))
    connection, said = dial(line, QUICK)
    assert connection is line.connection
    assert line.dials == 3
    assert [text.split(":")[0] for text in said] == ["attempt 1", "attempt 2"]


def test_attempts_are_bounded() -> None:
    line = Line(*[DialFailed("refused", again=True)] * 9)
    with pytest.raises(Unreachable, match="4 attempts: refused") as caught:
        dial(line, QUICK)
    assert line.dials == caught.value.details["attempts"] == 4
    assert "ssh -p 22 root@web" in caught.value.remedy


def test_no_pause_begins_that_would_end_too_late() -> None:
    line = Line(*[DialFailed("refused", again=True)] * 9)
    with pytest.raises(Unreachable, match="1 attempt: refused"):
        dial(line, Schedule(attempts=4, seconds=5, first_pause=3600))
    assert line.dials == 1


@pytest.mark.parametrize("final", [DialFailed("no such name", again=False), AuthenticationFailed("no")])
def test_what_will_not_pass_is_not_tried_again(final: Exception) -> None:
    line = Line(final)
    with pytest.raises(Unreachable):
        dial(line, QUICK)
    assert line.dials == 1


def test_cancelling_ends_the_dialling() -> None:
    line, cancelled = Line(), threading.Event()
    cancelled.set()
    with pytest.raises(TransactionFailed, match="cancelled"):
        dial(line, QUICK, cancelled)
    assert line.dials == 0
