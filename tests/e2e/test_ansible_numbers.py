"""Identity numbers over twenty of Ansible's forks, and beside a second controller, with hashes that collide.

tests/unit/test_ansible_deciding.py goes through what one fork does; tests/unit/test_transport_numbers.py through many
interleavings of two controllers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.lab import Lab
from bpfleet.model.document import canonical_json
from bpfleet.transport.fleet import Fleet
from provider.directory import Directory
from provider.writing import Put, Result, Writer
from tests.e2e.ansible_play import Controller, Played, tasks
from tests.e2e.kept import generations, meanings
from tests.e2e.meeting import Meeting, MeetingConnector
from tests.unit.test_transport_numbers import colliding
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

HOSTS = 20
CLUSTER = {"kind": "cluster", "name": "prod"}


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("numbers")
    assemble(folder / "collections")
    with Lab.up(f"forks-{os.getpid()}", HOSTS, 0, directory=folder / "lab", guarded=True) as lab:
        made = Controller(lab, folder / "collections", folder)
        yield made
        made.close()


def fleet_documents(controller: Controller) -> list[dict[str, Any]]:
    """All hosts and their cluster, whose id the colliding labels are made for."""
    keys = {name: host.host_key for name, host in controller.lab.hosts.items()}  # whom the other controller trusts
    nodes = [{**one, "ssh": {"host_key": keys[one["name"]]}} for one in controller.nodes()]
    return [*nodes, {**CLUSTER, "spec": {"id": 7, "members": list(controller.lab.hosts)}}]


def identities(labels: Mapping[str, dict[str, str]]) -> list[dict[str, Any]]:
    return [{"kind": "identity", "name": name, "spec": {"labels": each}} for name, each in labels.items()]


def assert_one_number_for_one(controller: Controller, labels: Sequence[dict[str, str]]) -> None:
    """On every node the same, and no number ever meant anything else on any."""
    one, *others = (generations(host)[-1] for host in controller.lab.hosts.values())
    assert set(one.values()) >= {canonical_json(each) for each in labels}
    assert all(other == one for other in others), "two nodes disagree"
    assert all(len(texts) == 1 for texts in meanings(controller.lab).values()), "a number had two meanings"


def assert_changed_everywhere(controller: Controller, played: Played, action: str) -> None:
    """Of the node that decided, too: it is told what another host's task has done on it."""
    done = {result.host for result in played.results if result.action == f"bpfleet.fleet.{action}" and result.changed}
    assert done == set(controller.lab.hosts)


def test_twenty_forks_with_documents(controller: Controller) -> None:
    labels = dict(zip("abc", colliding(), strict=False))
    documents = [*fleet_documents(controller), *identities(labels)]
    played = controller.play(tasks(("documents", {"documents": documents})))
    assert_changed_everywhere(controller, played, "documents")
    assert {len(result.result["put"]) for result in played.of("documents").values()} == {HOSTS + 1 + 3}
    assert_one_number_for_one(controller, colliding()[:3])
    assert controller.play(tasks(("documents", {"documents": documents}))).changed == set()


def test_twenty_forks_with_single_modules_each_at_its_own_pace(controller: Controller) -> None:
    """With strategy free, hosts are at different tasks at one time: each task allocates for itself."""
    put = [("identity", {"cluster": "prod", "name": f"s{index}", "labels": colliding()[3 + index]}) for index in (0, 1)]
    played = controller.play(tasks(*put, strategy="free"))
    assert [result.changed for result in played.results] == [True] * 2 * HOSTS, "each host is told of each"
    assert_one_number_for_one(controller, colliding()[:5])


def test_a_playbook_and_a_second_controller_at_once(controller: Controller) -> None:
    more = colliding("more")
    ours, theirs = more[:3], more[3:]
    begun = threading.Event()

    def write() -> list[Result]:
        """What a provider process does, one identity after the other while the playbook runs."""
        results = []
        with Fleet() as fleet, ThreadPoolExecutor(8) as pool:
            directory = Directory(lambda: fleet, pool)
            seeds = {name: controller.target(name) for name in list(controller.lab.hosts)[-3:]}
            view = directory.view("prod", seeds)
            assert view is not None
            writer = Writer(fleet, directory, view, "pulumi:other/stack", threading.Event())
            begun.set()
            for index, labels in enumerate(theirs):
                results += writer.write([Put("identity", f"t{index}", {"labels": labels})], []).values()
        return results

    put = [("identity", {"cluster": "prod", "name": f"o{index}", "labels": each}) for index, each in enumerate(ours)]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(write)
        begun.wait(120)
        played = controller.play(tasks(*put))
        results = other.result(300)
    assert {result.outcome for result in played.results} == {"ok"}
    assert not [result.error for result in results if result.error is not None or result.lagging]
    assert_one_number_for_one(controller, [*colliding()[:5], *more])


def test_a_number_that_another_has_staged_before_and_commits_between_allocation_and_stage(
    controller: Controller, tmp_path: Path
) -> None:
    """The playbook has chosen a number, and is held before the deciding node is offered it. The other has had the same
    staged everywhere; it commits it on that node, and comes to the rest only when the playbook is through: if that
    had offered the number to the rest meanwhile, the number would mean two."""
    mine, other = colliding("race")[:2]
    first = controller.lab.host(min(controller.lab.hosts))
    (tmp_path / "reached").mkdir()
    plan = {first.address: {"at": ["stage", "before"], "then": "wait"}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    environment = {
        "ANSIBLE_SSH_EXECUTABLE": str(Path(__file__).with_name("ssh_points.py")),
        "SSH_POINTS": str(tmp_path),
    }
    put = tasks(("identity", {"cluster": "prod", "name": "mine", "labels": mine}))
    meeting = Meeting(tmp_path / "meeting")
    rest = [name for name in controller.lab.hosts if name != first.name]
    meeting.plan(
        {
            f"other.{first.name}.apply.before": ["playbook held"],
            **{f"other.{name}.apply.before": ["playbook through"] for name in rest},
        }
    )

    def write() -> list[Result]:
        with (
            Fleet(connector=MeetingConnector(meeting, "other")) as fleet,
            ThreadPoolExecutor(8) as workers,
        ):
            directory = Directory(lambda: fleet, workers)
            view = directory.view("prod", {first.name: controller.target(first.name)})
            assert view is not None
            writer = Writer(fleet, directory, view, "pulumi:other/stack", threading.Event())
            return list(writer.write([Put("identity", "other", {"labels": other})], []).values())

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        try:
            meeting.wait_for(*(f"other.{name}.stage.answered" for name in controller.lab.hosts))
            run = pool.submit(controller.play, put, environment=environment)
            until = time.monotonic() + 120
            while not (tmp_path / "reached" / first.address).exists():
                assert time.monotonic() < until and not run.done(), "the run never came there"
                time.sleep(0.05)
            (meeting.folder / "playbook held").touch()
            meeting.wait_for(f"other.{first.name}.confirm.answered")
            (tmp_path / "go").touch()
            played = run.result(300)
        finally:
            for path in (tmp_path / "go", meeting.folder / "playbook held", meeting.folder / "playbook through"):
                path.touch()
        (result,) = writing.result(300)
    assert {task.outcome for task in played.results} == {"ok"}
    assert result.error is None and not result.lagging
    assert_one_number_for_one(controller, [mine, other])


def test_a_run_without_the_deciding_node_gives_no_number(controller: Controller) -> None:
    """It is not in the play, so it is not changed; and past it nobody gives numbers out."""
    first = min(controller.lab.hosts)
    put = tasks(("identity", {"cluster": "prod", "name": "late", "labels": {"late": "1"}}))
    refused = controller.play(put, "--limit", "h2,h3", ok=False).of("identity")
    for result in refused.values():
        assert f"cannot get a number yet: {first}, which decides" in result.message
        assert f"with {first} in it" in result.message
    assert not any(
        "late" in text for name in ("h2", "h3", first) for text in generations(controller.lab.host(name))[-1].values()
    )
    controller.play(put, "--limit", first)
    # What it has, others may have.
    assert {host for host, _ in controller.play(put, "--limit", "h2,h3").changed} == {"h2", "h3"}
