"""Packets that go straight from the underlay device to their workload: which do, and that others go the long way."""

from __future__ import annotations

import struct
import subprocess
import time
from typing import Callable, Dict, Iterator, List, Tuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpfleet.loader.real import shows_contexts
from tests.packet import frames as f
from tests.packet import world
from tests.packet.cases_services import FRONTENDS
from tests.packet.kernel import Datapath, Result
from tests.packet.test_copies import TICK_NS, arrive, programs_ns, send, within_a_tick
from tests.packet.test_tunnel import Wire, wire
from tests.packet.world import ADDRESSES, CONSTANTS, DEVICES, IDENTITIES, MACS, UNDERLAY, UNDERLAY_2, UNDERLAY_MAC

__all__ = ["wire"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("one_cpu"),
    pytest.mark.skipif(not shows_contexts(), reason="kernels before 6.2 show programs nothing of IPsec"),
]

X = ADDRESSES[4]
PORTS, BACK = (40000, 53), (53, 40000)
IP_AT, UDP_AT, VXLAN_AT, INNER_ETHERNET_AT, INNER_AT = 14, 34, 42, 50, 64
LONG = ("pass", {"underlay": 1})
ANOTHER = "192.0.2.3"
"""A member that c is not at."""


@pytest.fixture(scope="module", params=["looks", "parses"])
def loaded_direct(request: pytest.FixtureRequest, devices: None) -> Iterator[Datapath]:
    """Datagrams may go directly; with nothing and with something to ask first of what arrives."""
    datapath = Datapath({**CONSTANTS, "direct_delivery": 1, "blocked_at_tc": int(request.param == "parses")})
    yield datapath
    datapath.close()


@pytest.fixture
def direct(loaded_direct: Datapath) -> Datapath:
    """With the world in it."""
    begin(loaded_direct)
    return loaded_direct


def begin(datapath: Datapath) -> None:
    datapath.reset()
    world.build(datapath)
    member = {"identity": IDENTITIES["node2"], "ifindex": 0, "tunnel_endpoint": ANOTHER}
    datapath.maps["addresses"].update({"address": ANOTHER}, member)


def in_one_tick(datapath: Datapath, work: Callable[[], None]) -> None:
    """As within_a_tick; from a new beginning where the machine kept it waiting until the tick was over."""
    for _ in range(9):
        begun: List[int] = []

        def noted(begun: List[int] = begun) -> None:
            begun.append(programs_ns() // TICK_NS)
            work()

        try:
            within_a_tick(noted)
            return
        except AssertionError:
            if programs_ns() // TICK_NS == begun[0]:
                raise
            begin(datapath)
    work()


def opened(datapath: Datapath) -> None:
    """A flow from a to c, with a copy for c's answers."""
    send(datapath, f.udp(X["a"], X["c"], PORTS))
    for _ in range(2):
        assert arrive(datapath, f.udp(X["c"], X["a"], BACK)).action == "pass"


def tunnelled(inner: bytes, member: str = UNDERLAY_2, vni: int = IDENTITIES["c"], local: str = UNDERLAY) -> bytes:
    return f.ether(f.vxlan(member, local, world.TUNNEL_PORT, vni, f.ether(inner)), destination=UNDERLAY_MAC)


def receive(datapath: Datapath, frame: bytes) -> Result:
    return datapath.run("from_underlay", frame, DEVICES["eth0"])


def way(result: Result) -> object:
    return result.action, result.counters


def datagram(**more: object) -> bytes:
    return f.udp(X["c"], X["a"], BACK, **more)


def changed(offset: int, size: str, value: int, sum_again: bool = True) -> bytes:
    """The flow's next tunnel packet with another number in its headers, and the outer header's checksum for it."""
    frame = bytearray(tunnelled(datagram()))
    struct.pack_into("!" + size, frame, offset, value)
    return with_outer_sum(frame) if sum_again else bytes(frame)


def with_outer_sum(frame: bytearray) -> bytes:
    struct.pack_into("!H", frame, IP_AT + 10, 0)
    length = (frame[IP_AT] & 15) * 4
    struct.pack_into("!H", frame, IP_AT + 10, f.checksum(bytes(frame[IP_AT : IP_AT + length])))
    return bytes(frame)


def carried(datapath: Datapath) -> Dict[str, int]:
    (flow,) = [one for one in datapath.flows() if one["verdict"] == "allow"]
    return {name: flow[name] for name in ("answer_packets", "answer_bytes")}


def test_an_established_datagram_goes_straight_to_its_workload(direct: Datapath) -> None:
    """As it was sent, to the workload's MAC, and counted as on the long way."""

    def work() -> None:
        opened(direct)
        before = carried(direct)
        result = receive(direct, tunnelled(datagram()))
        assert (result.action, result.counters, result.events) == ("redirect", {"underlay": 1, "to_endpoint": 1}, [])
        workload, device = MACS["a"]
        inner = f.ether(datagram(), source=device, destination=workload)
        assert result.frame == inner
        assert carried(direct) == {
            "answer_packets": before["answer_packets"] + 1,
            "answer_bytes": before["answer_bytes"] + len(inner),
        }

    in_one_tick(direct, work)


def test_a_segment_of_an_established_connection_goes_straight_to_its_workload(direct: Datapath) -> None:
    def work() -> None:
        send(direct, f.tcp(X["a"], X["c"], PORTS))
        arrive(direct, f.tcp(X["c"], X["a"], BACK, f.SYN | f.ACK))
        arrive(direct, f.tcp(X["c"], X["a"], BACK, f.ACK))
        result = receive(direct, tunnelled(f.tcp(X["c"], X["a"], BACK, f.ACK)))
        assert (result.action, result.frame[14:]) == ("redirect", f.tcp(X["c"], X["a"], BACK, f.ACK))
        for flags in (f.SYN | f.ACK, f.FIN | f.ACK, f.RST):
            assert way(receive(direct, tunnelled(f.tcp(X["c"], X["a"], BACK, flags)))) == LONG

    in_one_tick(direct, work)


@pytest.mark.parametrize("what", ["put together", "congestion", "capable of congestion", "taken apart"])
def test_nothing_overtakes_what_has_to_go_the_long_way(direct: Datapath, what: str) -> None:
    """What the kernel put together, or has to mark, or the sender has taken apart; what comes behind goes after it,
    until the long way says anew."""
    frame = tunnelled(datagram())
    before = {
        "congestion": changed(IP_AT + 1, "B", 3),
        "capable of congestion": changed(IP_AT + 1, "B", 1),
        "taken apart": tunnelled(f.ip(X["c"], X["a"], f.UDP, f.udp_header(*BACK, 3000) + bytes(1400), more=True)),
    }

    def work() -> None:
        opened(direct)
        assert receive(direct, frame).action == "redirect"
        segment = 8 if what == "put together" else 0
        other = before.get(what, frame)
        result = direct.run("from_underlay", other, DEVICES["eth0"], segment=segment)
        assert (way(result), result.frame) == (LONG, other)
        assert way(receive(direct, frame)) == LONG

    in_one_tick(direct, work)
    time.sleep(1.2 * TICK_NS / 1e9)

    def later() -> None:
        opened(direct)
        assert receive(direct, frame).action == "redirect"

    in_one_tick(direct, later)


def test_the_long_way_comes_first_and_once_a_tick(direct: Datapath) -> None:
    frame = tunnelled(datagram())
    assert way(receive(direct, frame)) == LONG

    def work() -> None:
        opened(direct)
        assert receive(direct, frame).action == "redirect"

    in_one_tick(direct, work)
    time.sleep(1.2 * TICK_NS / 1e9)
    assert way(receive(direct, frame)) == LONG


OTHERWISE: Dict[str, Callable[[], bytes]] = {
    "checksum": lambda: changed(IP_AT + 10, "H", 0x1234, sum_again=False),
    "padding": lambda: tunnelled(datagram()) + bytes(6),
    "IP length": lambda: changed(IP_AT + 2, "H", 60),
    "fragment": lambda: changed(IP_AT + 6, "H", 0x2000),
    "later fragment": lambda: changed(IP_AT + 6, "H", 1),
    "UDP length": lambda: changed(UDP_AT + 4, "H", 50),
    "UDP checksum": lambda: changed(UDP_AT + 6, "H", 0x1234),
    "flags": lambda: changed(VXLAN_AT, "B", 0x0C),
    "group policy": lambda: changed(VXLAN_AT, "B", 0x88),
    "reserved": lambda: changed(VXLAN_AT + 3, "B", 1),
    "reserved of the VNI": lambda: changed(VXLAN_AT + 7, "B", 1),
    "inner type": lambda: changed(INNER_ETHERNET_AT + 12, "H", 0x86DD),
    "inner checksum": lambda: changed(INNER_AT + 10, "H", 0x1234),
    "inner fragment": lambda: tunnelled(datagram(fragment=0x2000)),
    "other VNI": lambda: tunnelled(datagram(), vni=IDENTITIES["d"]),
    "other member": lambda: tunnelled(datagram(), member=ANOTHER),
    "other node": lambda: tunnelled(datagram(), local="192.0.2.77"),
    "other port": lambda: tunnelled(f.udp(X["c"], X["a"], (53, 40001))),
    "other sender": lambda: tunnelled(f.udp(X["world"], X["a"], BACK)),
    "TCP": lambda: tunnelled(f.tcp(X["c"], X["a"], BACK, f.ACK)),
    "not for this host": lambda: f.ether(tunnelled(datagram())[14:], destination="02:00:00:00:99:99"),
    "IPv6 inside": lambda: tunnelled(f.udp(ADDRESSES[6]["c"], ADDRESSES[6]["a"], BACK)),
}


@pytest.mark.parametrize("other", OTHERWISE)
def test_what_is_otherwise_goes_the_long_way(direct: Datapath, other: str) -> None:
    frame = OTHERWISE[other]()

    def work() -> None:
        opened(direct)
        assert receive(direct, tunnelled(datagram())).action == "redirect"
        result = receive(direct, frame)
        assert (result.action, result.frame) == ("pass", frame)
        assert receive(direct, tunnelled(datagram())).action == "redirect"

    in_one_tick(direct, work)


THE_SAME: Dict[str, Callable[[], bytes]] = {
    "hops": lambda: changed(IP_AT + 8, "B", 1),
    "traffic class": lambda: changed(IP_AT + 1, "B", 0xB8),
    "source port": lambda: changed(UDP_AT, "H", 1000),
    "inner hops": lambda: tunnelled(datagram(hops=3)),
    "inner options": lambda: tunnelled(datagram(options=b"\x01\x01\x01\x01")),
    "behind the datagram": lambda: tunnelled(datagram() + bytes(3)),
}


@pytest.mark.parametrize("other", THE_SAME)
def test_what_says_the_same_goes_directly(direct: Datapath, other: str) -> None:
    frame = THE_SAME[other]()

    def work() -> None:
        opened(direct)
        result = receive(direct, frame)
        assert (result.action, result.frame[14:]) == ("redirect", frame[INNER_AT:])

    in_one_tick(direct, work)


@pytest.mark.parametrize("change", ["policies", "addresses", "endpoint", "delivery"])
def test_a_change_sends_it_the_long_way(direct: Datapath, change: str) -> None:
    def work() -> None:
        opened(direct)
        endpoints = direct.maps["endpoints"]
        if change == "policies":
            direct.next_generation()
        elif change == "addresses":
            direct.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
        elif change == "endpoint":
            endpoints.delete({"ifindex": DEVICES["a"]})
        else:
            endpoints.update({"ifindex": DEVICES["a"]}, {**world.endpoint_record("a"), "flags": 0})
        assert way(receive(direct, tunnelled(datagram()))) == LONG

    in_one_tick(direct, work)


def test_what_goes_to_a_frontend_from_now_on_is_answered_the_long_way(direct: Datapath) -> None:
    """Where its answers get the frontend back; and the copies of others are made anew."""

    def work() -> None:
        opened(direct)
        world.apply(direct, world.Frontend(FRONTENDS[4], 53, f.UDP, ((X["c"], 53),)))
        assert receive(direct, tunnelled(datagram())).action == "redirect"
        send(direct, f.udp(X["a"], FRONTENDS[4], PORTS))
        assert way(receive(direct, tunnelled(datagram()))) == LONG
        other = f.udp(X["c"], X["a"], (53, 40001))
        send(direct, f.udp(X["a"], X["c"], (40001, 53)))
        assert arrive(direct, other).action == "pass"
        assert receive(direct, tunnelled(other)).action == "redirect"

    in_one_tick(direct, work)


IPSEC = {
    "policy": ("policy add src 203.0.113.0/24 dst 203.0.113.0/24 dir in tmpl proto esp mode tunnel", "policy flush"),
    "default": ("policy setdefault in block", "policy setdefault in accept"),
}


@pytest.mark.parametrize("kind", IPSEC)
def test_nothing_goes_directly_past_ipsec(direct: Datapath, kind: str) -> None:
    """A datagram that came by itself may be one that the host takes by IPsec only."""
    start, end = IPSEC[kind]

    def fares(expected: str) -> None:
        opened(direct)
        assert receive(direct, tunnelled(datagram())).action == expected

    subprocess.run(f"ip xfrm {start}", shell=True, check=True)
    try:
        in_one_tick(direct, lambda: fares("pass"))
    finally:
        subprocess.run(f"ip xfrm {end}", shell=True, check=True)
    in_one_tick(direct, lambda: fares("redirect"))


def test_a_node_that_is_told_not_to_sends_nothing_directly(datapath: Datapath) -> None:
    def work() -> None:
        opened(datapath)
        assert way(receive(datapath, tunnelled(datagram()))) == LONG

    in_one_tick(datapath, work)


PLACES = st.tuples(st.integers(IP_AT, INNER_AT + 27), st.integers(0, 255))
OF_MEANING = st.sampled_from(
    [
        (IP_AT, 0x46), (IP_AT + 1, 1), (IP_AT + 1, 2), (IP_AT + 1, 3), (IP_AT + 6, 0x40), (IP_AT + 6, 0x20),
        (IP_AT + 7, 1), (IP_AT + 8, 0), (VXLAN_AT, 0), (VXLAN_AT, 0x0C), (VXLAN_AT + 7, 1), (INNER_AT, 0x46),
        (INNER_AT + 1, 1), (INNER_AT + 1, 2), (INNER_AT + 1, 3), (INNER_AT + 6, 0x20), (INNER_AT + 8, 0),
    ]
)  # fmt: skip


def test_what_goes_directly_would_be_delivered_by_the_long_way(direct: Datapath, wire: Wire) -> None:
    """And be counted the same: whatever the kernel's own IP, UDP and VXLAN refuse or trim goes past them neither."""
    delivered: List[Tuple[int, int]] = []

    @example([], 200, False, False)
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(PLACES | OF_MEANING, max_size=3),
        st.just(200) | st.integers(INNER_AT, INNER_AT + 40),
        st.booleans(),
        st.booleans(),
    )
    def compare(changes: List[Tuple[int, int]], length: int, outer_sum: bool, inner_sum: bool) -> None:
        frame = bytearray(tunnelled(datagram())[:length])
        for at, value in changes:
            if at < len(frame):
                frame[at] = value
        if inner_sum:
            frame[INNER_AT:] = f.with_ip_checksum(bytes(frame[INNER_AT:]))
        sent = with_outer_sum(frame) if outer_sum else bytes(frame)
        opened(direct)
        before = carried(direct)
        if receive(direct, sent).action != "redirect":
            return
        after = carried(direct)
        wire.datapath.reset()
        world.build(wire.datapath)
        opened(wire.datapath)
        past = carried(wire.datapath)
        with wire.datapath.watch() as seen:
            wire.network.send(sent)
        assert seen[0].counters == {"to_endpoint": 1}, "as the kernel's stack handed it on"
        now = carried(wire.datapath)
        assert {name: now[name] - past[name] for name in now} == {name: after[name] - before[name] for name in after}
        delivered.append((len(changes), length))

    compare()
    assert len(delivered) > 10
