"""More than the limits of the cluster have room for, through a real stack and a real playbook: refused as a whole, in
words that say what to do. And what becomes of limits that are changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.ansible_play import Controller, tasks
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, inside, node
from tools.build_collection import assemble

pytestmark = [pytest.mark.root, pytest.mark.lab]

HOSTS = ("h1", "h2")
REFUSED = "the map services has room for 16 entries, 20 are needed; 10 are used now"
WAY_OUT = "Declare fewer frontends; or raise limits.frontends of the cluster."


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Lab]:
    with Lab.up(f"full-{os.getpid()}", 2, 1, directory=tmp_path_factory.mktemp("full"), guarded=True) as up:
        yield up


@pytest.fixture(scope="module")
def controller(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("ansible")
    assemble(folder / "collections")
    made = Controller(lab, folder / "collections", folder)
    yield made
    made.close()
    made.clear()


def frontends(number: int, count: int = 10) -> dict[str, Any]:
    return {
        "frontends": [{"address": f"10.96.{number}.{host}", "port": 80} for host in range(1, count + 1)],
        "backends": [],
    }


def maps(controller: Controller, host: str, name: str) -> dict[str, Any]:
    """The gauge of a map on a host."""
    with Fleet() as fleet:
        gauges = fleet.call(controller.target(host), "status")["maps"]
    (found,) = [gauge for gauge in gauges if gauge["map"] == name]
    return dict(found)


def told(controller: Controller, host: str) -> tuple[list[str], list[str]]:
    """A host's warnings and drift."""
    with Fleet() as fleet:
        answer = fleet.call(controller.target(host), "status")
    return list(answer["warnings"]), list(answer["drift"])


def written(controller: Controller) -> dict[str, tuple[Any, ...]]:
    """What each host has, and how often anything was written on it."""
    with Fleet() as fleet:
        answers = {name: fleet.call(controller.target(name), "status") for name in controller.lab.hosts}
    return {
        name: (answer["generation"], answer["documents_digest"], answer["state_digest"], answer["writes"])
        for name, answer in answers.items()
    }


def test_an_update_that_no_map_has_room_for_changes_no_host(controller: Controller, tmp_path: Any) -> None:
    stack = Stack(tmp_path / "stack", cli_folder())
    lab = controller.lab
    stack.resources = {name: node(lab.host(name), lab.private_key) for name in HOSTS}
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 16})
    stack.resources["first"] = inside("Service", frontends(1))
    stack.up()
    before = written(controller)
    stack.resources["second"] = inside("Service", frontends(2))
    run = stack.up(ok=False)
    assert REFUSED in run.errors("second") and WAY_OUT in run.errors("second")
    assert "filled by service/second" in run.errors("second") and "node h" in run.errors("second")
    assert written(controller) == before
    previewed = stack.preview(ok=False)
    assert "the map services has room for 16 entries, 20 are needed" in previewed.all_errors
    assert "node h1" in previewed.all_errors and WAY_OUT in previewed.all_errors
    # What the stack has and the program no longer says takes no room.
    del stack.resources["first"]
    assert stack.preview().ops == {"first": "delete", "second": "create"}
    del stack.resources["second"]
    stack.resources["first"] = inside("Service", frontends(1))

    # A raised limit has its room made before what needs it comes.
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 100})
    stack.resources["second"] = inside("Service", frontends(2))
    assert stack.preview().ops == {"fleet": "update", "second": "create"}
    run = stack.up()
    assert run.warnings("fleet") == ""
    for name in HOSTS:
        gauge = maps(controller, name, "services")
        assert (gauge["limit"], gauge["used"], told(controller, name)) == (100, 20, ([], []))

    # A lowered one must hold what is there.
    before = written(controller)
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 16})
    run = stack.up(ok=False)
    lowered = "the map services is to have room for 16 entries, 20 are needed; 20 are used now"
    assert lowered in run.errors("fleet") and "raise limits.frontends of the cluster" in run.errors("fleet")
    assert written(controller) == before
    del stack.resources["second"]  # what goes does so after all updates
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 100})
    stack.up()
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 18})
    stack.up()
    assert maps(controller, "h1", "services")["limit"] == 18

    # What programs fill keeps its size, and everybody is told so, and what to do.
    stack.resources["fleet"] = cluster(*HOSTS, limits={"frontends": 18, "translations": 2048})
    run = stack.up()
    said = "map translations has room for 65536 entries, 2048 are declared: it keeps its size, and what it holds, until"
    assert f"h1, h2: cluster/fleet, limits.translations: {said}" in run.warnings("fleet")
    assert "Restart the node" in run.warnings("fleet")
    (warning,), drift = told(controller, "h1")
    assert said in warning and drift == []
    for name in HOSTS:
        assert lab.reboot(name) == 0
        assert maps(controller, name, "translations")["limit"] == 2048 and told(controller, name) == ([], [])
    stack.destroy()


def test_a_playbook_that_no_map_has_room_for_changes_no_host(controller: Controller) -> None:
    lab = controller.lab
    fleet: list[dict[str, Any]] = [
        {"kind": "cluster", "name": "fleet", "spec": {"id": 7, "members": list(HOSTS), "limits": {"frontends": 16}}},
        *(
            {
                "kind": "node",
                "name": name,
                "spec": {
                    "address": lab.host(name).address,
                    "devices": [{"name": lab.host(name).device}],
                    "workload_cidrs": list(lab.host(name).workload_cidrs),
                },
            }
            for name in HOSTS
        ),
        {"kind": "service", "name": "first", "spec": frontends(1)},
    ]
    controller.play(tasks(("agent", {}), ("documents", {"cluster": "fleet", "documents": fleet})))
    before = written(controller)
    more = [*fleet, {"kind": "service", "name": "second", "spec": frontends(2)}]
    for options in ([], ["--check"]):
        played = controller.play(tasks(("documents", {"cluster": "fleet", "documents": more})), *options, ok=False)
        for host in HOSTS:
            result = played.of("documents")[host]
            assert result.outcome == "failed" and REFUSED in result.message and WAY_OUT in result.message
            assert "service/second" in result.message
        assert written(controller) == before
    fewer = [*fleet, {"kind": "service", "name": "second", "spec": frontends(2, 6)}]
    checked = controller.play(tasks(("documents", {"cluster": "fleet", "documents": fewer})), "--check")
    for host in HOSTS:
        (counted,) = [one for one in checked.of("documents")[host].result["capacity"] if one["map"] == "services"]
        assert (counted["used"], counted["wanted"], counted["limit"]) == (10, 16, 16)
    assert written(controller) == before
