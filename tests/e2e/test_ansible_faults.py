"""Hosts and controllers that die in the middle of a playbook: each host has the old documents or the new ones, whole,
and the next run finishes the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.lab import Lab
from tests.e2e.ansible_play import Controller, tasks
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

DEADLINE = 10
WAIT_SECONDS = 120.0

# Stands between Ansible and ssh: holds the first ending of a connection to one address, which is what an action does
# between apply and confirm, until a file says to go on.
WRAPPER = """#!/bin/sh
case " $* " in
*" -O check "*"{address} "*)
    if mkdir {folder}/reached 2>/dev/null; then
        count=0
        while [ ! -e {folder}/go ] && [ $count -lt 1200 ]; do sleep 0.1; count=$((count + 1)); done
    fi ;;
esac
exec ssh "$@"
"""


class Held:
    """A run of a playbook that is held between apply and confirm on one host."""

    def __init__(self, controller: Controller, folder: Path, host: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.wrapper = folder / "ssh"
        self.wrapper.write_text(WRAPPER.format(address=controller.lab.host(host).address, folder=folder))
        self.wrapper.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"ANSIBLE_SSH_EXECUTABLE": str(self.wrapper)}

    def wait(self) -> None:
        """Until the run is there."""
        until = time.monotonic() + WAIT_SECONDS
        while not (self.folder / "reached").exists():
            assert time.monotonic() < until, "the run never came to its confirmation"
            time.sleep(0.05)

    def go_on(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def controller(make_lab: Callable[..., Lab], tmp_path: Path) -> Iterator[Controller]:
    lab = make_lab(nodes=2, workloads=0)
    assemble(tmp_path / "collections")
    made = Controller(lab, tmp_path / "collections", tmp_path)
    yield made
    made.close()


def playbook(controller: Controller, description: str) -> list[dict[str, Any]]:
    """Two nodes, their cluster, and a policy that tells one version from another."""
    documents = controller.nodes()
    documents.append({"kind": "cluster", "name": "pair", "spec": {"id": 9, "members": list(controller.lab.hosts)}})
    spec = {"description": description, "selector": {"role": "none"}, "ingress": []}
    documents.append({"kind": "policy", "name": "version", "spec": spec})
    return tasks(("documents", {"documents": documents, "prune": True, "deadline": DEADLINE}))


def versions(controller: Controller) -> dict[str, str]:
    """Which version each host has confirmed."""
    return {
        name: controller.items(name)["policy/version"]["document"]["spec"]["description"]
        for name in controller.lab.hosts
    }


def test_a_host_that_dies_between_apply_and_confirm(controller: Controller, tmp_path: Path) -> None:
    controller.play(playbook(controller, "old"))
    held = Held(controller, tmp_path / "held", "h2")
    runs: list[Any] = []

    def run() -> None:
        runs.append(controller.play(playbook(controller, "new"), ok=False, environment=held.environment))

    thread = threading.Thread(target=run)
    thread.start()
    held.wait()
    controller.lab.power_off("h2")
    held.go_on()
    thread.join(WAIT_SECONDS)
    (played,) = runs
    results = played.of("documents")
    assert results["h1"].outcome == "ok" and results["h1"].changed
    assert results["h2"].outcome == "unreachable"
    assert "could not be reached over a new connection to confirm it" in results["h2"].message
    assert "goes back to what was last confirmed" in results["h2"].message

    controller.lab.reboot("h2")
    assert versions(controller) == {"h1": "new", "h2": "old"}, "each is whole"
    rest = controller.play(playbook(controller, "new"))
    assert {host for host, _ in rest.changed} == {"h2"}
    assert versions(controller) == {"h1": "new", "h2": "new"}


def test_a_controller_that_is_killed_between_apply_and_confirm(controller: Controller, tmp_path: Path) -> None:
    controller.play(playbook(controller, "old"))
    held = Held(controller, tmp_path / "held", "h2")
    controller.kill_while_playing(playbook(controller, "new"), held.environment, held.wait)
    held.go_on()
    pending = controller.hellos()["h2"]["pending"]
    assert pending is not None and pending["owner"] == "ansible:pair", "applied, and nobody confirms it"
    assert versions(controller)["h2"] == "old"
    finished = controller.play(playbook(controller, "new"))
    assert "h2" in {host for host, _ in finished.changed}
    assert versions(controller) == {"h1": "new", "h2": "new"}
    assert len(set(controller.digests().values())) == 2, "each node's own state"
    assert len({documents for documents, _ in controller.digests().values()}) == 1


def test_new_connections_that_are_cut_after_the_change_put_it_back(controller: Controller, tmp_path: Path) -> None:
    controller.play(playbook(controller, "old"))
    held = Held(controller, tmp_path / "held", "h2")
    runs: list[Any] = []

    def run() -> None:
        environment = {**held.environment, "ANSIBLE_TIMEOUT": "10"}  # what is cut is tried for as long
        runs.append(controller.play(playbook(controller, "new"), ok=False, environment=environment))

    thread = threading.Thread(target=run)
    thread.start()
    held.wait()
    h2 = controller.lab.host("h2")
    where = controller.lab.describe()["controller"]["address"]
    h2.run(["ip", "rule", "add", "to", where, "ipproto", "tcp", "sport", "22", "priority", "1", "blackhole"])
    try:
        held.go_on()
        thread.join(WAIT_SECONDS)
    finally:
        h2.run(["ip", "rule", "del", "priority", "1"])
    (played,) = runs
    assert played.of("documents")["h2"].outcome == "unreachable"
    # Nobody starts an agent there: the host puts the change back by itself.
    until = time.monotonic() + WAIT_SECONDS
    while "rolled back" not in h2.run(["cat", "/var/lib/bpfleet/journal.json"]).stdout:
        assert time.monotonic() < until, "the change was never put back"
        time.sleep(0.2)
    assert versions(controller) == {"h1": "new", "h2": "old"}
    assert {host for host, _ in controller.play(playbook(controller, "new")).changed} == {"h2"}


def test_a_task_in_check_mode_asks_all_hosts_before_one_is_changed(controller: Controller) -> None:
    """What docs/ansible.md says of changes that must not begin unless all hosts can take them."""
    controller.play(playbook(controller, "old"))
    (play,) = playbook(controller, "new")
    (task,) = play["tasks"]
    nodes = [each for each in task["bpfleet.fleet.documents"]["documents"] if each["name"] == "h2"]
    nodes[0]["spec"]["devices"] = [{"name": "eth9"}]
    barrier = [{**task, "check_mode": True, "changed_when": False, "name": "ask"}, {**task, "name": "change"}]
    before = controller.hellos()
    played = controller.play([{**play, "tasks": barrier, "any_errors_fatal": True}], ok=False)
    assert {(result.task, result.host, result.outcome) for result in played.results} == {
        ("ask", "h1", "ok"),
        ("ask", "h2", "failed"),
    }
    assert "eth9" in played.of("documents")["h2"].message
    assert controller.hellos() == before

    nodes[0]["spec"]["devices"] = [{"name": controller.lab.host("h2").device}]
    assert controller.play([{**play, "tasks": barrier, "any_errors_fatal": True}]).changed == {
        ("h1", "change"),
        ("h2", "change"),
    }
    assert versions(controller) == {"h1": "new", "h2": "new"}
