"""Whatever bytes arrive, nothing reaches a neighbour that a plain reading of the packet does not justify."""

from __future__ import annotations

import socket
import struct
from typing import Optional, Tuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpfleet.loader.generated.layouts import ENUMS
from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath
from tests.packet.world import ADDRESSES, DEVICES, IDENTITIES, Policy, Rule
from tests.reference.expiry import is_expiry
from tests.reference.reading import read

pytestmark = pytest.mark.root

PORTS = (40000, 80)
BOUNDED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
families = st.sampled_from([4, 6])


@pytest.fixture
def restricted(datapath: Datapath) -> Datapath:
    """Only a to b, TCP port 80, is allowed."""
    world.apply(datapath, Policy("a", (Rule("egress", 1, IDENTITIES["b"], f.TCP, 80),), ("ingress", "egress")))
    world.apply(datapath, Policy("b", (Rule("ingress", 2, IDENTITIES["a"], f.TCP, 80),), ("ingress", "egress")))
    return datapath


def reading(frame: bytes) -> Optional[Tuple[str, str, int, int]]:
    """(source, destination, protocol, destination port) of a whole TCP packet; None for anything else."""
    kind, packet = struct.unpack("!H", frame[12:14])[0], frame[14:]
    if kind == 0x0800 and len(packet) >= 20 and packet[0] >> 4 == 4:
        start, total, protocol = (packet[0] & 15) * 4, struct.unpack("!H", packet[2:4])[0], packet[9]
        if start < 20 or struct.unpack("!H", packet[6:8])[0] & 0x1FFF or not start <= total <= len(packet):
            return None
        ends = [socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16)]
    elif kind == 0x86DD and len(packet) >= 40 and packet[0] >> 4 == 6:
        start, total, protocol = 40, 40 + struct.unpack("!H", packet[4:6])[0], packet[6]
        if total > len(packet):
            return None
        while protocol in (0, 43, 60, 51, 44):
            if start + 8 > total:
                return None
            if protocol == 44 and struct.unpack("!H", packet[start + 2 : start + 4])[0] & 0xFFF8:
                return None
            size = {51: (packet[start + 1] + 2) * 4, 44: 8}.get(protocol, (packet[start + 1] + 1) * 8)
            protocol, start = packet[start], start + size
        ends = [socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24)]
    else:
        return None
    tcp = packet[start:total]
    if protocol != f.TCP or len(tcp) < 20 or not 20 <= (tcp[12] >> 4) * 4 <= len(tcp):
        return None
    return ends[0], ends[1], protocol, struct.unpack("!H", tcp[2:4])[0]


def is_to_itself(frame: bytes) -> bool:
    """Whether source and destination are one: that is not judged."""
    at, size = (26, 4) if frame[12:14] == b"\x08\x00" else (22, 16)
    return frame[at : at + size] == frame[at + size : at + 2 * size]


def check(datapath: Datapath, frame: bytes, family: int) -> None:
    """Feed a frame as from a; if it is delivered to b, it must be what policy allows."""
    result = datapath.run("from_endpoint", frame, DEVICES["a"])
    assert result.action in ("pass", "shot", "redirect")
    assert sum(result.counters.values()) == 1, "every packet ends in exactly one reason"
    x = ADDRESSES[family]
    reason = next(iter(result.counters))
    if result.action == "redirect" and reason == "hop_limit":  # back to a, which is told
        answer = read(result.frame)
        assert (is_expiry(answer), str(answer.destination)) == (True, x["a"])
    elif result.action == "redirect":
        assert reason == "to_endpoint"
        assert is_to_itself(frame) or reading(frame) == (x["a"], x["b"], f.TCP, 80)
    elif result.action == "pass":
        assert reason == "neighbour"  # ARP by its type alone; egress allows neither host nor world
    else:
        assert ENUMS["reason"][reason] >= 16
        # the drop, after the allows of the sender and the receiver where the hop limit is what ends it
        assert 1 <= len(result.events) <= (3 if reason == "hop_limit" else 2)


def test_allowed_twice_and_out_of_hops(restricted: Datapath) -> None:
    restricted.maps["connections"].clear()
    x = ADDRESSES[4]
    frame = bytearray(f.ether(f.tcp(x["a"], x["b"], PORTS)))
    frame[14 + 8] = 0
    frame[14:] = f.with_ip_checksum(bytes(frame[14:]))
    check(restricted, bytes(frame), 4)
    assert restricted.run("from_endpoint", bytes(frame), DEVICES["a"]).action == "redirect"


@BOUNDED
@given(families, st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8100]), st.binary(min_size=40, max_size=200))
def test_noise(restricted: Datapath, family: int, kind: int, payload: bytes) -> None:
    restricted.maps["connections"].clear()
    check(restricted, f.ether(payload, kind=kind), family)


@BOUNDED
@given(families, st.data())
def test_truncated(restricted: Datapath, family: int, data: st.DataObject) -> None:
    """Cut anywhere: dropped, and as truncated."""
    restricted.maps["connections"].clear()
    x = ADDRESSES[family]
    whole = f.tcp(x["a"], x["b"], PORTS)
    size = data.draw(st.integers(20 if family == 4 else 40, len(whole) - 1))
    result = restricted.run("from_endpoint", f.ether(whole[:size]), DEVICES["a"])
    assert (result.action, result.counters) == ("shot", {"truncated": 1})


@BOUNDED
@given(
    families,
    st.sampled_from(["tcp", "syn+ack", "udp", "echo", "error", "extensions", "fragment"]),
    st.lists(st.tuples(st.integers(12, 90), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
@example(4, "tcp", [(14 + 20 + 13, f.ACK)], False)
@example(6, "tcp", [(14 + 40 + 13, f.ACK)], False)
@example(4, "tcp", [(14 + 19, 1)], True)  # to itself
def test_damaged(
    restricted: Datapath, family: int, kind: str, damage: list[tuple[int, int]], has_checksum: bool
) -> None:
    """Some bytes of a packet replaced; perhaps with the checksum of its IPv4 header put right."""
    restricted.maps["connections"].clear()
    x = ADDRESSES[family]
    a, b = x["a"], x["b"]
    pad = b"\x00\x01\x04\x00\x00\x00\x00"
    frame = bytearray(
        f.ether(
            {
                "tcp": lambda: f.tcp(a, b, PORTS),
                "syn+ack": lambda: f.tcp(a, b, PORTS, f.SYN | f.ACK),
                "udp": lambda: f.udp(a, b, PORTS),
                "echo": lambda: f.echo(a, b, 7),
                "error": lambda: f.unreachable(a, b, f.tcp(b, a, PORTS)),
                "extensions": lambda: f.tcp(a, b, PORTS, **({"extensions": [(60, pad)]} if family == 6 else {})),
                "fragment": lambda: f.tcp(a, b, PORTS, fragment=8),
            }[kind]()
        )
    )
    for at, value in damage:
        frame[at % len(frame)] = value if at % len(frame) >= 12 else frame[at % len(frame)]
    if has_checksum:
        frame[14:] = f.with_ip_checksum(bytes(frame[14:]))
    check(restricted, bytes(frame), family)
