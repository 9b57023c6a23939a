"""Blocked networks on the underlay: dropped, counted and told of in every mode; and what may not be blocked."""

from __future__ import annotations

import pytest

from bpfleet.model.document import Document
from bpfleet.transport.outcome import Refused
from tests.e2e.traffic import matrix
from tests.e2e.traffic.ground import FAMILIES, Ground
from tests.e2e.traffic.station import Flow
from tests.fleet import document

pytest_plugins = ["tests.e2e.traffic.fixtures"]

WORLD = ["198.51.100.0/24", "2001:db8:100::/48"]  # where the lab's world is
SERVICES = (("tcp", 7001), ("udp", 7001), ("icmp", 0))
HOOKS = {"native": "XDP_UNDERLAY", "generic": "XDP_UNDERLAY", "off": "FROM_UNDERLAY"}


def documents(ground: Ground, blocked: list[str], mode: str) -> list[Document]:
    found = []
    for one in ground.base():
        if one.kind == "cluster":
            one = document("cluster", one.name, **{**one.spec, "blocked_cidrs": blocked})
        elif one.kind == "node":
            devices = [{**device, "xdp": mode} for device in one.spec["devices"]]
            one = document("node", one.name, **{**one.spec, "devices": devices})
        found.append(one)
    return found


def xdp(ground: Ground, host: str) -> str:
    text = ground.hosts[host].run(["ip", "link", "show", "dev", ground.hosts[host].device]).stdout
    return "native" if " xdp " in text else "generic" if " xdpgeneric " in text else "off"


def to_world(ground: Ground) -> dict[str, list[Flow]]:
    """From a host and a workload to the world, whose answers come from its own address."""
    flows = [ground.flow(protocol, "world", port, family) for family in FAMILIES for protocol, port in SERVICES]
    return {"h1": flows, "free-1": flows}


@pytest.mark.parametrize("mode", HOOKS)
def test_a_blocked_network_sends_nothing_here(ground: Ground, mode: str) -> None:
    ground.declare(*documents(ground, [], mode))
    assert {xdp(ground, host) for host in ground.hosts} == {mode}
    flows = to_world(ground)
    assert None not in ground.reached(flows, 3.0).values()
    ground.declare(*documents(ground, WORLD, mode))
    ground.silence()
    before = ground.drops("h1")["blocked"]
    reached = ground.reached(flows)
    assert set(reached.values()) == {None}
    assert ground.drops("h1")["blocked"] - before >= len(reached)  # a SYN is answered again and again
    told = [event for event in ground.events("h1", last=400) if event["reason"].lower() == "blocked"]
    assert {event["source"]["address"] for event in told} == {ground.lab.world.address, ground.lab.world.address6}
    assert {event["hook"].upper() for event in told[-len(reached) :]} == {HOOKS[mode]}
    # Members reach each other as before; and the world again when it is no longer blocked.
    assert matrix.wrong(ground, (), ground.reached(matrix.flows(ground, [("tcp", 7001)]), 3.0)) == []
    ground.declare(*documents(ground, [], mode))
    assert None not in ground.reached(flows, 3.0).values()
    ground.declare(*ground.base())
    assert {xdp(ground, host) for host in ground.hosts} == {"off"}


def test_nobody_cuts_himself_off(ground: Ground) -> None:
    ground.declare(*ground.base())
    before = ground.writes()
    controller = ground.hosts["h1"].address.rsplit(".", 1)[0] + ".254"
    gateway = ground.hosts["h1"].address.rsplit(".", 1)[0] + ".253"
    for cidr, says in (
        (f"{controller}/32", f"holds {controller}, from where node h"),
        (f"{gateway}/32", f"holds {gateway}, the gateway of node h"),
        (f"{ground.hosts['h2'].address}/32", "the address of member h2"),
    ):
        outcomes = ground.transact(documents(ground, [cidr], "off"), replace_all=True)
        for outcome in outcomes.values():
            assert isinstance(outcome, Refused), outcome
        assert says in str(outcomes)
    assert ground.writes() == before
