"""The tunnel with real frames: BPF_PROG_TEST_RUN has no tunnel keys, so the programs are attached to real devices."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, Result, detach
from tests.packet.world import (
    ADDRESSES,
    DEFAULT_DENY,
    IDENTITIES,
    UNDERLAY,
    UNDERLAY_2,
    UNDERLAY_6,
    UNDERLAY_MAC,
    Policy,
    Rule,
)

pytestmark = pytest.mark.root

PORTS, BACK = (40000, 80), (80, 40000)
STRANGER = "192.0.2.66"


class Wire(NamedTuple):
    """The far ends of the real devices."""

    datapath: Datapath
    network: socket.socket
    workload: socket.socket

    def receive(self, outer: str, vni: int, inner: bytes, local: str = UNDERLAY) -> Result:
        """A VXLAN packet from the network."""
        return self.receive_bare(f.vxlan(outer, local, world.TUNNEL_PORT, vni, f.ether(inner)))

    def receive_bare(self, packet: bytes) -> Result:
        """Any packet from the network."""
        with self.datapath.watch() as seen:
            self.network.send(f.ether(packet, destination=UNDERLAY_MAC))
        return seen[0]

    def send(self, packet: bytes) -> Tuple[Result, List[Outer]]:
        """A packet of the workload a, and the tunnel packets that leave the node for it."""
        _drain(self.network)
        with self.datapath.watch() as seen:
            self.workload.send(f.ether(packet))
        return seen[0], _drain(self.network)


class Outer(NamedTuple):
    """A tunnel packet as seen in the network."""

    source: str
    destination: str
    vni: int
    inner: bytes


def _drain(network: socket.socket) -> List[Outer]:
    found = []
    while True:
        try:
            frame, origin = network.recvfrom(65536)
        except BlockingIOError:
            return found
        if origin[2] == socket.PACKET_OUTGOING:
            continue
        v6 = frame[12:14] == b"\x86\xdd"
        at = 14 + (40 if v6 else 20)
        if frame[20 if v6 else 23] != f.UDP or struct.unpack_from("!H", frame, at + 2)[0] != world.TUNNEL_PORT:
            continue
        family, first, size = (socket.AF_INET6, 22, 16) if v6 else (socket.AF_INET, 26, 4)
        source, destination = (socket.inet_ntop(family, frame[start : start + size]) for start in (first, first + size))
        vni = struct.unpack_from("!I", frame, at + 12)[0] >> 8
        found.append(Outer(source, destination, vni, frame[at + 16 + 14 :]))


@pytest.fixture
def wire(datapath: Datapath) -> Iterator[Wire]:
    """All programs attached at a node that no policy selects."""
    devices = world.DEVICES
    links = [
        datapath.attach("from_endpoint", devices["a"]),
        datapath.attach("to_endpoint", devices["a"], egress=True),
        datapath.attach("from_tunnel", devices["vxlan"]),
        datapath.attach("to_tunnel", devices["vxlan"], egress=True),
    ]
    with ends(datapath, links) as one:
        yield one


@pytest.fixture
def judged_wire(host_datapath: Datapath) -> Iterator[Wire]:
    """A node that a policy selects. What its stack answers meets no program."""
    with ends(host_datapath, [host_datapath.attach("from_tunnel", world.DEVICES["vxlan"])]) as one:
        yield one


@contextlib.contextmanager
def ends(datapath: Datapath, links: List[int]) -> Iterator[Wire]:
    """Sockets at the far ends, while programs are attached."""
    every = 3  # ETH_P_ALL
    network, workload = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every)) for _ in range(2))
    try:
        network.bind(("wire", every))
        workload.bind(("workload", every))
        network.setblocking(False)
        yield Wire(datapath, network, workload)
    finally:
        network.close()
        workload.close()
        for link in links:
            detach(link)


def _inner(family: int, source: str = "c", destination: str = "a", flags: int = f.SYN) -> bytes:
    x = ADDRESSES[family]
    return f.tcp(x[source], x[destination], PORTS, flags)


def _only(result: Result) -> Dict[str, Any]:
    assert len(result.events) == 1, result
    return result.events[0]


def test_encapsulates_with_the_identity_as_vni(wire: Wire, family: int) -> None:
    packet = _inner(family, "a", "c")
    result, outers = wire.send(packet)
    assert result.counters == {"to_tunnel": 1}
    x = ADDRESSES[family]
    want = f.tcp(x["a"], x["c"], PORTS, hops=63)
    assert outers == [Outer(UNDERLAY, UNDERLAY_2, IDENTITIES["a"], want)]


def test_encapsulates_over_ipv6(wire: Wire, family: int) -> None:
    result, outers = wire.send(_inner(family, "a", "d"))
    assert result.counters == {"to_tunnel": 1}
    x = ADDRESSES[family]
    want = f.tcp(x["a"], x["d"], PORTS, hops=63)
    assert outers == [Outer("2001:db8::1", UNDERLAY_6, IDENTITIES["a"], want)]


def test_host_stack_sends_as_remote_node(wire: Wire, family: int) -> None:
    x = ADDRESSES[family]
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    _drain(wire.network)
    with socket.socket(kind, socket.SOCK_DGRAM) as host, wire.datapath.watch() as seen:
        host.bind((x["host"], 40000))
        host.sendto(b"hi", (x["c"], 80))
    assert seen[0].counters == {"to_tunnel": 1} and not seen[0].events
    (outer,) = _drain(wire.network)
    assert outer[:3] == (UNDERLAY, UNDERLAY_2, IDENTITIES["node2"])
    assert outer.inner[-2:] == b"hi"


def test_receives_with_policy_and_rule(wire: Wire, family: int) -> None:
    world.apply(wire.datapath, Policy("a", (Rule("ingress", 71, IDENTITIES["c"], f.TCP, 80),), ("ingress",)))
    event = _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family)))
    assert (event["verdict"], event["rule_id"], event["hook"]) == ("allow", 71, "from_tunnel")
    assert (event["source_identity"], event["destination_identity"]) == (IDENTITIES["c"], IDENTITIES["a"])
    result = wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family, flags=f.ACK))
    assert (result.counters, result.events) == ({"to_endpoint": 1}, [])


def test_receives_over_ipv6(wire: Wire, family: int) -> None:
    result = wire.receive(UNDERLAY_6, IDENTITIES["d"], _inner(family, "d"), local="2001:db8::1")
    assert result.counters == {"to_endpoint": 1}


def test_denies(wire: Wire, family: int) -> None:
    world.apply(wire.datapath, Policy("a", (Rule("ingress", 71, IDENTITIES["b"]),), ("ingress",)))
    event = _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family)))
    assert (event["verdict"], event["rule_id"]) == ("default_deny", DEFAULT_DENY["ingress"])


FORGERIES = [
    ("a stranger's packet", STRANGER, IDENTITIES["c"], "c", "tunnel_unknown_node"),
    ("a workload as a node", "10.1.0.2", IDENTITIES["b"], "b", "tunnel_unknown_node"),
    ("a source of another member", UNDERLAY_2, IDENTITIES["d"], "d", "tunnel_forged_source"),
    ("a source of this node", UNDERLAY_2, IDENTITIES["b"], "b", "tunnel_forged_source"),
    ("a source of the world", UNDERLAY_2, IDENTITIES["c"], "world", "tunnel_forged_source"),
    ("another identity", UNDERLAY_2, IDENTITIES["b"], "c", "tunnel_forged_identity"),
    ("remote-node by a workload", UNDERLAY_2, 6, "c", "tunnel_forged_identity"),
    ("host", UNDERLAY_2, 1, "c", "tunnel_reserved"),
    ("world", UNDERLAY_2, 2, "c", "tunnel_reserved"),
    ("unknown", UNDERLAY_2, 0, "c", "tunnel_reserved"),
    ("waiting", UNDERLAY_2, 5, "c", "tunnel_reserved"),
]


@pytest.mark.parametrize(("what", "outer", "vni", "source", "reason"), FORGERIES, ids=[one[0] for one in FORGERIES])
@pytest.mark.parametrize("established", [False, True], ids=["new", "established"])
def test_forgery(
    wire: Wire, family: int, what: str, outer: str, vni: int, source: str, reason: str, established: bool
) -> None:
    if established:
        assert wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family)).counters == {"to_endpoint": 1}
    event = _only(wire.receive(outer, vni, _inner(family, source, flags=f.ACK)))
    assert (event["reason"], event["verdict"], event["hook"]) == (reason, "drop", "from_tunnel"), what


def test_fragments(wire: Wire, family: int) -> None:
    """A later fragment is what its first one was; a first one that nobody believes says nothing."""
    x = ADDRESSES[family]
    rule = world.Rule("ingress", 12, IDENTITIES["c"], f.UDP, 80)
    world.apply(wire.datapath, Policy("a", (rule,), ("ingress",)))
    first = f.udp(x["c"], x["a"], PORTS, more=True)
    later = f.ip(x["c"], x["a"], f.UDP, b"x" * 16, fragment=1480)
    assert wire.receive(UNDERLAY_2, IDENTITIES["b"], first).counters == {"tunnel_forged_identity": 1}
    assert wire.receive(UNDERLAY_2, IDENTITIES["c"], later).counters == {"fragment": 1}
    for packet in (first, later):
        assert wire.receive(UNDERLAY_2, IDENTITIES["c"], packet).counters == {"to_endpoint": 1}
    assert wire.receive(UNDERLAY_2, IDENTITIES["b"], later).counters == {"tunnel_forged_identity": 1}


def test_to_this_host(wire: Wire, family: int) -> None:
    result = wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family, "c", "host"))
    assert result.counters["to_stack"] == 1 and not result.events


def test_to_a_judged_host(judged_wire: Wire, family: int) -> None:
    """By who sent it, which the tunnel says: a workload of another node, and that node."""
    x, wire = ADDRESSES[family], judged_wire
    rules = Rule("ingress", 71, IDENTITIES["c"], f.TCP, 80), Rule("ingress", 72, IDENTITIES["node2"], f.TCP, 81)
    world.apply(wire.datapath, Policy("host", rules, ("ingress", "egress")))
    for name, port, rule in (("c", 80, 71), ("c", 81, 0), ("node2", 80, 0), ("node2", 81, 72)):
        result = wire.receive(UNDERLAY_2, IDENTITIES[name], f.tcp(x[name], x["host"], (40000, port)))
        event = _only(result)
        assert (event["source_identity"], event["destination_identity"]) == (IDENTITIES[name], 1)
        assert (event["hook"], event["direction"]) == ("from_tunnel", "ingress")
        assert event["rule_id"] == (rule or DEFAULT_DENY["ingress"])
        assert result.counters == {"to_stack" if rule else "denied_by_default": 1}


def test_to_a_judged_host_from_packet_to_packet(judged_wire: Wire, family: int) -> None:
    """A connection, its answers into the tunnel, and its end with the policy; what no policy cuts; and errors."""
    x, wire = ADDRESSES[family], judged_wire
    me, c = x["host"], x["c"]

    def comes(packet: bytes) -> Tuple[str, ...]:
        result = wire.receive(UNDERLAY_2, IDENTITIES["c"], packet)
        return (*result.counters, *(f"{event['verdict']} {event['rule_id']}" for event in result.events))

    def goes(packet: bytes) -> str:
        (reason,) = wire.datapath.run("to_tunnel", f.ether(packet), world.DEVICES["vxlan"]).counters
        return reason

    rule = Rule("ingress", 71, IDENTITIES["c"], f.UDP, 80)
    world.apply(wire.datapath, Policy("host", (rule,), ("ingress", "egress")))
    assert goes(f.udp(me, c, BACK)) == "denied_by_default"
    assert comes(f.udp(c, me, PORTS, more=True)) == ("to_stack", "allow 71")
    assert comes(f.ip(c, me, f.UDP, b"x" * 16, fragment=1480)) == ("to_stack",)
    assert comes(f.udp(c, me, PORTS, number=8)) == ("to_stack",)
    assert goes(f.udp(me, c, BACK)) == "to_tunnel"
    assert goes(f.unreachable(me, c, f.udp(c, me, PORTS))) == "to_tunnel"
    assert comes(f.unreachable(c, me, f.udp(me, c, BACK))) == ("to_stack",)
    denied = ("denied_by_default", f"default_deny {DEFAULT_DENY['ingress']}")
    assert comes(f.unreachable(c, me, f.udp(me, c, (81, 40000)))) == denied
    assert comes(f.tcp(c, me, (50000, 22))) == ("to_stack", "allow 0")
    assert comes(f.tcp(c, me, (50000, 22), f.ACK)) == ("to_stack",)
    assert comes(f.udp(c, me, (50000, world.TUNNEL_PORT))) == ("own_tunnel", "drop 0")
    assert comes(f.tcp(c, me, BACK, f.SYN | f.ACK)) == ("no_connection", "drop 0")
    world.apply(wire.datapath, Policy("host", (), ("ingress", "egress")))
    assert comes(f.udp(c, me, PORTS)) == denied
    assert goes(f.udp(me, c, BACK)) == "denied_by_default"
    # Its name in the tunnel is looked at before any policy.
    forged = wire.receive(UNDERLAY_2, IDENTITIES["d"], f.tcp(c, me, (50000, 22)))
    assert forged.counters == {"tunnel_forged_identity": 1}


def test_tunnel_in_tunnel(wire: Wire, family: int) -> None:
    x = ADDRESSES[family]
    inner = f.udp(x["c"], x["host"], (50000, world.TUNNEL_PORT))
    assert _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], inner))["reason"] == "own_tunnel"


def test_for_nobody_here(wire: Wire, family: int) -> None:
    event = _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family, "c", "d")))
    assert event["reason"] == "unknown_destination"
    group = f.udp(ADDRESSES[family]["c"], "224.0.0.251" if family == 4 else "ff02::fb", (5353, 5353))
    assert _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], group))["reason"] == "multicast"


def test_reply_through_the_tunnel(wire: Wire, family: int) -> None:
    """A remote workload answers an endpoint that lets nobody in, and another node's host as well."""
    x = ADDRESSES[family]
    world.apply(wire.datapath, Policy("a", (), ("ingress",)))
    for name in ("c", "node2"):
        wire.send(f.tcp(x["a"], x[name], PORTS))
        answer = f.tcp(x[name], x["a"], BACK, f.SYN | f.ACK)
        assert wire.receive(UNDERLAY_2, IDENTITIES[name], answer).counters == {"to_endpoint": 1}


def test_established_record_is_for_its_member_only(wire: Wire, family: int) -> None:
    """After the peer moved to another node, its old node is no longer believed."""
    x = ADDRESSES[family]
    wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family))
    moved = {"identity": IDENTITIES["c"], "ifindex": 0, "tunnel_endpoint": UNDERLAY_6}
    wire.datapath.maps["addresses"].update({"address": x["c"]}, moved)
    wire.datapath.maps["node"].update({"index": 0}, world.node_record(addresses_revision=2))
    event = _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], _inner(family, flags=f.ACK)))
    assert event["reason"] == "tunnel_forged_source"


def test_error_about_a_connection(wire: Wire, family: int) -> None:
    """Related only if its own source is believed: the connection's record does not vouch for it."""
    x = ADDRESSES[family]
    world.apply(wire.datapath, Policy("a", (), ("ingress",)))
    sent = f.udp(x["a"], x["c"], PORTS)
    wire.send(sent)
    for source, want in (("c", {"to_endpoint": 1}), ("world", {"tunnel_forged_source": 1})):
        error = f.unreachable(x[source], x["a"], sent)
        assert wire.receive(UNDERLAY_2, IDENTITIES["c"], error).counters == want


def test_a_workload_elsewhere_reports_about_its_own_connections_only(wire: Wire, family: int) -> None:
    """It is no router, as none here is."""
    x = ADDRESSES[family]
    world.apply(wire.datapath, Policy("a", (), ("ingress",)))
    sent = f.udp(x["a"], x["world"], PORTS)
    wire.send(sent)
    event = _only(wire.receive(UNDERLAY_2, IDENTITIES["c"], f.unreachable(x["c"], x["a"], sent)))
    assert (event["verdict"], event["rule_id"]) == ("default_deny", DEFAULT_DENY["ingress"])
    assert wire.receive(UNDERLAY_2, IDENTITIES["node2"], f.unreachable(x["node2"], x["a"], sent)).events == []


def test_no_key_is_dropped(datapath: Datapath, family: int) -> None:
    result = datapath.run("from_tunnel", f.ether(_inner(family)), world.DEVICES["vxlan"])
    assert (result.action, result.counters) == ("shot", {"tunnel_key": 1})


@pytest.mark.parametrize("size", [0, 1, 19, 21, 39])
def test_half_a_header(wire: Wire, family: int, size: int) -> None:
    """BPF_PROG_TEST_RUN refuses such frames itself."""
    with wire.datapath.watch() as seen:
        wire.workload.send(f.ether(_inner(family, "a", "c")[:size], kind=0x86DD if family == 6 else 0x0800))
    assert seen[0].counters == {"truncated": 1}


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> int:
    """Of the inner packets."""
    return int(request.param)
