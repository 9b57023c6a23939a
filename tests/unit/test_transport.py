"""Targets, the artefact that is delivered, and the schedule of dials."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from bpfleet.agent.artefact import build
from bpfleet.errors import AuthenticationFailed, HostUnfit, InvalidInput, TransactionFailed, Unreachable
from bpfleet.transport.artefact import current, of_bytes
from bpfleet.transport.channel import NEVER, Cancelled, Deadline, DialFailed, Stop, within
from bpfleet.transport.dial import Dialler, Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.privilege import as_root, require_root, sudo_problem
from bpfleet.transport.target import Jump, Target
from tests.unit.transport_support import eventually, set_after


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

    def close(self) -> None:
        """Nothing is kept."""


def dial(line: Line, schedule: Schedule, cancelled: threading.Event | None = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    dialler = Dialler(line, schedule, at_once=1)
    return dialler.dial(Target("h1", "web"), report=said.append, stop=Stop(cancelled) if cancelled else NEVER), said


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


def test_what_is_called_off_ends_after_its_grace() -> None:
    event = threading.Event()
    until, patient = Deadline(3600, Stop(event)), Deadline(3600, Stop(event), grace=3600)
    until.check("answer")
    event.set()
    with pytest.raises(Cancelled):
        until.check("answer")
    patient.check("answer")
    with pytest.raises(Cancelled):
        until.sooner(1).check("answer")


def test_work_that_is_given_up_is_discarded_when_it_ends() -> None:
    event, begun, go_on = threading.Event(), threading.Event(), threading.Event()
    discarded: list[str] = []

    def work() -> str:
        begun.set()
        assert go_on.wait(30)
        return "late"

    set_after(begun, event)
    with pytest.raises(Cancelled):
        within(Deadline(3600, Stop(event)), "answer", work, discarded.append)
    assert discarded == []
    go_on.set()
    assert eventually(lambda: discarded == ["late"])
    assert within(Deadline(3600), "answer", lambda: "now", discarded.append) == "now"


def test_a_target_may_lie_behind_a_jump_host() -> None:
    jump = Jump("bastion", 2222, "hop", host_key="ssh-ed25519 AAAA")
    target = Target("h1", "192.0.2.1", user="op", sudo=True, jump=jump)
    assert Target.from_metadata("h1", target.to_metadata()) == target
    way = target.on_the_way()
    assert way is not None
    assert (str(way), way.at, way.host_key) == ("hop@bastion:2222", "ssh.jump", "ssh-ed25519 AAAA")
    assert way.on_the_way() is None
    with pytest.raises(InvalidInput) as caught:
        Target.from_metadata("h1", {"host": "web", "jump": {"port": 22}})
    assert caught.value.field == "ssh.jump.host"


@pytest.mark.parametrize(
    ("status", "complaint", "said"),
    [
        (1, "sudo: a password is required", "wants a password of op"),
        (1, "sudo: sorry, you must have a tty to run sudo", "wants a password of op"),
        (1, "op is not in the sudoers file.", "refuses op"),
        (1, "sudo: a thing of tomorrow", "refuses op"),
        (127, "sh: 1: exec: sudo: not found", "has no sudo"),
    ],
)
def test_sudos_words_become_an_error(status: int, complaint: str, said: str) -> None:
    error = sudo_problem(Target("h1", "web", user="op", sudo=True), status, complaint)
    assert isinstance(error, HostUnfit)
    assert said in error.what
    assert error.field == "ssh.sudo"
    assert sudo_problem(Target("h1", "web"), status, complaint) is None


def test_the_agents_own_failures_are_not_sudos() -> None:
    target = Target("h1", "web", user="op", sudo=True)
    assert sudo_problem(target, 1, "Traceback: something") is None
    assert sudo_problem(target, 0, "sudo: unable to resolve host h1") is None


def test_only_another_user_than_root_needs_sudo() -> None:
    assert as_root(Target("h1", "web", sudo=True), "exec sh -c true") == "exec sh -c true"
    assert as_root(Target("h1", "web", user="op", sudo=True), "exec sh -c true") == "exec sudo -n -- sh -c true"
    require_root(Target("h1", "web", user="op", sudo=True))
    with pytest.raises(HostUnfit, match="op is not root"):
        require_root(Target("h1", "web", user="op"))


def test_who_needs_one_answer_waits_for_no_node_that_is_away() -> None:
    nodes = {name: Target(name, name) for name in ("dead", "slow", "broken", "quick", "spared")}
    asked: list[str] = []
    there = threading.Event()

    def ask(target: Target) -> str:
        asked.append(target.name)
        if target.name in ("dead", "slow"):
            there.wait(60)
        if target.name in ("dead", "broken"):
            raise Unreachable("away", node=target.name)
        return target.name

    with Fleet(connector=Line()) as fleet:
        began = time.monotonic()
        answers = fleet.as_they_answer(nodes.values(), ask)
        first, error = next(answers)
        assert isinstance(error, Unreachable) and first.name == "broken"
        assert next(answers) == (nodes["quick"], "quick")
        assert time.monotonic() - began < 10
        assert asked == ["dead", "slow", "broken", "quick"], "one after the other, and no more than it takes"
        there.set()
        rest = dict(answers)
        assert rest[nodes["slow"]] == "slow" and isinstance(rest[nodes["dead"]], Unreachable)
