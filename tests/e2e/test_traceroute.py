"""Packets of workloads whose hops run out, by real sockets: each router on the way says so, bpfleet as well."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpfleet.compile.topology import GATEWAY_IPV4, GATEWAY_IPV6
from tests.e2e.traffic.ground import FAMILIES, Ground
from tests.e2e.traffic.hops import CLOSED_PORT, PORT_UNREACHABLE, PROBE, TIME_EXCEEDED
from tests.fleet import policy

pytest_plugins = ["tests.e2e.traffic.fixtures"]

GATEWAY = {4: GATEWAY_IPV4, 6: GATEWAY_IPV6}
HOW = ("udp", "icmp", "tcp")


def probed(ground: Ground, source: str, *cases: tuple[str, str, int], patience: float = 5) -> list[Any]:
    """What a process at an endpoint is told: cases (how, address, hops)."""
    place, _, netns = ground.place(source).partition("/")
    asked = [[how, address, CLOSED_PORT, hops] for how, address, hops in cases]
    command = ["/usr/bin/python3", "-S", "-c", PROBE, json.dumps(asked), str(patience)]
    found: list[Any] = json.loads(ground.lab.host(place).run(command, workload=netns).stdout)
    return found


@pytest.mark.parametrize("to", ["db-1", "web-2", "h2"])
def test_the_gateway_is_the_only_hop_between_workloads(ground: Ground, to: str) -> None:
    """Here, on another node, and to that node itself."""
    ground.declare(*ground.base())
    families = FAMILIES if to != "h2" else (4,)  # members' addresses here are of one family
    before = ground.drops("h1")["hop_limit"]
    for family in families:
        address = ground.address(to, family)
        told = [*TIME_EXCEEDED[family], GATEWAY[family]]
        assert probed(ground, "web-1", *[(how, address, 1) for how in HOW]) == [told, told, "EHOSTUNREACH"]
        there = [*PORT_UNREACHABLE[family], address]
        assert probed(ground, "web-1", *[(how, address, 2) for how in HOW]) == [there, "answered", "ECONNREFUSED"]
    # TCP tries a second time where the error came before its first packet was done with.
    assert ground.drops("h1")["hop_limit"] - before >= len(HOW) * len(families)
    assert {"hop_limit"} <= {event.get("reason") for event in ground.events("h1", last=50, verdict="dropped")}


def test_who_may_not_send_hears_nothing(ground: Ground) -> None:
    ground.declare(*ground.base(), policy("closed", {"app": "web"}, egress=[]))
    cases = [("udp", ground.address(to, family), 1) for to in ("db-1", "web-2") for family in FAMILIES]
    assert probed(ground, "web-1", *cases, patience=0.5) == ["timeout"] * len(cases)
