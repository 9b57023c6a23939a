"""Packets that go from their workload straight to the underlay device, as the kernel's own stack would send them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfleet.loader.real import shows_contexts
from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, Result
from tests.packet.test_copies import TICK_NS
from tests.packet.test_direct import IPSEC, direct, in_one_tick, with_outer_sum
from tests.packet.test_direct_wire import SET_TX_CHECKSUMS, switch
from tests.packet.test_tunnel import Wire, ends
from tests.packet.world import ADDRESSES, CONSTANTS, DEVICES, IDENTITIES, UNDERLAY, UNDERLAY_2

__all__ = ["direct"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("one_cpu"),
    pytest.mark.skipif(not shows_contexts(), reason="kernels before 6.2 show programs nothing of IPsec"),
]

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
X = ADDRESSES[4]
PORTS = (40000, 53)
IP_AT, UDP_AT, INNER_AT = 14, 34, 64
PAYLOAD = bytes(200)
"""Of the packet by which the stack shows what it sends whole."""


@pytest.fixture(scope="module")
def loaded_direct(devices: None) -> Iterator[Datapath]:
    """Packets may go directly."""
    datapath = Datapath({**CONSTANTS, "direct_delivery": 1})
    yield datapath
    datapath.close()


@pytest.fixture
def direct_wire(direct: Datapath) -> Iterator[Wire]:
    """All programs attached, and the real tunnel behind them."""
    attached = [
        direct.attach("from_endpoint", DEVICES["a"]),
        direct.attach("from_tunnel", DEVICES["vxlan"]),
        direct.attach("to_tunnel", DEVICES["vxlan"], egress=True),
        direct.attach("to_underlay", DEVICES["eth0"], egress=True),
    ]
    with ends(direct, attached) as wire:
        yield wire


def by_the_stack(payload: bytes = PAYLOAD) -> bytes:
    """A tunnel packet that the host's stack sends to the member that c is at."""
    inner = f.ether(datagram(payload))
    return f.ether(f.vxlan(UNDERLAY, UNDERLAY_2, world.TUNNEL_PORT, IDENTITIES["a"], inner))


def leaves(datapath: Datapath, frame: bytes, came_by: int = 0, **noted: int) -> None:
    """Something leaves by the underlay device."""
    result = datapath.run("to_underlay", frame, DEVICES["eth0"], came_by, **noted)
    assert (result.action, result.frame) == ("pass", frame)


def send(datapath: Datapath, packet: bytes = b"", **noted: int) -> Result:
    return datapath.run("from_endpoint", f.ether(packet or datagram()), DEVICES["a"], **noted)


def datagram(payload: bytes = b"hi", **more: Any) -> bytes:
    return f.ip(X["a"], X["c"], f.UDP, f.udp_header(*PORTS, len(payload)) + payload, **more)


def goes_directly(result: Result) -> bool:
    assert (result.action, result.counters) == ("redirect", {"to_tunnel": 1})
    return result.frame[UDP_AT + 2 : UDP_AT + 4] == struct.pack("!H", world.TUNNEL_PORT)


def opened(datapath: Datapath, shown: bool = True) -> None:
    """A flow from a to c that has a copy, and a note of how packets to c's member leave."""
    for _ in range(2):
        send(datapath)
    if shown:
        leaves(datapath, by_the_stack())


def test_the_packet_is_complete_as_it_leaves(direct: Datapath) -> None:
    """The frame that the stack sent before it, around the workload's own."""

    def work() -> None:
        opened(direct)
        frame = send(direct).frame
        shown = by_the_stack()
        assert frame[:IP_AT] == shown[:IP_AT]
        assert frame[INNER_AT - 14 :] == f.ether(datagram(hops=63))
        assert f.checksum(frame[IP_AT:UDP_AT]) == 0
        assert struct.unpack_from("!BBH", frame, IP_AT) == (0x45, 0, len(frame) - 14)
        assert frame[IP_AT + 6 : IP_AT + 10] == shown[IP_AT + 6 : IP_AT + 10]
        assert struct.unpack_from("!HH", frame, UDP_AT + 4) == (len(frame) - UDP_AT, 0)
        identifiers = [struct.unpack_from("!H", send(direct).frame, IP_AT + 4)[0] for _ in range(3)]
        assert len(set(identifiers)) == 3, "or the network's fragments of them could be put together wrongly"

    in_one_tick(direct, work)


def test_it_is_counted_as_on_the_long_way(direct: Datapath) -> None:
    def work() -> None:
        opened(direct)
        (before,) = direct.flows()
        assert goes_directly(send(direct))
        (after,) = direct.flows()
        assert after["packets"] - before["packets"] == 1
        assert after["bytes"] - before["bytes"] == len(f.ether(datagram()))

    in_one_tick(direct, work)


def test_the_long_way_comes_first_and_once_a_tick(direct: Datapath) -> None:
    def work() -> None:
        leaves(direct, by_the_stack())
        assert not goes_directly(send(direct)), "it opens the flow"
        assert not goes_directly(send(direct)), "the first of the flow as it is"
        assert goes_directly(send(direct))
        other = f.udp(X["a"], X["c"], (40001, 53))
        assert not goes_directly(send(direct, other)), "and that of each flow"

    in_one_tick(direct, work)

    def without_a_note() -> None:
        opened(direct, shown=False)
        assert not goes_directly(send(direct)), "nothing has been seen to leave in this tick"

    time.sleep(1.2 * TICK_NS / 1e9)
    in_one_tick(direct, without_a_note)


def shown(offset: int, size: str, value: int) -> bytes:
    """What the stack sends to the member, with another number in its headers."""
    frame = bytearray(by_the_stack())
    struct.pack_into("!" + size, frame, offset, value)
    return with_outer_sum(frame)


SAYS_NOTHING: Dict[str, Callable[[Datapath], None]] = {
    "another member's": lambda d: leaves(d, shown(IP_AT + 19, "B", 77)),
    "another host's": lambda d: leaves(d, shown(IP_AT + 15, "B", 77)),
    "came from a device": lambda d: leaves(d, by_the_stack(), DEVICES["a"]),
    "with a priority": lambda d: leaves(d, by_the_stack(), priority=1),
    "put together": lambda d: leaves(d, by_the_stack(), segment=100),
    "may not be a fragment": lambda d: leaves(d, shown(IP_AT + 6, "H", 0x4000)),
    "is a fragment": lambda d: leaves(d, shown(IP_AT + 6, "H", 0x2000)),
    "is a later fragment": lambda d: leaves(d, shown(IP_AT + 6, "H", 1)),
    "no datagram": lambda d: leaves(d, shown(IP_AT + 9, "B", f.TCP)),
    "from any port": lambda d: leaves(d, shown(UDP_AT, "H", 50000)),
    "to another port": lambda d: leaves(d, shown(UDP_AT + 2, "H", 4789)),
    "with a checksum": lambda d: leaves(d, shown(UDP_AT + 6, "H", 0x1234)),
    "shorter": lambda d: leaves(d, by_the_stack(b"")),
}


@pytest.mark.parametrize("what", SAYS_NOTHING)
def test_other_packets_do_not_show_the_way(direct: Datapath, what: str) -> None:
    def work() -> None:
        opened(direct, shown=False)
        SAYS_NOTHING[what](direct)
        assert not goes_directly(send(direct, datagram(b"longer")))
        leaves(direct, by_the_stack())
        assert goes_directly(send(direct, datagram(b"longer")))

    in_one_tick(direct, work)


THE_LONG_WAY: Dict[str, Callable[[Datapath], Result]] = {
    "marked": lambda d: send(d, mark=1),
    "with a priority": lambda d: send(d, priority=1),
    "put together": lambda d: send(d, segment=8),
    "longer than what was sent whole": lambda d: send(d, datagram(PAYLOAD + b"x")),
    "fragment": lambda d: send(d, datagram(more=True)),
}


@pytest.mark.parametrize("what", THE_LONG_WAY)
def test_what_only_the_stack_knows_goes_there(direct: Datapath, what: str) -> None:
    def work() -> None:
        opened(direct)
        assert goes_directly(send(direct, datagram(PAYLOAD)))
        assert not goes_directly(THE_LONG_WAY[what](direct))
        assert goes_directly(send(direct))

    in_one_tick(direct, work)


def test_a_longer_packet_of_the_stack_lets_longer_ones_go(direct: Datapath) -> None:
    """For the tick: the way to the member may have become narrower since."""
    longer = datagram(PAYLOAD + b"x")

    def work() -> None:
        opened(direct)
        assert not goes_directly(send(direct, longer))
        leaves(direct, by_the_stack(PAYLOAD + b"x"))
        leaves(direct, by_the_stack())
        assert goes_directly(send(direct, longer))

    def later() -> None:
        opened(direct)
        assert goes_directly(send(direct)) and not goes_directly(send(direct, longer))

    in_one_tick(direct, work)
    time.sleep(1.2 * TICK_NS / 1e9)
    in_one_tick(direct, later)


def test_what_the_stack_takes_apart_goes_there(direct: Datapath) -> None:
    """The way to the member has become narrower: its later packets of that length have to be taken apart as well."""

    def work() -> None:
        opened(direct)
        assert goes_directly(send(direct, datagram(PAYLOAD)))
        leaves(direct, shown(IP_AT + 6, "H", 0x2000))
        assert not goes_directly(send(direct, datagram(PAYLOAD)))
        leaves(direct, by_the_stack(b"hi"))
        assert goes_directly(send(direct)) and not goes_directly(send(direct, datagram(PAYLOAD)))

    in_one_tick(direct, work)


def test_nothing_goes_directly_where_packets_leave_by_several_ways(direct: Datapath) -> None:
    """Also in the next seconds: the first of each would show one of them alone."""
    elsewhere = bytearray(by_the_stack())
    elsewhere[0:6] = bytes.fromhex("020000000098")

    def work() -> None:
        opened(direct)
        assert goes_directly(send(direct))
        leaves(direct, bytes(elsewhere))
        assert not goes_directly(send(direct))
        leaves(direct, by_the_stack())
        assert not goes_directly(send(direct))

    in_one_tick(direct, work)
    time.sleep(1.2 * TICK_NS / 1e9)
    opened(direct)
    assert not goes_directly(send(direct))


FOR_SOME: Dict[str, Callable[[Datapath], None]] = {
    "marked": lambda d: leaves(d, by_the_stack(), mark=1),
    "of a service class": lambda d: leaves(d, shown(IP_AT + 1, "B", 0xB8)),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("what", FOR_SOME)
def test_nothing_goes_directly_where_the_host_tells_packets_apart(direct: Datapath, what: str, first: bool) -> None:
    """By rules for some of a member's tunnel packets: others show nothing of those."""

    def work() -> None:
        opened(direct, shown=not first)
        assert goes_directly(send(direct)) is not first
        FOR_SOME[what](direct)
        leaves(direct, by_the_stack())
        assert not goes_directly(send(direct))

    in_one_tick(direct, work)
    time.sleep(1.2 * TICK_NS / 1e9)
    opened(direct)
    assert not goes_directly(send(direct))


def test_another_next_hop_is_taken_with_the_next_tick(direct: Datapath) -> None:
    elsewhere = bytearray(by_the_stack())
    elsewhere[0:6] = bytes.fromhex("020000000098")

    def before() -> None:
        opened(direct)
        assert send(direct).frame[:6] == by_the_stack()[:6]

    def after() -> None:
        opened(direct, shown=False)
        leaves(direct, bytes(elsewhere))
        assert goes_directly(send(direct))
        assert send(direct).frame[:6] == bytes(elsewhere[:6])

    in_one_tick(direct, before)
    time.sleep(1.2 * TICK_NS / 1e9)
    in_one_tick(direct, after)


@pytest.mark.parametrize("change", ["policies", "addresses"])
def test_a_change_is_judged_before_anything_goes_on(direct: Datapath, change: str) -> None:
    def work() -> None:
        opened(direct)
        assert goes_directly(send(direct))
        if change == "policies":
            world.apply(direct, world.Policy("a", (), ("egress", "ingress")))
            assert send(direct).counters == {"denied_by_default": 1}
        else:
            direct.maps["addresses"].update({"address": X["c"]}, world.address_record("node2"))
            direct.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
            assert not goes_directly(send(direct))

    in_one_tick(direct, work)


@pytest.mark.parametrize("kind", IPSEC)
def test_nothing_goes_past_ipsec(direct: Datapath, kind: str) -> None:
    """At once: it would go in the clear."""
    start, end = (words.replace(" in ", " out ").replace("setdefault in", "setdefault out") for words in IPSEC[kind])

    def fares(directly: bool) -> None:
        opened(direct)
        assert goes_directly(send(direct)) == directly

    subprocess.run(f"ip xfrm {start}", shell=True, check=True)
    try:
        in_one_tick(direct, lambda: fares(False))
    finally:
        subprocess.run(f"ip xfrm {end}", shell=True, check=True)
    in_one_tick(direct, lambda: fares(True))


# --- beside the kernel's own ---------------------------------------------------------------------------------------


def on_the_wire(wire: Wire) -> List[bytes]:
    """The tunnel packets that came out, whole."""
    found = []
    while True:
        try:
            frame, origin = wire.network.recvfrom(65536)
        except BlockingIOError:
            return found
        port = struct.pack("!H", world.TUNNEL_PORT)
        if origin[2] != socket.PACKET_OUTGOING and frame[UDP_AT + 2 : UDP_AT + 4] == port:
            found.append(frame)


def by_the_device() -> int:
    """Packets that the tunnel's device has sent."""
    shown = json.loads(subprocess.check_output(["ip", "-s", "-j", "link", "show", "dev-vxlan"]))
    return int(shown[0]["stats64"]["tx"]["packets"])


def without_identifier(frame: bytes) -> bytes:
    """The IP identifier counts up; and with it changes the checksum, which has to be right."""
    assert f.checksum(frame[IP_AT:UDP_AT]) == 0
    return frame[: IP_AT + 4] + frame[IP_AT + 6 : IP_AT + 10] + frame[IP_AT + 12 :]


FLOWS = st.sampled_from([(4, f.UDP), (4, f.TCP), (6, f.UDP), (6, f.TCP), (4, f.ICMP)])


def test_what_goes_directly_is_what_the_kernel_would_have_sent(direct_wire: Wire) -> None:
    """To the byte, whatever the workload sends: a packet twice, of which the tunnel's device sends the first."""
    wire, directly = direct_wire, []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(FLOWS, st.integers(0, 255), st.integers(2, 255), st.integers(1, 65535), st.integers(0, 1300))
    def compare(flow: tuple[int, int], service: int, hops: int, port: int, size: int) -> None:
        family, protocol = flow
        x = ADDRESSES[family]
        if protocol == f.ICMP:
            packet = f.echo(x["a"], x["c"], port)
        elif protocol == f.TCP:
            packet = f.tcp(x["a"], x["c"], (port, 80), f.ACK)
        else:
            packet = f.ip(x["a"], x["c"], f.UDP, f.udp_header(port, 80, size) + bytes(size))
        frame = bytearray(packet)
        if family == 4:
            frame[1], frame[8] = service, hops
            packet = f.with_ip_checksum(bytes(frame))
        else:
            frame[0], frame[1], frame[7] = 0x60 | service >> 4, service << 4 & 0xF0, hops
            packet = bytes(frame)
        on_the_wire(wire)
        before = by_the_device()
        for _ in range(4):
            wire.workload.send(f.ether(packet))
        sent = on_the_wire(wire)
        assert len(sent) == 4
        assert {without_identifier(one) for one in sent} == {without_identifier(sent[0])}
        directly.append(4 - (by_the_device() - before))

    compare()
    assert sum(directly) > len(directly), "most went directly"


def test_a_narrower_device_gets_nothing_longer_than_it_takes(direct_wire: Wire) -> None:
    """A second later: also where what comes first in each second is short, so that the stack is given nothing long."""
    wire, short, long = direct_wire, f.ether(datagram()), f.ether(datagram(bytes(1350)))

    def burst() -> List[int]:
        time.sleep(1.2 * TICK_NS / 1e9)
        on_the_wire(wire)
        for frame in (short, short, long, long, short, long):
            wire.workload.send(frame)
        return [len(frame) - IP_AT for frame in on_the_wire(wire)]

    assert [length for length in burst() if length > 1400] != []
    subprocess.run(["ip", "link", "set", "dev-eth0", "mtu", "1400"], check=True)
    try:
        lengths = burst()
    finally:
        subprocess.run(["ip", "link", "set", "dev-eth0", "mtu", "1500"], check=True)
    assert len(lengths) == 6 and max(lengths) <= 1400


FLOWS_BY_HASH = {
    "UDP": datagram(),
    "TCP": f.tcp(X["a"], X["c"], PORTS, f.ACK),
    "echo": f.echo(X["a"], X["c"], 7),
    "GRE": f.ip(X["a"], X["c"], 47, bytes(40)),
    "ESP": f.ip(X["a"], X["c"], 50, bytes(40)),
}


@pytest.mark.parametrize("flow", FLOWS_BY_HASH)
def test_both_ways_of_a_flow_end_in_one_queue(direct_wire: Wire, flow: str) -> None:
    """Or some would overtake others. For what has no ports the stack chooses by the tunnel packet's."""
    wire = direct_wire
    subprocess.run(["tc", "qdisc", "replace", "dev", "dev-eth0", "root", "handle", "1:", "mq"], check=True)
    try:
        before = by_queue()
        device = by_the_device()
        for _ in range(20):
            wire.workload.send(f.ether(FLOWS_BY_HASH[flow]))
        assert 0 < by_the_device() - device < 20, "some go either way"
        sent = [packets - before[queue] for queue, packets in by_queue().items()]
        assert sorted(sent)[-1] == 20
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", "dev-eth0", "root"], check=True)


def by_queue() -> Dict[str, int]:
    """Packets that each queue of the underlay device has sent."""
    shown = json.loads(subprocess.check_output(["tc", "-s", "-j", "qdisc", "show", "dev", "dev-eth0"]))
    return {one["parent"]: int(one["packets"]) for one in shown if "parent" in one}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [f.UDP, f.TCP])
def test_a_checksum_that_a_device_is_to_make_is_made(direct_wire: Wire, family: int, protocol: int) -> None:
    """As most packets leave a workload: by the kernel, where the underlay device cannot."""
    wire, x = direct_wire, ADDRESSES[family]
    if protocol == f.TCP:
        packet, field = f.tcp(x["a"], x["c"], PORTS, f.ACK), 16
    else:
        packet, field = f.udp(x["a"], x["c"], PORTS), 6
    frame = bytearray(f.ether(packet))
    start = IP_AT + (20 if family == 4 else 40)
    pseudo = bytes(frame[start - (8 if family == 4 else 32) : start]) + struct.pack("!II", len(frame) - start, protocol)
    struct.pack_into("!H", frame, start + field, f.checksum(pseudo) ^ 0xFFFF)
    to_make = struct.pack("=BBHHHH", 1, 0, 0, 0, start, field)  # struct virtio_net_hdr, VIRTIO_NET_HDR_F_NEEDS_CSUM
    with contextlib.ExitStack() as stack:
        stack.callback(switch, "dev-eth0", SET_TX_CHECKSUMS, 1)
        switch("dev-eth0", SET_TX_CHECKSUMS, 0)
        stack.callback(wire.workload.setsockopt, _SOL_PACKET, _PACKET_VNET_HDR, 0)
        wire.workload.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        on_the_wire(wire)
        before = by_the_device()
        for _ in range(6):
            wire.workload.send(to_make + bytes(frame))
        sent = on_the_wire(wire)
    assert 0 < by_the_device() - before < 6, "some went either way"
    assert len(sent) == 6
    for one in sent:
        assert f.checksum(pseudo + one[INNER_AT - 14 + start :]) == 0
