"""The underlay: what a node sends there, what it believes from there, and what workloads may not send.

Every forgery has its control: the same frame with nothing wrong in it is delivered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Dict, NamedTuple

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic import matrix, packets
from tests.e2e.traffic.ground import FAMILIES, PORT, Ground, eventually
from tests.e2e.traffic.station import FOLDER, Station
from tests.e2e.traffic.wire import on_the_wire
from tests.packet.frames import TUNNEL_SOURCE
from tests.reference.node import TUNNEL_SOURCES

pytest_plugins = ["tests.e2e.traffic.fixtures"]

STRANGER = "192.0.2.66"  # no address of the lab
STRANGER_MAC = "02:00:00:00:00:66"
COUNT = 7
GATEWAY_MAC = "02:00:00:00:00:99"  # programs route by address: any MAC does


@pytest.fixture(scope="module")
def open_ground(ground: Ground) -> Ground:
    """All endpoints, no policy."""
    ground.declare(*ground.base())
    return ground


# --- what is sent -------------------------------------------------------------------------------------------------


def test_identity_arrives_as_vni_both_ways(open_ground: Ground) -> None:
    ground = open_ground
    flows = {
        "web-1": [
            ground.flow(protocol, "db-2", port, family) for protocol, port in matrix.SERVICES for family in FAMILIES
        ]
    }

    def act() -> None:
        assert matrix.wrong(ground, (), ground.reached(flows, 3.0)) == []

    seen = on_the_wire(ground, "h1", act)
    h1, h2 = ground.lab.host("h1").address, ground.lab.host("h2").address
    found = set()
    for one in seen:
        assert not one.outer.fragment and one.outer.source_port in TUNNEL_SOURCES
        found.add((one.inner.source, one.inner.protocol, one.vni, one.outer.source, one.outer.destination))
    wanted = set()
    for family, protocols in ((4, (packets.TCP, packets.UDP, packets.ICMP)), (6, (packets.TCP, packets.UDP, 58))):
        for protocol in protocols:
            wanted.add((ground.address("web-1", family), protocol, ground.number("web"), h1, h2))
            wanted.add((ground.address("db-2", family), protocol, ground.number("db"), h2, h1))
    assert found == wanted
    assert ground.number("web") >> 16 == 1 and ground.number("web") != ground.number("db")


def test_nothing_of_one_host_reaches_the_wire(open_ground: Ground) -> None:
    ground = open_ground
    flows = {"web-1": [ground.flow("tcp", "db-1", 7001, 4), ground.flow("udp", "db-1", 7001, 6)]}
    seen = on_the_wire(ground, "h1", lambda: matrix.wrong(ground, (), ground.reached(flows)))
    assert seen == []


def test_another_tunnel_port_is_used_and_the_old_one_is_nothing_special(ground: Ground) -> None:
    ground.declare(*ground.base(port=18472))
    flows = {"web-1": [ground.flow("tcp", "db-2", 7001, family) for family in FAMILIES]}

    def act() -> None:
        assert matrix.wrong(ground, (), ground.reached(flows, 3.0)) == []

    assert on_the_wire(ground, "h1", act, 18472) != []
    assert on_the_wire(ground, "h1", act, PORT) == []
    ground.declare(*ground.base())
    assert on_the_wire(ground, "h1", act, 18472) == []
    assert on_the_wire(ground, "h1", act, PORT) != []


TALK = """
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.connect((address, port))
    client.settimeout(20)
    for number in range(count):
        said = b"%d " % number + bytes(number * 331 % 1300)
        client.send(said)
        assert client.recv(65536).endswith(said), number
"""


@pytest.mark.parametrize("direct", [True, False])
def test_established_datagrams_pass_the_tunnel_device_by(ground: Ground, direct: bool) -> None:
    """All arrive whole; the host's stack sees few of either direction, unless the cluster says otherwise: one a
    second, and of those sent what is longer than any before it."""
    ground.declare(*ground.base(direct_delivery=direct))
    host, client, count = ground.lab.host("h1"), ground.workloads["web-1"], 1500

    def by_the_device() -> Dict[str, int]:
        shown = json.loads(host.run(["ip", "-s", "-j", "link", "show", "bpfleet_vxlan"]).stdout)[0]["stats64"]
        return {way: int(shown[way]["packets"]) for way in ("rx", "tx")}

    before = by_the_device()
    arguments = [ground.address("db-2", 4), "7001", str(count)]
    host.run(["python3", "-c", TALK, *arguments], workload=client.netns, timeout=60.0)
    for way, seen in by_the_device().items():
        passed = seen - before[way]
        assert passed >= count if not direct else 0 < passed < count / 2, way


# --- what is believed ---------------------------------------------------------------------------------------------


class Forgery(NamedTuple):
    """A tunnel packet for free-1 on h1. Addresses are names of endpoints, hosts, or addresses as they are."""

    outer: str
    inner: str
    vni: str
    reason: str
    port: int = TUNNEL_SOURCE


FORGERIES = {
    "nothing wrong": Forgery("h2", "web-2", "web", ""),
    "from a port of any process": Forgery("h2", "web-2", "web", "tunnel_source_port", 50000),
    "from no member": Forgery(STRANGER, "web-2", "web", "underlay_tunnel"),
    "from the host itself": Forgery("h1", "web-2", "web", "underlay_tunnel"),
    "from the world's own address": Forgery("world", "web-2", "web", "underlay_tunnel"),
    "another identity's VNI": Forgery("h2", "web-2", "db", "tunnel_forged_identity"),
    "a VNI of nobody": Forgery("h2", "web-2", "70000", "tunnel_forged_identity"),
    "a node's VNI with a workload's address": Forgery("h2", "web-2", "6", "tunnel_forged_identity"),
    "a workload's VNI with the node's address": Forgery("h2", "h2", "web", "tunnel_forged_identity"),
    "a workload of another node": Forgery("h2", "web-3", "web", "tunnel_forged_source"),
    "a workload of the receiving node": Forgery("h2", "web-1", "web", "tunnel_forged_source"),
    "another node's address": Forgery("h2", "h3", "6", "tunnel_forged_source"),
    "the receiving node's address": Forgery("h2", "h1", "6", "tunnel_forged_source"),
    "an address of no endpoint": Forgery("h2", "web-2+50", "web", "tunnel_forged_source"),
    "the world": Forgery("h2", "world", "web", "tunnel_forged_source"),
    "VNI 0": Forgery("h2", "web-2", "0", "tunnel_reserved"),
    "VNI of host": Forgery("h2", "web-2", "1", "tunnel_reserved"),
    "VNI of world": Forgery("h2", "web-2", "2", "tunnel_reserved"),
    "VNI of waiting": Forgery("h2", "web-2", "5", "tunnel_reserved"),
}


def _address(ground: Ground, name: str, family: int) -> str:
    if name == STRANGER:
        return name if family == 4 else "2001:db8:66::66"
    if name.endswith("+50"):
        return re.sub(r"[0-9a-f]+$", "63", ground.address(name[:-3], family))
    return ground.address(name, family)


def _deliver(ground: Ground, frames: list[str], reason: str, host: str = "h1", to: str = "free-1") -> None:
    """Send frames from the world to a host: dropped for `reason` and counted exactly, or all delivered to `to`."""
    receiver = ground.at(to)
    receiver.do("report", clear=True)
    receiver.do("sniff", name="arrivals", device="eth0")
    before = ground.drops(host)
    ground.stations["world"].do("frames", device=host, frames=frames)
    if reason:
        drops = eventually(lambda: ground.drops(host), lambda now: now[reason] >= before[reason] + len(frames))
    else:
        eventually(lambda: receiver.do("report")["datagrams"], lambda heard: len(heard) >= len(frames))
        drops = ground.drops(host)
    heard = [one for one in receiver.do("report")["datagrams"] if one["data"] == "forged"]
    seen = [packets.read(bytes.fromhex(frame)) for way, frame in receiver.do("sniffed", name="arrivals") if way == "in"]
    forged = [one for one in seen if one is not None and one.payload == b"forged"]
    grown = {name: count - before[name] for name, count in drops.items() if count > before[name]}
    grown.pop("multicast", None)  # neighbour chatter of the kernel's own
    assert grown == ({reason: len(frames)} if reason else {})
    assert (len(heard), len(forged)) == ((0, 0) if reason else (len(frames), len(frames)))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name, forgery in FORGERIES.items()
        for family in FAMILIES
        if family == 4 or not re.fullmatch(r"h\d", forgery.inner)  # a node has one address in the cluster: IPv4 here
    ],
)
def test_forged_tunnel_packets(open_ground: Ground, name: str, family: int) -> None:
    """From the world, in an IPv4 outer packet: delivered only if everything is right."""
    ground, forgery = open_ground, FORGERIES[name]
    vni = int(forgery.vni) if forgery.vni.isdigit() else ground.number(forgery.vni)
    host = ground.lab.host("h1")
    frames = []
    for number in range(COUNT):
        inner = packets.udp(
            _address(ground, forgery.inner, family), ground.address("free-1", family), 40000 + number, 7001
        )
        source = _address(ground, forgery.outer, 4)
        outer = packets.udp(source, host.address, forgery.port, PORT, packets.vxlan(inner, vni))
        frames.append(packets.ethernet(outer, STRANGER_MAC, host.mac).hex())
    _deliver(ground, frames, forgery.reason)


def test_forged_tunnel_packet_over_ipv6(open_ground: Ground) -> None:
    """Members have IPv4 underlay addresses: whatever comes over IPv6 is from no member."""
    ground, host = open_ground, open_ground.lab.host("h1")
    inner = packets.udp(ground.address("web-2", 4), ground.address("free-1", 4), 40000, 7001)
    for source in (ground.lab.host("h2").address6, ground.lab.world.gateway6):
        outer = packets.udp(source, host.address6, TUNNEL_SOURCE, PORT, packets.vxlan(inner, ground.number("web")))
        _deliver(ground, [packets.ethernet(outer, STRANGER_MAC, host.mac).hex()] * COUNT, "underlay_tunnel")


@pytest.mark.parametrize(
    ("port", "inner", "reason"),
    [(0, "web-2", "tunnel_source_port"), (TUNNEL_SOURCE, "web-3", "tunnel_forged_source")],
    ids=["any", "privileged"],
)
def test_a_members_own_programs_cannot_forge_either(open_ground: Ground, port: int, inner: str, reason: str) -> None:
    """The same through the stack of a member: by any program of h2 in the name of a workload there, and by one that may
    send from a tunnel device's port in that of another node's."""
    ground = open_ground
    packet = packets.udp(ground.address(inner, 4), ground.address("free-1", 4), 40000, 7001)
    before = ground.drops("h1")[reason]
    payloads = [packets.vxlan(packet, ground.number("web")).hex()] * COUNT
    ground.at("free-1").do("report", clear=True)
    ground.stations["h2"].do(
        "datagram", address=ground.address("h1", 4), port=PORT, payloads=payloads, source_port=port
    )
    wanted = before + COUNT
    assert eventually(lambda: ground.drops("h1")[reason], lambda count: count >= wanted) == wanted
    assert ground.at("free-1").do("report")["datagrams"] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["web-2", "db-1"])
def test_bare_packets_with_a_workloads_address(open_ground: Ground, source: str, family: int) -> None:
    """Unencapsulated, from the address of a workload of another node or of this one; the world's own passes."""
    ground, host = open_ground, open_ground.lab.host("h1")
    to = ground.address("free-1", family)

    def frames(address: str) -> list[str]:
        return [
            packets.ethernet(packets.udp(address, to, 40000 + number, 7001), STRANGER_MAC, host.mac).hex()
            for number in range(COUNT)
        ]

    _deliver(ground, frames(ground.address(source, family)), "underlay_workload")
    _deliver(ground, frames(ground.address("world", family)), "")


# --- what workloads may not send ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["db-1", "web-2", "h1", "h2", "world", "web-1+50"])
def test_a_workload_cannot_send_as_another(open_ground: Ground, source: str, family: int) -> None:
    ground = open_ground
    station, receiver = ground.at("web-1"), ground.at("free-1")
    mac = station.do("device", name="eth0")["mac"]
    receiver.do("report", clear=True)

    def send(address: str) -> None:
        frames = [
            packets.ethernet(packets.udp(address, ground.address(to, family), 41000, 7001), mac, GATEWAY_MAC).hex()
            for to in ("free-1", "free-2", "world", "h1")
        ]
        station.do("frames", device="eth0", frames=frames)

    before = ground.drops("h1")["spoofed_source"]
    send(_address(ground, source, family))
    after = eventually(lambda: ground.drops("h1")["spoofed_source"], lambda count: count >= before + 4)
    assert after == before + 4
    assert receiver.do("report")["datagrams"] == []
    send(ground.address("web-1", family))
    heard = eventually(lambda: receiver.do("report")["datagrams"], lambda heard: heard != [])
    assert [one["data"] for one in heard] == ["forged"]
    assert ground.drops("h1")["spoofed_source"] == after


def test_a_workloads_own_tunnel_packets(open_ground: Ground) -> None:
    """A workload that speaks VXLAN to a node could say any identity: dropped at its own node."""
    ground = open_ground
    inner = packets.udp(ground.address("web-1", 4), ground.address("free-2", 4), 40000, 7001)
    payloads = [packets.vxlan(inner, ground.number("web")).hex()] * COUNT
    ground.at("free-2").do("report", clear=True)
    # Also at addresses that no document has: the world may be a member's other address, and be reached by masquerading.
    for target, family in (("h1", 4), ("h2", 4), ("h3", 4), ("h2", 6)):
        before = ground.drops("h1")["own_tunnel"]
        address = ground.address(target, family)
        ground.at("web-1").do("datagram", address=address, port=PORT, payloads=payloads)
        after = eventually(lambda: ground.drops("h1")["own_tunnel"], lambda count: count >= before + COUNT)  # noqa: B023
        assert after == before + COUNT, address
    assert ground.at("free-2").do("report")["datagrams"] == []


# --- sizes --------------------------------------------------------------------------------------------------------


def fragments(station: Station) -> int:
    """Fragments that the stack there has made, of both families (RFC 4293 ipFragCreates)."""
    names, values = (
        line.split() for line in station.do("read", path="/proc/self/net/snmp").splitlines() if line.startswith("Ip:")
    )
    six = dict(line.split() for line in station.do("read", path="/proc/self/net/snmp6").splitlines())
    return int(values[names.index("FragCreates")]) + int(six["Ip6FragCreates"])


def move_much(ground: Ground, source: str, destination: str, mtu: int) -> None:
    """Transfers in full-sized packets; asserts that all arrive and that neither host makes a fragment of one."""
    hosts = [ground.stations[ground.workloads[name].host] for name in (source, destination)]
    before = [fragments(host) for host in hosts]
    sender, receiver = ground.at(source), ground.at(destination)
    for family in FAMILIES:
        to, name = ground.address(destination, family), f"much-{family}"
        assert sender.do("dial", name=name, address=to, port=7001, timeout=5.0)
        assert sender.do("pour", name=name, size=8 << 20, timeout=3.0) == 8 << 20
        sender.do("hang_up", name=name)
        receiver.do("report", clear=True)
        full = "ab" * (mtu - (28 if family == 4 else 48))
        sender.do("datagram", address=to, port=7001, payloads=[full] * 20)
        heard = eventually(lambda: receiver.do("report")["datagrams"], lambda heard: len(heard) >= 20)
        assert len(heard) == 20
    assert [fragments(host) for host in hosts] == before


def test_full_sized_packets_make_no_fragments(open_ground: Ground) -> None:
    ground = open_ground
    for name in ("web-1", "db-2"):
        assert ground.at(name).do("device", name="eth0")["mtu"] == 1450
    move_much(ground, "web-1", "db-2", 1450)


def test_a_workloads_own_fragments_pass_where_no_port_decides(open_ground: Ground) -> None:
    ground = open_ground
    before = fragments(ground.stations["h1"])
    for destination in ("db-1", "db-2"):
        for family in FAMILIES:
            flow = ground.flow("icmp", destination, 0, family)
            answer = ground.at("web-1").do("probe", flows=[{**flow._asdict(), "size": 4000}], quiet=3.0)
            assert answer == [[ground.address("web-1", family), 0]]
    assert fragments(ground.stations["h1"]) == before


def test_another_underlay_mtu_and_no_agent_running(make_lab: Callable[..., Lab]) -> None:
    """Workloads get the larger MTU, still without fragments; and traffic needs no agent."""
    lab = make_lab(2, 2, mtu=4000, share=[FOLDER])
    with Fleet() as fleet:
        ground = Ground(lab, fleet)
        try:
            ground.start()
            ground.declare(*ground.base())
            assert ground.at("web-1").do("device", name="eth0")["mtu"] == 3950
            move_much(ground, "web-1", "db-2", 3950)
            fleet.close()
            for host in lab.hosts.values():
                running = eventually(lambda: host.run(["ps", "-eo", "args"]).stdout, lambda all_: " serve " not in all_)  # noqa: B023
                assert " serve " not in running
            assert matrix.wrong(ground, (), ground.reached(matrix.flows(ground))) == []
        finally:
            ground.close()
