"""Whose a destination is that no document knows, by the kernel's routes: what has a route is the world's, also where
that says to drop it; what has none cannot be told from what the host takes in, and is the host's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath
from tests.packet.world import ADDRESSES, DEVICES, UNDERLAY_2, UNDERLAY_6, Policy

pytestmark = [pytest.mark.root, pytest.mark.parametrize("family", [4, 6])]

PORTS = (40000, 81)
NETWORKS = {4: ("203.0.113.0/24", "203.0.113.9"), 6: ("2001:db8:900d::/48", "2001:db8:900d::9")}
DEFAULT = {4: f"default via {UNDERLAY_2} dev dev-eth0", 6: f"default via {UNDERLAY_6} dev dev-eth0"}
HOST, WORLD = 1, 2


def ip(family: int, command: str) -> None:
    subprocess.run(["ip", f"-{family}", *command.split()], check=True)


@contextmanager
def routed(family: int, kind: str) -> Iterator[str]:
    """An address to which the host has a route of that kind; none: no route at all."""
    network, address = NETWORKS[family]
    if kind == "none":
        ip(family, f"route del {DEFAULT[family]}")
    elif kind != "default":
        ip(family, f"route add {kind} {network}")
    try:
        yield address
    finally:
        if kind == "none":
            ip(family, f"route add {DEFAULT[family]}")
        elif kind != "default":
            ip(family, f"route del {kind} {network}")


KINDS = [("default", WORLD), ("unreachable", WORLD), ("prohibit", WORLD), ("blackhole", WORLD), ("none", HOST)]


@pytest.mark.parametrize(("kind", "identity"), KINDS)
def test_what_a_workload_sends_there(datapath: Datapath, family: int, kind: str, identity: int) -> None:
    with routed(family, kind) as address:
        packet = f.udp(ADDRESSES[family]["a"], address, PORTS)
        result = datapath.run("from_endpoint", f.ether(packet), DEVICES["a"])
    assert (result.action, result.counters) == ("pass", {"to_stack": 1})
    assert [event["destination_identity"] for event in result.events] == [identity]


@pytest.mark.parametrize(("kind", "identity"), KINDS)
def test_what_comes_for_it_to_a_closed_host(host_datapath: Datapath, family: int, kind: str, identity: int) -> None:
    world.apply(host_datapath, Policy("host", (), ("ingress",)))
    with routed(family, kind) as address:
        packet = f.udp(ADDRESSES[family]["world"], address, PORTS)
        result = host_datapath.run("from_underlay", f.ether(packet), DEVICES["eth0"])
    assert result.counters == {"denied_by_default" if identity == HOST else "underlay": 1}


def test_a_rule_of_the_senders_address_counts(datapath: Datapath, family: int) -> None:
    """What the host takes in from a workload alone, as a proxy does, is the host's to that one."""
    x = ADDRESSES[family]
    network, address = NETWORKS[family]
    rule, route = f"rule add from {x['a']} lookup 77", f"route add local {network} dev dev-eth0 table 77"
    seen = []
    try:
        ip(family, rule)
        ip(family, route)
        for name in ("a", "b"):
            result = datapath.run("from_endpoint", f.ether(f.udp(x[name], address, PORTS)), DEVICES[name])
            seen += [event["destination_identity"] for event in result.events]
    finally:
        ip(family, rule.replace(" add ", " del "))
        ip(family, route.replace(" add ", " del "))
    assert seen == [HOST, WORLD]
