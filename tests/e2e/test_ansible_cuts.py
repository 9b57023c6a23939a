"""A playbook whose SSH is cut, or which is killed, at every point of what it says to a host: each host has the old
documents or the new ones, whole, and the next run finishes the work.

One host of the lab stands at each point, so that one run goes through all of them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent.wire import Hello
from bpfleet.lab import Lab
from bpfleet.model.document import canonical_json
from bpfleet.transport.fleet import Fleet
from tests.e2e.ansible_play import Controller, Played, tasks
from tests.unit.test_transport_numbers import colliding
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

DEADLINE = 10
WAIT_SECONDS = 120.0

# What a host is afterwards: "either" where it depends on whether what was sent arrived in time.
POINTS: Sequence[tuple[tuple[str, str], str]] = [
    (("hello", "before"), "old"),
    (("hello", "sent"), "old"),
    (("hello", "answered"), "old"),
    (("stage", "before"), "old"),
    (("stage", "sent"), "old"),
    (("stage", "answered"), "old"),
    (("apply", "answered"), "old"),
    (("reset", "before"), "old"),
    (("reset", "answered"), "old"),
    (("confirm", "before"), "old"),
    (("confirm", "sent"), "either"),
    (("confirm", "answered"), "new"),
]


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("cuts")
    assemble(folder / "collections")
    # One more host, to which nothing happens.
    hosts = len(POINTS) + 1
    with Lab.up(f"cuts-{os.getpid()}", hosts, 0, directory=folder / "lab", guarded=True) as lab:
        made = Controller(lab, folder / "collections", folder)
        yield made
        made.close()


def playbook(controller: Controller, version: str, *more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All hosts, their cluster, and a policy that tells one version from another."""
    documents = controller.nodes()
    cluster = {"kind": "cluster", "name": "many", "spec": {"id": 7, "members": list(controller.lab.hosts)}}
    policy = {"description": version, "selector": {"role": "none"}, "ingress": []}
    documents += [cluster, {"kind": "policy", "name": "version", "spec": policy}, *map(dict, more)]
    return tasks(("documents", {"documents": documents, "deadline": DEADLINE}))


class Points:
    """Where each host is cut off or held, in a run with this environment."""

    def __init__(self, controller: Controller, folder: Path, then: str) -> None:
        self._lab = controller.lab
        self._reached = folder / "reached"
        self._reached.mkdir(parents=True)
        self.at = dict(zip(controller.lab.hosts, POINTS, strict=False))
        plan = {self._lab.host(name).address: {"at": point, "then": then} for name, (point, _) in self.at.items()}
        (folder / "plan.json").write_text(json.dumps(plan))
        self.environment = {
            "ANSIBLE_SSH_EXECUTABLE": str(Path(__file__).with_name("ssh_points.py")),
            "SSH_POINTS": str(folder),
        }

    def missing(self) -> list[tuple[str, str]]:
        """Points that were not reached."""
        return [
            point for name, (point, _) in self.at.items() if not (self._reached / self._lab.host(name).address).exists()
        ]

    def wait(self) -> None:
        until = time.monotonic() + WAIT_SECONDS
        while self.missing():
            assert time.monotonic() < until, f"never reached: {self.missing()}"
            time.sleep(0.1)


def settled(controller: Controller) -> dict[str, Hello]:
    """What hosts say of themselves once nothing awaits a confirmation there."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        hellos = controller.hellos()
        if not any(hello["pending"] for hello in hellos.values()):
            return hellos
        assert time.monotonic() < until, hellos
        time.sleep(1)


def digests(hellos: Mapping[str, Hello]) -> dict[str, str]:
    return {name: hello["documents_digest"] for name, hello in hellos.items()}


def assert_whole(controller: Controller) -> None:
    """Kernels are what their hosts' confirmed documents ask for."""
    with Fleet() as fleet:
        targets = [controller.target(name) for name in controller.lab.hosts]
        for name, status in fleet.each(targets, lambda target: fleet.call(target, "status")).items():
            assert not isinstance(status, Exception), status
            assert status["drift"] == [], name


def assert_each_as_expected(controller: Controller, points: Points, old: str) -> None:
    """Old or new by its point; the host to which nothing happened shows what new is, if its task came to an end."""
    found = digests(settled(controller))
    new = next((digest for digest in found.values() if digest != old), None)
    for name, (point, expected) in points.at.items():
        allowed = {"old": {old}, "new": {new}, "either": {old, new}}[expected]
        assert found[name] in allowed, f"{name}: {point}"
    assert_whole(controller)


def assert_finished(controller: Controller, played: Played) -> None:
    assert {result.outcome for result in played.results} == {"ok"}
    assert len(set(digests(controller.hellos()).values())) == 1
    assert_whole(controller)


def test_ssh_cut_at_every_point(controller: Controller, tmp_path: Path) -> None:
    controller.play(playbook(controller, "one"))
    (old,) = set(digests(controller.hellos()).values())
    points = Points(controller, tmp_path / "points", "cut")
    played = controller.play(playbook(controller, "two"), ok=False, environment=points.environment).of("documents")
    assert not points.missing()
    for name, result in played.items():
        assert result.outcome == ("unreachable" if name in points.at else "ok"), (points.at.get(name), result.message)
    assert_each_as_expected(controller, points, old)
    assert_finished(controller, controller.play(playbook(controller, "two")))


def test_the_controller_killed_at_every_point(controller: Controller, tmp_path: Path) -> None:
    controller.play(playbook(controller, "three"))
    (old,) = set(digests(controller.hellos()).values())
    points = Points(controller, tmp_path / "points", "hold")
    controller.kill_while_playing(playbook(controller, "four"), points.environment, points.wait)
    assert_each_as_expected(controller, points, old)
    assert_finished(controller, controller.play(playbook(controller, "four")))


def test_ssh_cut_at_every_point_while_numbers_are_given_out(controller: Controller, tmp_path: Path) -> None:
    """The nodes that would decide are cut off one after the other; whoever decides then, no number means two things."""
    ours = [
        {"kind": "identity", "name": f"i{index}", "spec": {"labels": labels}}
        for index, labels in enumerate(colliding()[:3])
    ]
    controller.play(playbook(controller, "five"))
    points = Points(controller, tmp_path / "points", "cut")
    controller.play(playbook(controller, "five", *ours), ok=False, environment=points.environment)
    settled(controller)
    assert_whole(controller)
    meanings: dict[int, set[str]] = {}
    for items in map(controller.items, controller.lab.hosts):
        for item in items.values():
            if item["document"]["kind"] == "identity":
                spec = item["document"]["spec"]
                meanings.setdefault(spec["number"], set()).add(canonical_json(spec["labels"]))
    assert all(len(labels) == 1 for labels in meanings.values()), meanings
    assert_finished(controller, controller.play(playbook(controller, "five", *ours)))
