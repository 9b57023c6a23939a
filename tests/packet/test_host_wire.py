"""A host's own traffic in real frames: tags that BPF_PROG_TEST_RUN cannot set, and what the stack itself takes in."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, detach
from tests.packet.world import ADDRESSES, CONSTANTS, TUNNEL_PORT, UNDERLAY_MAC, Policy, Rule

pytestmark = pytest.mark.root

PORTS = (40000, 80)
UNKNOWN = "192.0.2.77"  # an address of the host that nobody told bpfleet


@pytest.fixture
def network(host_datapath: Datapath) -> Iterator[Any]:
    """What comes of a frame from the network at a host that is closed but for TCP 80 of the world."""
    world.apply(host_datapath, Policy("host", (Rule("ingress", 71, 2, f.TCP, 80),), ("ingress",)))
    with receiving(host_datapath) as receive:
        yield receive


@pytest.fixture
def open_network(devices: None) -> Iterator[Any]:
    """The same at a host that no policy selects and that blocks nobody, or by XDP."""
    datapath = Datapath({**CONSTANTS, "blocked_at_tc": 0})
    try:
        world.build(datapath)
        with receiving(datapath) as receive:
            yield receive
    finally:
        datapath.close()


@contextlib.contextmanager
def receiving(datapath: Datapath) -> Iterator[Any]:
    """What comes of a frame with these VLAN tags."""
    link = datapath.attach("from_underlay", world.DEVICES["eth0"])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind(("wire", 0))

        def receive(packet: bytes, *tags: int) -> dict[str, int]:
            kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
            for tag in reversed(tags):
                packet, kind = struct.pack("!HH", tag, kind) + packet, 0x8100
            with datapath.watch() as seen:
                wire.send(f.ether(packet, destination=UNDERLAY_MAC, kind=kind))
            return seen[0].counters

        try:
            yield receive
        finally:
            detach(link)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("tags", "allowed", "denied"),
    [
        ((), "underlay", "denied_by_default"),
        ((0,), "underlay", "denied_by_default"),
        ((0xE000,), "underlay", "denied_by_default"),  # with a priority
        ((0, 0), "underlay", "denied_by_default"),
        ((0, 0, 0, 0), "unsupported", "unsupported"),
        ((5,), "underlay", "underlay"),  # of another device
        ((0, 5), "underlay", "underlay"),
    ],
)
def test_a_priority_tag_is_no_way_around_policy(
    network: Any, family: int, tags: tuple[int, ...], allowed: str, denied: str
) -> None:
    x = ADDRESSES[family]
    assert network(f.tcp(x["world"], x["host"], PORTS), *tags) == {allowed: 1}
    assert network(f.tcp(x["world"], x["host"], (40000, 81)), *tags) == {denied: 1}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tags", [(), (0,), (0xE000,), (0, 0)])
def test_nor_one_for_a_workloads_address_or_a_strangers_tunnel(
    open_network: Any, family: int, tags: tuple[int, ...]
) -> None:
    x = ADDRESSES[family]
    assert open_network(f.tcp(x["c"], x["host"], PORTS), *tags) == {"underlay_workload": 1}
    assert open_network(f.udp(x["world"], x["host"], (40000, TUNNEL_PORT)), *tags) == {"underlay_tunnel": 1}
    assert open_network(f.udp(x["node2"], x["host"], (f.TUNNEL_SOURCE, TUNNEL_PORT)), *tags) == {"underlay": 1}
    assert open_network(f.udp(x["node2"], x["host"], (40000, TUNNEL_PORT)), *tags) == {"tunnel_source_port": 1}


def test_an_address_that_nobody_told_is_still_the_hosts(network: Any) -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    forwarding.write_text("1")
    subprocess.run(["ip", "address", "add", f"{UNKNOWN}/24", "dev", "dev-eth0"], check=True)
    try:
        world_address = ADDRESSES[4]["world"]
        assert network(f.tcp(world_address, UNKNOWN, (40000, 81))) == {"denied_by_default": 1}
        assert network(f.udp(world_address, "192.0.2.255", (40000, 81))) == {"denied_by_default": 1}
        assert network(f.tcp(world_address, "192.0.2.78", (40000, 81))) == {"underlay": 1}  # somebody else's
    finally:
        subprocess.run(["ip", "address", "del", f"{UNKNOWN}/24", "dev", "dev-eth0"], check=True)
        forwarding.write_text(before)
