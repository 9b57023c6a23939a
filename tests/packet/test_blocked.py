"""Blocked networks: the same frames at XDP and at tc, against Python's own idea of networks."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from bpfleet.compile.blocklist import blocked_row
from tests.packet import frames as f
from tests.packet.kernel import Datapath
from tests.packet.world import ADDRESSES, DEVICES

BLOCKED = (
    "198.51.100.0/24",
    "203.0.113.7/32",
    "10.66.0.0/15",
    "2001:db8:bad::/48",
    "2001:db8:ffff::7/128",
    "128.0.0.0/1",
)
SOURCES = (
    "198.51.100.7", "198.51.101.7", "203.0.113.7", "203.0.113.6", "10.67.255.255", "10.68.0.0", "127.255.255.255",
    "128.0.0.1", "9.9.9.9", "2001:db8:bad:1::1", "2001:db8:bae::1", "2001:db8:ffff::7", "2001:db8:ffff::8",
)  # fmt: skip


@pytest.fixture
def blocking(datapath: Datapath) -> Datapath:
    for cidr in BLOCKED:
        length, address = blocked_row(cidr)
        datapath.maps["blocked"].update({"prefix_length": length, "address": address}, {"blocked": 1})
    return datapath


def frame(source: str) -> bytes:
    family = 6 if f.is_v6(source) else 4
    packet = f.udp(source, ADDRESSES[family]["host"], (5000, 53))
    return f.ether(packet, kind=0x86DD if family == 6 else 0x0800)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_blocked_is_dropped_counted_and_told(blocking: Datapath, source: str) -> None:
    address = ipaddress.ip_address(source)
    networks = [ipaddress.ip_network(cidr) for cidr in BLOCKED]
    is_blocked = any(address in network for network in networks if network.version == address.version)
    at_xdp = blocking.run_xdp(frame(source))
    at_tc = blocking.run("from_underlay", frame(source), DEVICES["eth0"])
    if not is_blocked:
        assert (at_xdp.action, at_xdp.counters, at_xdp.events) == ("pass", {}, [])
        assert (at_tc.action, at_tc.counters) == ("pass", {"underlay": 1})
        return
    assert (at_xdp.action, at_tc.action) == ("drop", "shot")
    assert at_xdp.counters == at_tc.counters == {"blocked": 1}
    for result, hook in ((at_xdp, "xdp_underlay"), (at_tc, "from_underlay")):
        (event,) = result.events
        assert (event["source"], event["reason"], event["verdict"]) == (source, "blocked", "drop")
        assert (event["hook"], event["source_identity"], event["protocol"]) == (hook, 2, f.UDP)
        assert event["length"] == len(frame(source))


GOOD = frame("198.51.100.7")
ODD = {
    "an Ethernet header alone": GOOD[:14],
    "an IPv4 header cut short": GOOD[:33],
    "an IPv6 header cut short": frame("2001:db8:bad::1")[:53],
    "a VLAN tag": GOOD[:12] + struct.pack("!HH", 0x8100, 5) + GOOD[12:],
    "ARP": f.ether(bytes(28), kind=0x0806),
    "another version than the frame's type says": GOOD[:14] + b"\x65" + GOOD[15:],
    "the unspecified address": f.ether(f.udp("::", ADDRESSES[6]["host"], (5000, 53)), kind=0x86DD),
}


@pytest.mark.parametrize("name", ODD)
def test_what_has_no_address_to_look_for_passes_to_the_stack(blocking: Datapath, name: str) -> None:
    assert blocking.run_xdp(ODD[name]).action == "pass"
    if not name.endswith(("alone", "short")):  # BPF_PROG_TEST_RUN refuses those at tc
        result = blocking.run("from_underlay", ODD[name], DEVICES["eth0"])
        assert (result.action, result.counters) == ("pass", {"underlay": 1})


def test_broken_headers_behind_a_blocked_address_do_not_save_it(blocking: Datapath) -> None:
    cut = GOOD[:38]
    assert blocking.run_xdp(cut).action == "drop"
    short = f.ether(f.ip("198.51.100.7", ADDRESSES[4]["host"], f.TCP, bytes(7)), kind=0x0800)
    for result in (blocking.run_xdp(short), blocking.run("from_underlay", short, DEVICES["eth0"])):
        assert result.counters == {"blocked": 1}


def test_a_vlan_tagged_frame_is_of_another_network(blocking: Datapath) -> None:
    """It is judged where its VLAN device is declared; here it passes, as every tagged frame does."""
    assert blocking.run("from_underlay", ODD["a VLAN tag"], DEVICES["eth0"]).counters == {"underlay": 1}


@pytest.mark.parametrize("tags", [1, 2])
def test_a_priority_tag_is_no_way_around(blocking: Datapath, tags: int) -> None:
    """The stack takes a frame of VLAN 0 for an untagged one."""
    tagged = GOOD[:12] + struct.pack("!HH", 0x8100, 0xE000) * tags + GOOD[12:]
    assert blocking.run_xdp(tagged).counters == {"blocked": 1}
