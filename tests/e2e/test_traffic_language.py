"""The language of policies over real traffic: what the reference judge says is what arrives."""

from __future__ import annotations

import time
from typing import Any

from bpfleet.model.document import Document
from tests.e2e.traffic.ground import FAMILIES, OPEN_PORTS, Ground
from tests.e2e.traffic.matrix import protocol_of
from tests.e2e.traffic.station import Flow
from tests.fleet import document
from tests.reference import judge as reference

pytest_plugins = ["tests.e2e.traffic.fixtures"]

SERVICES = (*(("tcp", port) for port in OPEN_PORTS), *(("udp", port) for port in OPEN_PORTS), ("icmp", 0))
ECHO = {"icmp": (8, 0), "icmpv6": (128, 0)}
# All judged at home, on h1, where the reference judge's host is; a node has one address in the cluster, an IPv4 one.
PARTNERS = ("db-1", "db-2", "free-1", "free-3", "world", "h1", "h2")


def cluster(ground: Ground, **settings: Any) -> list[Document]:
    """The base with some settings of the cluster."""
    first, *others = ground.base()
    return [document("cluster", first.name, **{**first.spec, **settings}), *others]


def flows(ground: Ground, endpoint: str = "web-1") -> dict[str, list[Flow]]:
    """Between an endpoint and each partner, both ways, every service and family. The world only answers: what it sends
    by itself may have any of its addresses."""
    found: dict[str, list[Flow]] = {}
    for other in PARTNERS:
        for family in FAMILIES if other != "h2" else (4,):
            for source, destination in ((endpoint, other), (other, endpoint)):
                some = [ground.flow(protocol, destination, port, family) for protocol, port in SERVICES]
                if source != "world":
                    found.setdefault(source, []).extend(some)
    return found


def wrong(ground: Ground, documents: list[Document], asked: dict[str, list[Flow]]) -> list[str]:
    """Flows that went otherwise than the reference judge says. Both ways must have been asked about."""
    names = {ground.address(name, family): name for name in ("web-1", *PARTNERS) for family in FAMILIES}
    found, verdicts = [], set()
    for (source, flow), seen in ground.reached(asked).items():
        denials = judged(ground, documents, source, names[flow.address], flow)
        verdicts.add(not denials)
        if (seen is None) is not bool(denials):
            found.append(f"{source} to {names[flow.address]} {flow}: saw {seen}, should be {denials or 'passed'}")
    assert verdicts == {True, False}, "the case is worth nothing"
    return found


def judged(ground: Ground, documents: list[Document], source: str, destination: str, flow: Flow) -> list[str]:
    """What drops a flow, by the reference judge: the sender's egress, the receiver's ingress."""
    protocol = protocol_of(flow)
    found = []
    for direction, subject, peer in (("egress", source, destination), ("ingress", destination, source)):
        if subject not in ground.workloads:
            continue  # no policy selects a node here, and the world has none
        home, other = ground.workloads[subject], ground.workloads.get(peer)
        if other is not None:
            who = f"identity/{other.identity}"
        elif peer == "world":
            who = ground.address("world", 6 if ":" in flow.address else 4)
        else:
            who = "host" if peer == home.host else "remote-node"
        question = reference.Flow(direction, home.identity, who, protocol, ECHO.get(protocol, flow.port))
        verdict = reference.judge(documents, question)
        if verdict.drops:
            found.append(f"{direction}: {verdict.verdict}")
    return found


def test_selectors_networks_ranges_and_types(ground: Ground) -> None:
    world, world6 = ground.address("world", 4), ground.address("world", 6)
    wide = f"{world.rsplit('.', 1)[0]}.0/24"
    front = [{"key": "tier", "operator": "In", "values": ["front"]}, {"key": "old", "operator": "DoesNotExist"}]
    rules = [
        {"peers": [{"cidr": wide, "except": [f"{world}/32"]}], "ports": [{"protocol": "tcp"}]},
        {"peers": [{"cidr_group": "office"}], "ports": [{"protocol": "tcp", "port": 7001, "end_port": 7002}]},
        {"peers": [{"cidr": f"{world}/32"}], "ports": [{"protocol": "udp", "port": 7002, "end_port": 7010}]},
        {
            "peers": [{"labels": {}, "expressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}],
            "ports": [
                {"port": 7002, "end_port": 7003},
                {"protocol": "icmp", "type": 8},
                {"protocol": "icmpv6", "type": 1},
            ],
        },
        {"action": "deny", "peers": [{"labels": {"app": "free"}}], "ports": [{"protocol": "udp", "port": 7003}]},
        {"peers": [{"entity": "remote-node"}], "ports": [{"port": 7001}]},
        {"peers": [{"entity": "host"}], "ports": [{"protocol": "any"}]},
        {"action": "deny", "peers": [{"entity": "host"}], "ports": [{"protocol": "icmp", "type": 8, "code": 0}]},
    ]
    documents = [
        *ground.base(),
        document("cidr_group", "office", cidrs=[f"{world6}/128"]),
        document("policy", "front", selector={}, expressions=front, ingress=rules, egress=rules),
    ]
    ground.declare(*documents)
    assert wrong(ground, documents, flows(ground)) == []
    # The group alone changes, and with it what its name means.
    documents[-2] = document("cidr_group", "office", cidrs=["2001:db8:dead::/48"])
    ground.change(documents[-2])
    assert wrong(ground, documents, flows(ground)) == []


def test_a_policy_in_audit_drops_nothing_and_is_reported(ground: Ground) -> None:
    documents = [
        *ground.base(),
        document("policy", "free", selector={"app": "free"}, ingress=[{"ports": [{"protocol": "tcp"}]}]),
        document("policy", "trial", selector={"app": "free"}, mode="audit", egress=[], ingress=[
            {"action": "deny", "peers": [{"labels": {"app": "web"}}], "ports": [{"protocol": "tcp", "port": 7001}]},
        ]),
    ]  # fmt: skip
    ground.declare(*documents)
    begun = time.time()
    some = [ground.flow(protocol, "free-1", port) for protocol, port in (("tcp", 7001), ("tcp", 7002), ("udp", 7001))]
    back = [ground.flow("tcp", "web-1", 7001)]
    reached = ground.reached({"web-1": some, "free-1": back})
    assert [seen is not None for seen in reached.values()] == [True, True, False, True]
    said = {
        (one["direction"], one["protocol"], one["destination"]["port"], one["verdict"], one["policy"], one["rule"])
        for one in ground.events("h1", last=100)
        if one["time"] > begun - 0.1 and one.get("policy")
    }
    assert ("ingress", "tcp", 7001, "audited", "trial", "ingress[0]") in said
    assert ("egress", "tcp", 7001, "audited", "trial", "default deny") in said
    assert ("ingress", "udp", 7001, "denied", "free", "default deny") in said
    assert ("ingress", "tcp", 7002, "allowed", "free", "ingress[0]") in said
    # Enforced, the same policy does what was reported.
    documents[-1] = document("policy", "trial", **{**documents[-1].spec, "mode": "enforce"})
    ground.change(documents[-1])
    ground.silence()
    reached = ground.reached({"web-1": some, "free-1": back})
    assert [seen is not None for seen in reached.values()] == [False, True, False, False]


def test_a_fleet_is_closed_before_its_first_policy_and_after_its_last(ground: Ground) -> None:
    """unselected: deny. What is for the nodes themselves is not affected; failsafe or not, they are reached."""
    closed = cluster(ground, unselected="deny")
    ground.declare(*closed)
    begun = time.time()
    asked = flows(ground)
    reached = ground.reached(asked)
    assert set(reached.values()) == {None}
    told = [one for one in ground.events("h1", last=200, verdict="denied") if one["time"] > begun - 0.1]
    assert {one["rule"] for one in told} == {"unselected: deny"} and len(told) > 20
    between = {"h1": [ground.flow("tcp", "h2", 7001)], "world": [ground.flow("tcp", "h1", 7001)]}
    assert None not in ground.reached(between).values()
    # A node's own processes are let in by the switch, those of other nodes and everybody else are not.
    opened = cluster(ground, unselected="deny", allow_local_host=True)
    ground.change(opened[0])
    assert wrong(ground, opened, asked) == []
    # The first policies open what they say; when they are taken away, all is closed again, and nothing was ever open.
    rules = [{"peers": [{"labels": {"app": "db"}}]}]
    first = [
        document("policy", "web", selector={"app": "web"}, ingress=rules, egress=rules),
        document("policy", "db", selector={"app": "db"}, ingress=[{"peers": [{"entity": "all"}]}], egress=[{}]),
    ]
    ground.change(*first)
    assert wrong(ground, [*opened, *first], asked) == []
    ground.change(closed[0], deletes=[one.key for one in first])
    ground.silence()
    assert set(ground.reached(asked).values()) == {None}
    ground.declare(*ground.base())
