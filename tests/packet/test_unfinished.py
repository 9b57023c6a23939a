"""Checksums that a device finishes after a packet was judged: only where the transport has its own, or behind what
policy goes by. By raw frames with virtio's header, as a virtual machine's, of a workload in a namespace."""

from __future__ import annotations

import socket
import struct
from typing import Dict

import pytest

from bpfleet.loader.real import shows_contexts
from tests.packet import frames as f
from tests.packet.test_tunnel import Wire, wire
from tests.packet.world import ADDRESSES

__all__ = ["wire"]

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shows_contexts(), reason="takes kernel 6.2")]

SOL_PACKET, PACKET_VNET_HDR, NEEDS_CSUM = 263, 15, 1
PORTS = (40000, 80)


def sent(wire: Wire, packet: bytes, start: int, offset: int) -> Dict[str, int]:
    """What comes of a packet of the workload a, whose checksum begins at `start` and goes `offset` further."""
    header = struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, 14 + start, offset)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.bind(("workload", 0))
        with wire.datapath.watch() as seen:
            raw.send(header + f.ether(packet))
    return seen[0].counters


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "own", "others", "behind"),
    [("udp", 6, (0, 2, 4, 5, 7), (8,)), ("tcp", 16, (0, 2, 12, 13, 15, 17, 19), (20,))],
)
def test_a_checksum_is_written_over_nothing_that_was_judged(
    wire: Wire, family: int, protocol: str, own: int, others: tuple[int, ...], behind: tuple[int, ...]
) -> None:
    x, transport = ADDRESSES[family], 40 if family == 6 else 20
    packet = {"udp": f.udp, "tcp": f.tcp}[protocol](x["a"], x["c"], PORTS)
    for place in (own, *behind):
        assert sent(wire, packet, transport, place) == {"to_tunnel": 1}, place
    for place in others:
        assert sent(wire, packet, transport, place) == {"malformed": 1}, place


@pytest.mark.parametrize("family", [4, 6])
def test_where_the_sum_begins_is_the_senders_business(wire: Wire, family: int) -> None:
    x, transport = ADDRESSES[family], 40 if family == 6 else 20
    assert sent(wire, f.udp(x["a"], x["c"], PORTS), transport + 2, 4) == {"to_tunnel": 1}
    assert sent(wire, f.udp(x["a"], x["c"], PORTS), transport + 1, 1) == {"malformed": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_behind_headers_that_are_not_looked_at(wire: Wire, family: int) -> None:
    """A workload's own tunnel."""
    x, transport = ADDRESSES[family], 40 if family == 6 else 20
    assert sent(wire, f.ip(x["a"], x["c"], 47, bytes(40)), transport, 20) == {"to_tunnel": 1}
