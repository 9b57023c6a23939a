"""`explain` against the model of a node: of a first packet between any two places it says what becomes of it."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.topology import GATEWAY_IPV4, GATEWAY_IPV6
from bpfleet.errors import InvalidInput
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.observe.events import VERDICTS
from bpfleet.observe.explain import explain
from tests import fleet
from tests.packet import frames as f
from tests.reference import fleets
from tests.reference.ends import HOST, REMOTE_NODE, WAITING, WORLD, Ends
from tests.reference.judge import Declared
from tests.reference.node import Fate, Node
from tests.reference.reading import Address
from tests.reference.tunnel import Tunnel

TUNNEL_PORT = 8472
ON = {"a": 1, "b": 1, "c": 2, "late": 1, "later": 2}
"""Which node the endpoints are on. The last two have no identity yet."""
HELD = {"h1": ("192.168.77.101", "2001:db8:77::1"), "h2": ("192.168.77.102", "2001:db8:77::2")}
"""Addresses of nodes that no document names."""
GATEWAYS = (GATEWAY_IPV4, GATEWAY_IPV6)
ENDPOINTS = {
    address: name
    for number, (name, on) in enumerate(ON.items(), 1)
    for address in (f"10.77.{on}.{number}", f"fd77:0:0:{on}::{number:x}")
}
NODES = {address: node for number, node in ((1, "h1"), (2, "h2")) for address in (f"192.168.77.{number}", *HELD[node])}
OURS = (*ENDPOINTS, *NODES)
WORKLOADS = {
    "h1": (ipaddress.ip_network("10.77.1.0/24"), ipaddress.ip_network("fd77:0:0:1::/64")),
    "h2": (ipaddress.ip_network("10.77.2.0/24"), ipaddress.ip_network("fd77:0:0:2::/64")),
}
HOLES = ("10.77.1.200", "10.77.2.200", "fd77:0:0:1::200", "fd77:0:0:2::200")
STRANGERS = (*fleets.OUTSIDE, *HOLES, "169.254.7.7")
BESIDES = (*GATEWAYS, "fe80::77", "224.0.0.1", "ff02::1", "ff05::7", "255.255.255.255", "240.0.0.1")
PORTS = (*fleets.PORTS, TUNNEL_PORT, TUNNEL_PORT, 67, 68, 546, 547)
MESSAGES = {
    "icmp": ((8, 0), (0, 0), (0, 1), (3, 1), (5, 1), (13, 0), (255, 255)),
    "icmpv6": ((128, 0), (129, 0), (129, 3), (1, 4), (130, 0), (133, 0), (135, 0), (137, 0), (143, 0), (255, 255)),
}
OF_FAMILY = {"icmp": 4, "icmpv6": 6}
SENT_FROM = {67: 68, 68: 67, 547: 546, 546: 547, TUNNEL_PORT: f.TUNNEL_SOURCE}
"""The sender's port of DHCP and of the tunnel; of all else any."""
OUTER = {node: ipaddress.ip_address(f"192.168.77.{node[1]}") for node in ("h1", "h2")}
MEMBERS = {
    **{ipaddress.ip_address(address): OUTER[f"h{ON[name]}"] for address, name in ENDPOINTS.items()},
    **{address: address for address in OUTER.values()},
}
NUMBERS = {REMOTE_NODE: 6}
for _name, _labels in fleets.IDENTITIES.items():
    NUMBERS[f"tunnel/{_name}"] = fleet.identity(_name, _labels).spec["number"]
RESERVED = frozenset({0, 1, 2, 5})
Judgement = Tuple[str, str, str, int]
"""Node, direction, verdict, rule."""


@dataclass(frozen=True)
class First:
    """A first packet; port: of ICMP (type, code)."""

    source: str
    destination: str
    protocol: str
    port: Any

    @property
    def frame(self) -> bytes:
        """As its sender would make it."""
        ends = self.source, self.destination
        if self.protocol.startswith("icmp"):
            kind, code = self.port
            discovers = self.protocol == "icmpv6" and 133 <= kind <= 137
            reports = self.protocol == "icmpv6" and kind in (130, 131, 132, 143)
            is_of_hosts = not {self.source, self.destination} & set(ENDPOINTS)
            hops = 255 if discovers else 1 if reports and is_of_hosts else 64
            return f.ether(f.icmp(*ends, kind, struct.pack("!HH", 7, 1) + bytes(20), code, hops=hops))
        ports = SENT_FROM.get(self.port, 40000), self.port
        if self.protocol == "sctp":
            return f.ether(f.sctp(*ends, ports))
        return f.ether(f.tcp(*ends, ports) if self.protocol == "tcp" else f.udp(*ends, ports))

    @property
    def families(self) -> Set[int]:
        """IP versions of its ends and its protocol."""
        ends = {ipaddress.ip_address(end).version for end in (self.source, self.destination)}
        return ends | {OF_FAMILY[self.protocol]} if self.protocol in OF_FAMILY else ends

    @property
    def has_mapped_end(self) -> bool:
        """Whether an IPv4 address is written as IPv6."""
        return any("::ffff:" in end for end in (self.source, self.destination))


def others(source: str) -> List[str]:
    """What else there is to ask about from there."""
    known = OURS if source in STRANGERS else (*OURS, *STRANGERS, *BESIDES)
    own = NODES.get(source)
    return [one for one in known if one != source and (own is None or NODES.get(one) != own)]


def destinations(source: str) -> List[str]:
    """Those of the same family."""
    return [one for one in others(source) if (":" in one) == (":" in source)]


@st.composite
def first_packets(draw: st.DrawFn) -> First:
    """Of any two places, of which one at least is an endpoint or a node. What one says to itself passes no device."""
    source = draw(st.sampled_from((*OURS, *OURS, *STRANGERS)))
    destination = draw(st.sampled_from(destinations(source)))
    protocol = draw(st.sampled_from(("tcp", "udp", "udp", "sctp", "icmpv6" if ":" in source else "icmp")))
    port = draw(st.sampled_from(MESSAGES.get(protocol, PORTS)))
    return First(source, destination, protocol, port)


@st.composite
def first_packets_of_any_family(draw: st.DrawFn) -> First:
    """The same, with ends and protocols of both families, and IPv4 addresses written as IPv6."""
    source = draw(st.sampled_from((*OURS, *OURS, *STRANGERS)))
    ends = source, draw(st.sampled_from(others(source)))
    ends = tuple(f"::ffff:{end}" if ":" not in end and draw(st.booleans()) else end for end in ends)  # type: ignore[assignment]
    protocol = draw(st.sampled_from(("tcp", "udp", *OF_FAMILY)))
    return First(*ends, protocol, draw(st.sampled_from(MESSAGES.get(protocol, PORTS))))


def documents_of(cluster: List[Document]) -> List[Document]:
    """A drawn cluster with endpoints on both nodes."""
    kept = [one for one in cluster if one.kind != "endpoint"]
    for number, (name, on) in enumerate(ON.items(), 1):
        kept.append(fleet.endpoint(name, on, number, name if name in fleets.IDENTITIES else "nobody"))
    return kept


def node_of(address: str) -> str:
    """Where an endpoint's or node's address is."""
    return NODES.get(address) or f"h{ON[ENDPOINTS[address]]}"


def is_judged(documents: List[Document], number: int) -> bool:
    """Whether a policy has a say about a node itself."""
    state = Compiler().compile(DocumentSet(documents), fleet.facts(number)).state
    return bool(state.programs["from_underlay"].constants["host_policy"])


def model(documents: List[Document], number: int, judged: bool) -> Node:
    """A node of the cluster."""
    me = f"h{number}"
    places: Dict[Address, str] = {ipaddress.ip_address(one): HOST for one in (*GATEWAYS, *HELD[me])}
    for address, name in ENDPOINTS.items():
        away = f"tunnel/{name if name in fleets.IDENTITIES else WAITING}"
        places[ipaddress.ip_address(address)] = name if ON[name] == number else away
    places[ipaddress.ip_address("192.168.77.1")] = HOST if number == 1 else REMOTE_NODE
    places[ipaddress.ip_address("192.168.77.2")] = HOST if number == 2 else REMOTE_NODE
    identities = {name: name if name in fleets.IDENTITIES else WAITING for name, on in ON.items() if on == number}
    # The judge asks for the node by one name.
    own = [one for one in documents if one.kind != "node"] + [fleet.node(1, labels=fleets.NODE_LABELS[me])]
    cluster = documents[0].spec
    failsafe = cluster.get("failsafe_ports", [{"protocol": "tcp", "port": 22, "direction": "ingress"}])
    return Node(
        Ends(places, identities, Declared(tuple(own))),
        TUNNEL_PORT,
        {4: ipaddress.ip_address(GATEWAY_IPV4), 6: ipaddress.ip_address(GATEWAY_IPV6)},
        is_judged=judged,
        failsafe=frozenset((one["protocol"], one["port"], one["direction"]) for one in failsafe),
        takes_in=lambda source, destination: destination.version == 6 and destination.is_link_local,
    )


class Journey:
    """A packet's way through the models of both nodes."""

    def __init__(self, nodes: Mapping[str, Node], packet: First) -> None:
        self.nodes, self.packet = nodes, packet
        self.judged: List[Judgement] = []
        self.reason = ""
        """Why it was dropped; of policy "denied", as the rule says the rest."""
        self._go()

    def _go(self) -> None:
        source, destination = self.packet.source, self.packet.destination
        frame = self.packet.frame
        if source in ENDPOINTS:
            name = ENDPOINTS[source]
            here = f"h{ON[name]}"
            fate = self._met(here, self.nodes[here].sends(name, frame))
            if fate.reason == "to_tunnel":
                self._out_of_tunnel()
            elif fate.reason == "to_stack" and self._place(here, destination) == WORLD:
                self._out(here, name)
        elif source in NODES and destination in ENDPOINTS and ON[ENDPOINTS[destination]] == int(NODES[source][1]):
            self._met(NODES[source], self.nodes[NODES[source]].receives(ENDPOINTS[destination], frame, ""))
        elif source in NODES:
            self._out(NODES[source], "")
        else:
            self._in()

    def _out(self, here: str, via: str) -> None:
        """By the stack's routes: into the tunnel for whatever may be another node's workload."""
        parsed = ipaddress.ip_address(self.packet.destination)
        if any(parsed in network for there in WORKLOADS if there != here for network in WORKLOADS[there]):
            if self._met(here, self.nodes[here].enters_tunnel(self.packet.frame, via)).passes:
                self._out_of_tunnel()
            return
        leaves = self._met(here, self.nodes[here].leaves("eth0", self.packet.frame, via)).passes
        if leaves and self.packet.destination in NODES:
            self._in()

    def _in(self) -> None:
        """By a device of the destination's node."""
        to, there = ENDPOINTS.get(self.packet.destination), node_of(self.packet.destination)
        fate = self._met(there, self.nodes[there].comes("eth0", self.packet.frame))
        if to is not None and fate.passes:
            self._met(there, self.nodes[there].receives(to, self.packet.frame, "eth0"))

    def _out_of_tunnel(self) -> None:
        here = node_of(self.packet.source)
        there = node_of(self.packet.destination)
        number = NUMBERS.get(self._place(there, self.packet.source), NUMBERS[REMOTE_NODE])
        tunnel = Tunnel(self.nodes[there], MEMBERS, NUMBERS, RESERVED)
        self._met(there, tunnel.arrives(OUTER[here], number, self.packet.frame))

    def _place(self, node: str, address: str) -> str:
        return self.nodes[node].ends.place(ipaddress.ip_address(address))

    def _met(self, node: str, fate: Fate) -> Fate:
        for verdict, rule, direction in fate.events:
            if rule:
                self.judged.append((node, direction, VERDICTS[verdict], rule))
        if not fate.passes:
            self.reason = "denied" if fate.reason.startswith("denied_by") else fate.reason
        return fate


def explained(documents: DocumentSet, packet: First) -> Dict[str, Any]:
    """What `explain` says of it."""
    port, message = (None, packet.port) if isinstance(packet.port, tuple) else (packet.port, (None, None))
    return explain(documents, packet.source, packet.destination, packet.protocol, port, message, HELD)


def compare(documents: List[Document], packets: Iterable[First]) -> None:
    """Who judges each packet, by which rules, and what becomes of it."""
    held = DocumentSet(documents)
    judged = {number: is_judged(documents, number) for number in (1, 2)}
    for packet in packets:
        met = Journey({f"h{number}": model(documents, number, judged[number]) for number in judged}, packet)
        answer = explained(held, packet)
        said: List[Judgement] = []
        reason = ""
        for entry in answer["judged"]:
            if "rule_id" in entry:
                said.append((entry["node"], entry["direction"], entry["verdict"], entry["rule_id"]))
            if entry["verdict"] in ("denied", "dropped"):
                reason = entry.get("reason", "denied")
                break
        assert (said, reason) == (met.judged, met.reason), (packet, answer)
        assert not entry.get("reason") or entry["reason"] in ENUMS["reason"]
        audited = any(verdict == "audited" for _, _, verdict, _ in said)
        passes = "audited" if audited else "allowed"
        assert answer["verdict"] == (passes if not reason else "denied" if reason == "denied" else "dropped"), answer


@settings(max_examples=100, deadline=None)
@given(fleets.clusters(), st.lists(first_packets(), min_size=1, max_size=25))
def test_explain_says_what_becomes_of_a_first_packet(cluster: List[Document], packets: List[First]) -> None:
    compare(documents_of(cluster), packets)


@settings(max_examples=100, deadline=None)
@given(fleets.clusters(), st.lists(first_packets_of_any_family(), min_size=1, max_size=25))
def test_what_no_packet_can_be_has_no_verdict(cluster: List[Document], packets: List[First]) -> None:
    """Of two families, or of a protocol of the other one, there is no packet. One with a mapped address can be made,
    and no endpoint's programs let it pass."""
    documents = documents_of(cluster)
    held = DocumentSet(documents)
    for packet in packets:
        if len(packet.families) == 1 and not packet.has_mapped_end:
            assert explained(held, packet)["verdict"] in {*VERDICTS.values()}
            continue
        with pytest.raises(InvalidInput) as refused:
            explained(held, packet)
        assert refused.value.field in ("source", "destination", "protocol") and refused.value.remedy, packet
        if len(packet.families) == 1:
            assert {fate.reason for fate in fates(documents, packet)} <= {"malformed"}, packet


def fates(documents: List[Document], packet: First) -> Iterator[Fate]:
    """Of a packet at the devices of the endpoints that its ends are, however their addresses are written."""
    sender, receiver = (ENDPOINTS.get(end.replace("::ffff:", "")) for end in (packet.source, packet.destination))
    if sender is not None:
        yield model(documents, ON[sender], False).sends(sender, packet.frame)
    if receiver is not None:
        yield model(documents, ON[receiver], False).receives(receiver, packet.frame, "eth0")


CLOSED = (
    fleet.policy("endpoints", {}, ingress=[], egress=[{"peers": [{"entity": "world"}]}]),
    fleet.node_policy("hosts", {}, ingress=[], egress=[]),
)
OPEN = (fleet.node_policy("hosts", {}, ingress=[{}], egress=[{}]),)
_OURS = [{"peers": [{"entity": "cluster"}, {"labels": {}}]}]
INSIDE = (
    fleet.policy("endpoints", {}, ingress=_OURS, egress=_OURS),
    fleet.node_policy("hosts", {}, ingress=_OURS, egress=_OURS, default_deny={"egress": False}),
)
"""With rules for all of the fleet, of which the endpoints that wait for their identities are not yet part."""


@pytest.mark.parametrize("policies", [(), OPEN, CLOSED, INSIDE], ids=("none", "open", "closed", "inside"))
@pytest.mark.parametrize("source", [*ENDPOINTS, *NODES, "8.8.8.8", "10.77.2.200", "2620::7", "fd77:0:0:1::200"])
def test_explain_of_every_two_places(source: str, policies: Tuple[Document, ...]) -> None:
    """What policy does not decide depends on where the ends are, and on few messages and ports."""
    v6 = ":" in source
    asked: List[Tuple[str, Any]] = [("udp", port) for port in (53, TUNNEL_PORT, 546 if v6 else 68, 547 if v6 else 67)]
    if v6:
        asked += [("icmpv6", (kind, 0)) for kind in (128, 129, 134, 135, 143)]
    else:
        asked += [("icmp", (8, 0)), ("icmp", (0, 0)), ("tcp", 22)]
    packets = [First(source, destination, *what) for destination in destinations(source) for what in asked]
    compare(documents_of([*fleets.world({}), *policies]), packets)
