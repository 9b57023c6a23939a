"""A look at the outer headers tells a tunnel packet of a member where nothing else is asked: as parsing would.

Where networks are blocked at tc, every packet is parsed; with none blocked, both must come to the same.
"""

from __future__ import annotations

import struct
from typing import Iterator, List, Tuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, Result
from tests.packet.world import ADDRESSES, CONSTANTS, DEVICES, IDENTITIES, UNDERLAY, UNDERLAY_2

pytestmark = pytest.mark.root

SOURCES = (UNDERLAY_2, UNDERLAY, "192.0.2.66", ADDRESSES[4]["a"], ADDRESSES[4]["c"])
PORTS = (world.TUNNEL_PORT, world.TUNNEL_PORT + 1)
IP_AT, UDP_AT = 14, 34
Change = Tuple[int, int]
"""An offset into the frame, and the byte there"""


@pytest.fixture(scope="module")
def looking(devices: None) -> Iterator[Datapath]:
    """Programs that parse only what they need to."""
    datapath = Datapath({**CONSTANTS, "blocked_at_tc": 0})
    try:
        world.build(datapath)
        yield datapath
    finally:
        datapath.close()


def frame(source: str, port: int, changes: List[Change], length: int) -> bytes:
    """A tunnel packet with some bytes exchanged, and cut off."""
    inner = f.ether(f.udp(ADDRESSES[4]["c"], ADDRESSES[4]["a"], (40000, 80)))
    built = bytearray(f.ether(f.vxlan(source, UNDERLAY, port, IDENTITIES["c"], inner)))
    for at, value in changes:
        built[at] = value
    return bytes(built[:length])


def seen(datapath: Datapath, data: bytes) -> Tuple[object, ...]:
    """What became of a frame, and what was told; not when."""
    result: Result = datapath.run("from_underlay", data, DEVICES["eth0"])
    told = [{name: event[name] for name in event if name not in ("sequence", "time_ns")} for event in result.events]
    return result.action, result.frame, result.counters, told


IN_HEADERS = st.tuples(st.integers(IP_AT, UDP_AT + 7), st.integers(0, 255))
OF_MEANING = st.sampled_from(
    [
        (IP_AT, 0x46), (IP_AT, 0x44), (IP_AT, 0x65), (IP_AT + 6, 0x20), (IP_AT + 7, 1), (IP_AT + 9, f.TCP),
        (IP_AT + 3, 0), (UDP_AT, 0x40), (UDP_AT + 1, 0x98), (UDP_AT + 1, 0xff), (UDP_AT + 5, 0),
    ]
)  # fmt: skip


@example(UNDERLAY_2, world.TUNNEL_PORT, [], 200)
@example("192.0.2.66", world.TUNNEL_PORT, [], 200)
@example(UNDERLAY_2, world.TUNNEL_PORT, [(IP_AT + 7, 1)], 200)
@example(UNDERLAY_2, world.TUNNEL_PORT, [(UDP_AT, 0x40)], 200)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SOURCES),
    st.sampled_from(PORTS),
    st.lists(IN_HEADERS | OF_MEANING, max_size=2),
    st.just(200) | st.integers(UDP_AT, UDP_AT + 9),
)
def test_a_look_says_the_same_as_parsing(
    datapath: Datapath, looking: Datapath, source: str, port: int, changes: List[Change], length: int
) -> None:
    data = frame(source, port, changes, length)
    assert seen(looking, data) == seen(datapath, data)


def test_a_members_tunnel_packet_passes_without_more(looking: Datapath) -> None:
    """Though its header's checksum is wrong, which the host's stack will say: nothing of it was asked."""
    data = bytearray(frame(UNDERLAY_2, world.TUNNEL_PORT, [], 200))
    struct.pack_into("!H", data, IP_AT + 10, 1)
    assert seen(looking, bytes(data))[2] == {"underlay": 1}
