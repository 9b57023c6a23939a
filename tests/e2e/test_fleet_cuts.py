"""A transaction whose SSH is cut, whose controller is killed, or whose host dies, at every point of what is said: the
node has the old generation or the new one, whole, and the next run finishes the work.

Each host of the lab is a cluster of itself and stands at one point, so that all points pass at the same time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.lab import Lab
from bpfleet.model.document import parse_document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Failed, Outcome, Unchanged, Unreached
from tests.e2e.fleet_points import change
from tests.e2e.test_transport import target_of

pytestmark = [pytest.mark.root, pytest.mark.lab]

OWNER = "test:points"
WAIT_SECONDS = 150.0
ROOT = Path(__file__).resolve().parents[2]

POINTS: Sequence[tuple[tuple[str, str], str]] = [
    (("hello", "before"), "old"),
    (("hello", "sent"), "old"),
    (("hello", "answered"), "old"),
    (("stage", "before"), "old"),
    (("stage", "sent"), "old"),
    (("stage", "answered"), "old"),
    (("apply", "before"), "old"),
    (("apply", "sent"), "old"),
    (("apply", "answered"), "old"),
    (("dial", "before"), "old"),
    (("confirm", "before"), "old"),
    (("confirm", "sent"), "either"),
    (("confirm", "answered"), "new"),
]


class Points:
    """A lab whose hosts stand at the points, and what they hold in which version."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.at = dict(zip(lab.hosts, POINTS, strict=True))
        self.targets = {name: target_of(lab, host) for name, host in lab.hosts.items()}

    def changes(self, name: str, version: str) -> Changes:
        policy = {"description": version, "selector": {"role": "none"}, "ingress": []}
        puts = [item("node", name, self.lab.host(name).node_spec), item("cluster", "one", {"id": 7, "members": [name]})]
        return Changes([*puts, item("policy", "version", policy)], owner=OWNER)

    def put(self, version: str) -> dict[str, Outcome]:
        """The version on all hosts, with nothing in the way."""
        with Fleet() as fleet:
            return fleet.transact(self.targets, {name: self.changes(name, version) for name in self.at})

    def each(self, work: Callable[[str], Any]) -> dict[str, Any]:
        """The same for all hosts at the same time."""
        with ThreadPoolExecutor(len(self.at)) as pool:
            return dict(zip(self.at, pool.map(work, self.at), strict=True))

    def assert_as_expected(self, old: str, new: str) -> None:
        """The version by its point, once no host waits for anything."""
        until = time.monotonic() + WAIT_SECONDS
        with Fleet() as fleet:
            targets = list(self.targets.values())
            while True:
                hellos = fleet.each(targets, lambda target: fleet.call(target, "hello"))
                if not any(said(hello)["pending"] for hello in hellos.values()):
                    break
                assert time.monotonic() < until, hellos
                time.sleep(1)
            stored = fleet.each(targets, lambda target: fleet.call(target, "documents", {"kinds": ["policy"]}))
        for name, (point, expected) in self.at.items():
            (policy,) = said(stored[name])["items"]
            allowed = {"old": {old}, "new": {new}, "either": {old, new}}[expected]
            assert policy["document"]["spec"]["description"] in allowed, f"{name}: {point}"

    def assert_whole(self) -> None:
        """Kernels are what the documents ask for."""
        with Fleet() as fleet:
            statuses = fleet.each(self.targets.values(), lambda target: fleet.call(target, "status"))
        for name, (point, _) in self.at.items():
            assert said(statuses[name])["drift"] == [], f"{name}: {point}"

    def assert_finished(self, version: str) -> None:
        """By the next run, which has to do only what is missing."""
        outcomes = self.put(version)
        for name, (point, expected) in self.at.items():
            allowed = {"old": Committed, "new": Unchanged, "either": (Committed, Unchanged)}[expected]
            assert isinstance(outcomes[name], allowed), f"{point}: {outcomes[name]}"


def said(answer: Any) -> Mapping[str, Any]:
    assert isinstance(answer, dict), answer
    return answer


def item(kind: str, name: str, spec: Mapping[str, Any]) -> wire.Item:
    document = parse_document({"kind": kind, "name": name, "spec": dict(spec)}).to_json()
    return {"document": document, "owner": OWNER, "metadata": {}}


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Points]:
    folder = tmp_path_factory.mktemp("points")
    with Lab.up(f"points-{os.getpid()}", len(POINTS), 0, directory=folder, guarded=True) as lab:
        yield Points(lab)


def committed(outcomes: Mapping[str, Outcome]) -> bool:
    return all(isinstance(outcome, Committed) for outcome in outcomes.values())


def test_ssh_cut_at_every_point(points: Points) -> None:
    assert committed(points.put("cut: old"))

    def run(name: str) -> Outcome:
        return change(points.targets[name], points.changes(name, "cut: new"), points.at[name][0], lambda: None)

    for name, outcome in points.each(run).items():
        assert isinstance(outcome, (Unreached, Failed)), f"{points.at[name][0]}: {outcome}"
    points.assert_as_expected("cut: old", "cut: new")
    points.assert_whole()
    points.assert_finished("cut: new")


def test_the_controller_killed_at_every_point(points: Points, tmp_path: Path) -> None:
    points.put("killed: old")

    def run(name: str) -> int:
        target, changes = points.targets[name], points.changes(name, "killed: new")
        described = {"target": vars(target), "puts": changes.puts, "owner": OWNER, "point": points.at[name][0]}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(described))
        command = [sys.executable, "-m", "tests.e2e.fleet_points", str(path)]
        return subprocess.run(command, cwd=ROOT, timeout=WAIT_SECONDS, check=False).returncode

    assert set(points.each(run).values()) == {-signal.SIGKILL}
    points.assert_as_expected("killed: old", "killed: new")
    points.assert_whole()
    points.assert_finished("killed: new")


def test_the_host_dies_at_every_point(points: Points) -> None:
    points.put("died: old")

    def run(name: str) -> Outcome:
        def happen() -> None:
            points.lab.power_off(name)

        return change(points.targets[name], points.changes(name, "died: new"), points.at[name][0], happen)

    for name, outcome in points.each(run).items():
        assert isinstance(outcome, (Unreached, Failed)), f"{points.at[name][0]}: {outcome}"
    for name in points.at:
        points.lab.reboot(name)
    points.assert_as_expected("died: old", "died: new")
    assert all(isinstance(outcome, (Committed, Unchanged)) for outcome in points.put("died: new").values())
    points.assert_as_expected("died: new", "died: new")
    points.assert_whole()
