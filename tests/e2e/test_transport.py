"""The controller's side against lab hosts: the real agent delivered, asked and changed over SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.errors import HostKeyMismatch, Unreachable
from bpfleet.lab import Host, Lab
from bpfleet.model.document import parse_document
from bpfleet.transport.artefact import current
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.outcome import Changes, Committed, Refused, Unchanged, Unreached
from bpfleet.transport.target import Target

pytestmark = [pytest.mark.root, pytest.mark.lab]

OWNER = "test:transport"


def target_of(lab: Lab, host: Host) -> Target:
    return Target(host.name, host.address, host.ssh_port, host.ssh_user, str(lab.private_key), host_key=host.host_key)


@pytest.fixture
def targets(lab: Lab) -> dict[str, Target]:
    return {name: target_of(lab, host) for name, host in lab.hosts.items()}


@pytest.fixture
def fleet(targets: dict[str, Target]) -> Iterator[Fleet]:
    with Fleet() as made:
        yield made
        for target in targets.values():
            hello = made.install(target)
            if hello["node"]:
                made.call(target, "wipe", {"node": hello["node"]})
            made.remove_agent(target)
            assert made.installed(target) is None


def item(kind: str, name: str, spec: dict[str, Any]) -> wire.Item:
    document = parse_document({"kind": kind, "name": name, "spec": spec}).to_json()
    return {"document": document, "owner": OWNER, "metadata": {}}


def node_item(host: Host) -> wire.Item:
    spec = {
        "address": host.address,
        "devices": [{"name": host.device}],
        "workload_cidrs": [str(cidr) for cidr in host.workload_cidrs],
    }
    return item("node", host.name, spec)


def cluster(lab: Lab) -> Changes:
    hosts = lab.hosts.values()
    spec = {"id": 7, "routing": {"mode": "vxlan"}, "members": sorted(host.name for host in hosts)}
    return Changes(puts=[*(node_item(host) for host in hosts), item("cluster", "prod", spec)], owner=OWNER)


def test_install_delivers_once_and_hello_says_who_is_there(targets: dict[str, Target], fleet: Fleet) -> None:
    assert fleet.each(targets.values(), fleet.installed) == dict.fromkeys(targets)
    hellos = fleet.each(targets.values(), fleet.install)
    for name, target in targets.items():
        hello = hellos[name]
        assert not isinstance(hello, Exception), hello
        assert hello["artefact"] == current().digest
        assert (hello["node"], hello["generation"], hello["pending"]) == (None, 0, None)
        assert fleet.counters(target).connections == 1
        assert fleet.counters(target).deliveries == 1
    with Fleet() as again:
        again.each(targets.values(), again.install)
        assert again.totals().deliveries == 0
        assert again.totals().bytes_sent < 1000


def test_a_cluster_is_committed_on_every_host_and_then_unchanged(
    lab: Lab, targets: dict[str, Target], fleet: Fleet
) -> None:
    outcomes = fleet.transact(targets, cluster(lab))
    assert {name: type(outcome) for name, outcome in outcomes.items()} == dict.fromkeys(targets, Committed), outcomes
    digests = {outcome.documents_digest for outcome in outcomes.values() if isinstance(outcome, Committed)}
    assert len(digests) == 1
    assert all(fleet.counters(target).connections == 2 for target in targets.values())
    writes = {name: fleet.call(target, "hello")["writes"] for name, target in targets.items()}
    with Fleet() as again:
        unchanged = again.transact(targets, cluster(lab))
        assert {name: type(outcome) for name, outcome in unchanged.items()} == dict.fromkeys(targets, Unchanged)
        assert all(again.counters(target).connections == 1 for target in targets.values())
        assert writes == {name: again.call(target, "hello")["writes"] for name, target in targets.items()}
    for name, target in targets.items():
        assert fleet.call(target, "hello")["node"] == name
        assert {entry["document"]["kind"] for entry in fleet.call(target, "documents")["items"]} == {"node", "cluster"}


def test_a_refused_document_changes_no_host(lab: Lab, targets: dict[str, Target], fleet: Fleet) -> None:
    bad = item("node", "h1", {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.0.0/24"]})
    worse: dict[str, Any] = {**bad, "document": {**bad["document"], "spec": {"addres": "192.0.2.1"}}}
    outcomes = fleet.transact(targets, Changes(puts=[worse], owner=OWNER))  # type: ignore[list-item]
    assert all(isinstance(outcome, Refused) for outcome in outcomes.values()), outcomes
    assert all(fleet.call(target, "hello")["generation"] == 0 for target in targets.values())


def test_another_hosts_key_is_refused(lab: Lab, targets: dict[str, Target], fleet: Fleet) -> None:
    with pytest.raises(HostKeyMismatch):
        fleet.install(replace(targets["h1"], host_key=lab.hosts["h2"].host_key))


def test_a_host_that_is_off_does_not_stop_the_others(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=2, workloads=0)
    targets = {name: target_of(lab, host) for name, host in lab.hosts.items()}
    lab.power_off("h1")
    with Fleet(schedule=Schedule(attempts=2, seconds=4.0)) as fleet:
        outcomes = fleet.transact(targets, cluster(lab))
        assert isinstance(outcomes["h1"], Unreached)
        assert isinstance(outcomes["h2"], Committed), outcomes["h2"]
    lab.reboot("h1")
    with Fleet() as fleet:
        again = fleet.transact(targets, cluster(lab))
        assert isinstance(again["h1"], Committed), again["h1"]
        assert isinstance(again["h2"], Unchanged)


def test_a_frozen_host_is_unreachable(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, workloads=0)
    target = target_of(lab, lab.hosts["h1"])
    timeouts = Timeouts(by_method={"status": 1.0})
    with Fleet(schedule=Schedule(attempts=2, seconds=4.0), timeouts=timeouts) as fleet:
        fleet.install(target)
        lab.hosts["h1"].freeze()
        try:
            with pytest.raises(Unreachable):
                fleet.call(target, "status")
        finally:
            lab.hosts["h1"].thaw()
        assert fleet.call(target, "hello")["generation"] == 0
