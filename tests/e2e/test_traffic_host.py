"""Between workloads and what is not a workload: their own host, other nodes, the world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.model.document import Document
from tests.e2e.traffic.ground import LABELS, Ground
from tests.e2e.traffic.judge import judge
from tests.e2e.traffic.matrix import protocol_of
from tests.e2e.traffic.packets import Tunnelled
from tests.e2e.traffic.station import Flow
from tests.e2e.traffic.wire import on_the_wire
from tests.fleet import policy

pytest_plugins = ["tests.e2e.traffic.fixtures"]

SERVICES = (("tcp", 7001), ("udp", 7001), ("icmp", 0))
# What each end is to web-1, which is on h1. In the cluster a node has one address, here an IPv4 one, so that what is
# said to and by another node's host stack is IPv4.
OTHERS = {"h1": "host", "h2": "remote-node", "world": "world", "db-2": "db", "web-3": "web"}


def pairs() -> Iterator[tuple[str, str, int]]:
    """(source, destination, family), web-1 being either of both."""
    for other in OTHERS:
        for family in (4,) if other == "h2" else (4, 6):
            yield other, "web-1", family
            yield "web-1", other, family


def flows(ground: Ground) -> dict[str, list[Flow]]:
    found: dict[str, list[Flow]] = {}
    for source, destination, family in pairs():
        some = [ground.flow(protocol, destination, port, family) for protocol, port in SERVICES]
        found.setdefault(source, []).extend(some)
    return found


def party(name: str) -> Any:
    """Labels of an endpoint, or an entity, as the judge wants it."""
    known = "web" if name == "web-1" else OTHERS[name]
    return LABELS.get(known, known)


def wrong(ground: Ground, policies: list[Document]) -> list[str]:
    """Flows that went otherwise than the reference judge says."""
    names = {ground.address(name, family): name for name in ("web-1", *OTHERS) for family in (4, 6)}
    found = []
    for (source, flow), seen in ground.reached(flows(ground)).items():
        destination = names[flow.address]
        verdict = judge(policies, party(source), party(destination), protocol_of(flow), flow.port)
        if (seen is not None) is not verdict.passes:
            found.append(f"{source} to {destination} {flow}: saw {seen}, should be {verdict}")
    return found


def both_ways(name: str, rules: list[dict[str, Any]]) -> Document:
    return policy(name, {"app": "web"}, ingress=rules, egress=rules)


def test_without_policy_all_reach_each_other(ground: Ground) -> None:
    ground.declare(*ground.base())
    assert wrong(ground, []) == []


@pytest.mark.parametrize("entity", ["host", "remote-node", "world", "cluster", "all", "none"])
def test_only_one_entity_is_allowed(ground: Ground, entity: str) -> None:
    policies = [both_ways("only", [{"peers": [{"entity": entity}]}])]
    ground.declare(*ground.base(), *policies)
    assert wrong(ground, policies) == []


@pytest.mark.parametrize("entity", ["host", "remote-node", "world", "cluster"])
def test_one_entity_is_denied(ground: Ground, entity: str) -> None:
    policies = [both_ways("but", [{}, {"action": "deny", "peers": [{"entity": entity}]}])]
    ground.declare(*ground.base(), *policies)
    assert wrong(ground, policies) == []


def test_events_call_the_entities_by_name(ground: Ground) -> None:
    policies = [both_ways("nobody", [])]
    ground.declare(*ground.base(), *policies)
    assert wrong(ground, policies) == []
    denied = ground.events("h1", last=500, verdict="denied", policy="nobody")
    sources = {one["source"]["identity_name"] for one in denied if one["destination"].get("endpoint") == "web-1"}
    destinations = {one["destination"]["identity_name"] for one in denied if one["source"].get("endpoint") == "web-1"}
    assert sources >= {"host", "remote-node", "world", "db"}  # web-3 is stopped on its own host
    assert destinations >= {"host", "remote-node", "world", "db", "web"}


def test_policies_leave_the_hosts_own_traffic_alone(ground: Ground) -> None:
    policies = [policy("nobody", {}, ingress=[], egress=[])]
    ground.declare(*ground.base(), *policies)
    between = {
        source: [
            ground.flow(protocol, destination, port, family)
            for destination in ("h1", "h2", "world")
            if destination != source
            for protocol, port in SERVICES
            for family in (4, 6)
        ]
        for source in ("h1", "h2", "world")
    }
    assert [key for key, seen in ground.reached(between).items() if seen is None] == []


@pytest.mark.parametrize(("source", "destination"), [("h1", "web-2"), ("web-2", "h1")])
def test_a_nodes_own_traffic_carries_the_number_of_remote_node(ground: Ground, source: str, destination: str) -> None:
    ground.declare(*ground.base())
    some = {source: [ground.flow(protocol, destination, port) for protocol, port in SERVICES]}

    def act() -> None:
        assert [seen for seen in ground.reached(some).values() if seen != ground.address(source, 4)] == []

    seen: list[Tunnelled] = on_the_wire(ground, "h1", act)
    h1, h2 = ground.address("h1", 4), ground.address("h2", 4)
    found = {(one.inner.source, one.inner.protocol, one.vni, one.outer.source, one.outer.destination) for one in seen}
    wanted = {(h1, protocol, 6, h1, h2) for protocol in (1, 6, 17)}
    wanted |= {(ground.address("web-2", 4), protocol, ground.number("web"), h2, h1) for protocol in (1, 6, 17)}
    assert found == wanted
