"""Copies of connections: which packets go by them, and that none is believed beyond what its record would say.

A record that is taken away behind its copy shows which of the two a packet went by: without its record it is judged
anew, and that makes an event.
"""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import Callable

import pytest

from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.real import jiffy_ns
from tests.packet import frames as f
from tests.packet import world
from tests.packet.cases_services import BACKEND, FRONTENDS
from tests.packet.kernel import Datapath, Result
from tests.packet.test_tunnel import Wire, wire
from tests.packet.world import ADDRESSES, CONSTANTS, DEVICES, IDENTITIES, UNDERLAY_2

__all__ = ["wire"]

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_cpu")]

PORTS, BACK = (40000, 80), (80, 40000)
TICK_NS = 1 << ENUMS["connection_time"]["tick_shift"]


@functools.cache
def _lag_ns() -> int:
    """How far the clock that programs go by is behind the monotonic one: by what the kernel missed as it booted, which
    on a virtual machine may be a quarter of a second. 0 where it does not say."""
    with contextlib.suppress(OSError):
        with Path("/proc/timer_list").open("rb") as timers:
            for line in timers:
                if line.startswith(b"jiffies: "):
                    jiffies = int(line.split()[1]) - (1 << 32)
                    return time.monotonic_ns() - (jiffies * jiffy_ns() + 300 * 10**9) if jiffy_ns() else 0
    return 0


def programs_ns() -> int:
    """The clock that programs go by (base.h)."""
    return time.monotonic_ns() - _lag_ns()


def within_a_tick(work: Callable[[], None]) -> None:
    """Do it all before the programs' clock's next tick."""
    room = programs_ns() % TICK_NS
    if room < TICK_NS // 20 or room > TICK_NS // 2:
        time.sleep((TICK_NS - room + TICK_NS // 20) % TICK_NS / 1e9)
    work()


def send(datapath: Datapath, packet: bytes, at: str = "a") -> Result:
    return datapath.run("from_endpoint", f.ether(packet), DEVICES[at])


def arrive(datapath: Datapath, packet: bytes, via: str = "vxlan") -> Result:
    return datapath.run("to_endpoint", f.ether(packet), DEVICES["a"], DEVICES[via])


def take_away(datapath: Datapath) -> None:
    """Every record, and no copy."""
    connections = datapath.maps["connections"]
    connections.after_write = lambda: None
    try:
        connections.clear()
    finally:
        connections.after_write = datapath.forget_copies


def opened(datapath: Datapath, family: int = 4) -> None:
    """A connection from a to c, of which both directions have a copy."""
    x = ADDRESSES[family]
    send(datapath, f.tcp(x["a"], x["c"], PORTS))
    arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.SYN | f.ACK))
    send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK))
    arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.ACK))


@pytest.mark.parametrize("family", [4, 6])
def test_an_established_packet_goes_by_the_copy_for_a_tick(datapath: Datapath, family: int) -> None:
    x = ADDRESSES[family]

    def work() -> None:
        opened(datapath, family)
        take_away(datapath)
        there = send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK))
        back = arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.ACK))
        assert (there.action, there.counters, there.events) == ("redirect", {"to_tunnel": 1}, [])
        assert (back.action, back.counters, back.events) == ("pass", {"to_endpoint": 1}, [])

    within_a_tick(work)
    time.sleep(1.2 * TICK_NS / 1e9)
    assert len(send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK)).events) == 1, "the copy counts no longer"


def test_what_changes_a_record_goes_to_the_record(datapath: Datapath) -> None:
    x = ADDRESSES[4]

    def work() -> None:
        for flags in (f.SYN, f.FIN | f.ACK, f.RST):
            datapath.reset()
            world.build(datapath)
            opened(datapath)
            take_away(datapath)
            assert len(send(datapath, f.tcp(x["a"], x["c"], PORTS, flags)).events) == 1, flags

    within_a_tick(work)


def test_every_packet_is_counted_once(datapath: Datapath) -> None:
    x = ADDRESSES[4]
    opened(datapath)
    for _ in range(20):
        send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK))
    for _ in range(7):
        arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.ACK))
    (flow,) = [one for one in datapath.flows() if one["verdict"]]
    assert (flow["packets"], flow["answer_packets"]) == (22, 9)


@pytest.mark.parametrize("change", ["policy", "addresses"])
def test_no_copy_outlives_its_revision(datapath: Datapath, change: str) -> None:
    x = ADDRESSES[4]

    def work() -> None:
        opened(datapath)
        if change == "policy":
            world.apply(datapath, world.Policy("a", (), ("egress", "ingress")))
        else:
            datapath.maps["addresses"].update({"address": x["c"]}, world.address_record("node2"))
            datapath.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
        result = send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK))
        if change == "policy":
            assert result.counters == {"denied_by_default": 1}
        else:
            take_away(datapath)
            assert [one["destination_identity"] for one in send(datapath, f.udp(x["a"], x["c"], PORTS)).events] == [
                IDENTITIES["node2"]
            ]

    within_a_tick(work)


def test_an_address_lent_by_a_copy_is_still_one_endpoints_own(datapath: Datapath) -> None:
    """b poses as a within a's connection, and somebody else than the tunnel as c."""
    x = ADDRESSES[4]

    def work() -> None:
        opened(datapath)
        assert send(datapath, f.tcp(x["a"], x["c"], PORTS, f.ACK), "b").counters == {"spoofed_source": 1}
        assert arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.ACK), "eth0").counters == {"spoofed_source": 1}

    within_a_tick(work)


@pytest.mark.parametrize("family", [4, 6])
def test_a_forged_tunnel_packet_of_a_copied_connection_is_dropped(wire: Wire, family: int) -> None:
    x = ADDRESSES[family]
    packet = f.tcp(x["c"], x["a"], PORTS, f.ACK)

    def work() -> None:
        for _ in range(3):
            assert wire.receive(UNDERLAY_2, IDENTITIES["c"], packet).counters == {"to_endpoint": 1}
        take_away(wire.datapath)
        assert wire.receive(UNDERLAY_2, IDENTITIES["c"], packet).events == [], "by its copy"
        assert wire.receive(UNDERLAY_2, IDENTITIES["b"], packet).counters == {"tunnel_forged_identity": 1}
        assert wire.receive("192.0.2.66", IDENTITIES["c"], packet).counters == {"tunnel_unknown_node": 1}
        assert wire.receive(world.UNDERLAY_6, IDENTITIES["c"], packet, "2001:db8::1").counters in (
            {"tunnel_forged_source": 1},
            {"tunnel_unknown_node": 1},
        )

    within_a_tick(work)


@pytest.mark.parametrize("family", [4, 6])
def test_a_tunnel_to_an_ipv6_address_has_no_copies(datapath: Datapath, family: int) -> None:
    x = ADDRESSES[family]

    def work() -> None:
        for _ in range(3):
            assert send(datapath, f.udp(x["a"], x["d"], PORTS)).counters == {"to_tunnel": 1}
        take_away(datapath)
        assert len(send(datapath, f.udp(x["a"], x["d"], PORTS)).events) == 1

    within_a_tick(work)


@pytest.mark.parametrize("family", [4, 6])
def test_a_direct_connection_that_goes_to_a_frontend_next(datapath: Datapath, family: int) -> None:
    """The answers come from the frontend at once, whatever copy there is of what answered directly."""
    x = ADDRESSES[family]
    frontend = FRONTENDS[family]
    answer = f.udp(x["c"], x["a"], (BACKEND, 40000))

    def source(result: Result) -> bytes:
        return result.frame[22:38] if family == 6 else result.frame[26:30]

    def work() -> None:
        world.apply(datapath, world.Frontend(frontend, 53, f.UDP, ((x["c"], BACKEND),)))
        for _ in range(3):
            send(datapath, f.udp(x["a"], x["c"], (40000, BACKEND)))
            direct = source(arrive(datapath, answer))
        send(datapath, f.udp(x["a"], frontend, (40000, 53)))
        translated = source(arrive(datapath, answer))
        assert translated != direct
        send(datapath, f.udp(x["a"], x["c"], (40000, BACKEND)))
        assert source(arrive(datapath, answer)) == direct

    within_a_tick(work)


@pytest.mark.parametrize("changes", [32, 256])
def test_no_copy_counts_again_after_many_changes(datapath: Datapath, changes: int) -> None:
    """However often flows change between frontend and backend within a tick."""
    x = ADDRESSES[4]
    frontend = FRONTENDS[4]
    answer = f.udp(x["c"], x["a"], (BACKEND, 40000))

    def work() -> None:
        world.apply(datapath, world.Frontend(frontend, 53, f.UDP, ((x["c"], BACKEND),)))
        for port in (40000, 40001):
            send(datapath, f.udp(x["a"], x["c"], (port, BACKEND)))
        for _ in range(3):
            direct = arrive(datapath, answer).frame[26:30]
        before = datapath.maps["copy_epoch"].lookup({"index": 0})["number"]
        for number in range(changes - 1):  # of another flow
            to = (x["c"], BACKEND) if number % 2 else (frontend, 53)
            send(datapath, f.udp(x["a"], to[0], (40001, to[1])))
        send(datapath, f.udp(x["a"], frontend, (40000, 53)))
        assert datapath.maps["copy_epoch"].lookup({"index": 0})["number"] == before + changes
        assert arrive(datapath, answer).frame[26:30] != direct

    within_a_tick(work)


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_to_a_frontend_begins_where_a_direct_one_was(datapath: Datapath, family: int) -> None:
    x = ADDRESSES[family]
    frontend = FRONTENDS[family]
    at = slice(22, 38) if family == 6 else slice(26, 30)

    def work() -> None:
        opened(datapath, family)
        direct = arrive(datapath, f.tcp(x["c"], x["a"], BACK, f.ACK)).frame[at]
        world.apply(datapath, world.Frontend(frontend, 443, f.TCP, ((x["c"], 80),)))
        send(datapath, f.tcp(x["a"], frontend, (40000, 443)))
        for flags in (f.SYN | f.ACK, f.ACK, f.ACK):
            assert arrive(datapath, f.tcp(x["c"], x["a"], BACK, flags)).frame[at] != direct

    within_a_tick(work)


def test_connections_that_share_a_place_take_it_from_each_other() -> None:
    datapath = Datapath({**CONSTANTS, "copies_mask": 0})
    x = ADDRESSES[4]
    try:
        world.build(datapath)
        for port in range(40000, 40004):
            send(datapath, f.udp(x["a"], x["c"], (port, 80)))
        for _ in range(5):
            for port in range(40000, 40004):
                for _ in range(2):
                    result = send(datapath, f.udp(x["a"], x["c"], (port, 80)))
                    assert (result.counters, result.events) == ({"to_tunnel": 1}, [])
        world.apply(datapath, world.Policy("a", (), ("egress",)))
        for port in range(40000, 40004):
            assert send(datapath, f.udp(x["a"], x["c"], (port, 80))).counters == {"denied_by_default": 1}
    finally:
        datapath.close()
