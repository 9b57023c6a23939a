"""A real `pulumi up` whose engine or plugin is killed while one host applies and another is to be confirmed: each goes
back to what it had, whole, and the next `pulumi up` does the work.

test_fleet_cuts.py goes through every point with what the plugin uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.meeting import KILL, Meeting
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside, node
from tests.e2e.test_transport import target_of

pytestmark = [pytest.mark.root, pytest.mark.lab]

WAIT_SECONDS = 120.0
APPLIES, TO_BE_CONFIRMED = "test.h2.apply.sent", "test.h1.confirm.before"


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Meeting:
    made = Meeting(tmp_path_factory.mktemp("kills") / "meeting")
    made.plan({})
    return made


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, lab_name: Callable[[], str]) -> Iterator[Lab]:
    with Lab.up(lab_name(), 2, 0, directory=tmp_path_factory.mktemp("kills-lab"), guarded=True) as up:
        yield up


@pytest.fixture(scope="module")
def stack(lab: Lab, meeting: Meeting) -> Stack:
    made = Stack(meeting.folder.parent / "stack", cli_folder(), meeting=meeting.folder)
    for name, host in lab.hosts.items():
        made.resources[name] = node(host, lab.private_key)
    made.resources["fleet"] = cluster(*lab.hosts)
    declare(made, "nothing was killed yet")
    made.up()
    return made


def declare(stack: Stack, version: str) -> None:
    """A version: a policy that changes, and one that is new."""
    for name in ("version", version.replace(" ", "-")):
        properties = {"description": version, "selector": {"role": "none"}, "ingress": []}
        stack.resources[name] = inside("Policy", properties)


def policies(lab: Lab) -> dict[str, dict[str, str]]:
    """Descriptions by policy by host, once none of them waits for a confirmation; AssertionError if one drifts."""
    until = time.monotonic() + WAIT_SECONDS
    with Fleet() as fleet:
        targets = {name: target_of(lab, host) for name, host in lab.hosts.items()}
        while any(fleet.call(target, "hello")["pending"] for target in targets.values()):
            assert time.monotonic() < until, "somebody still waits to be confirmed"
            time.sleep(0.2)
        found: dict[str, dict[str, str]] = {}
        for name, target in targets.items():
            assert fleet.call(target, "status")["drift"] == [], name
            items = fleet.call(target, "documents", {"kinds": ["policy"]})["items"]
            found[name] = {item["document"]["name"]: item["document"]["spec"]["description"] for item in items}
    return found


def finish(lab: Lab, stack: Stack, before: dict[str, dict[str, str]], version: str) -> None:
    """Look at what was left, and have the next run do the work."""
    assert policies(lab) == before, "what nobody confirmed was put back"
    after = {**before["h1"], "version": version, version.replace(" ", "-"): version}
    stack.up()
    assert policies(lab) == {"h1": after, "h2": after}
    assert stack.up().ops == {}


def test_the_plugin_is_killed(lab: Lab, stack: Stack, meeting: Meeting) -> None:
    before, version = policies(lab), "plugin killed"
    declare(stack, version)
    meeting.plan({APPLIES: ["the end"], TO_BE_CONFIRMED: [APPLIES, KILL]})
    stack.up(ok=False)
    assert meeting.passed(APPLIES) and meeting.passed(TO_BE_CONFIRMED)
    finish(lab, stack, before, version)


def test_the_engine_is_killed(lab: Lab, stack: Stack, meeting: Meeting) -> None:
    """Its plugin sees that nobody is there any more, puts back and leaves. The stack stays locked."""
    before, version = policies(lab), "engine killed"
    declare(stack, version)
    meeting.plan({APPLIES: ["the end"], TO_BE_CONFIRMED: ["the end"]})
    with stack.begun_up() as engine:
        meeting.wait_for(APPLIES, TO_BE_CONFIRMED)
        engine.kill()
    assert "locked" in stack.up(ok=False).text
    stack.cancel()
    finish(lab, stack, before, version)
