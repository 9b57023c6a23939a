"""A node as its workloads meet it: a model of what becomes of a packet at an endpoint's device, packet after packet.

It reads frames by reading.py and asks judge.py about policy; what it adds is addresses, connections and fragments. Time
stands still in it. Services, and policies of the node itself, are not in it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from bpfleet.model.document import Document
from tests.reference.judge import ALLOW, AUDIT, DENY, Flow, Verdict, judge, rules_with_ports
from tests.reference.reading import ICMP, ICMP6, RST, TCP, UDP, Address, Reading, Unreadable, read

NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmpv6"}
INGRESS, EGRESS = "ingress", "egress"
ARP = b"\x08\x06"
CLIENT_PORTS = ((68, 67), (546, 547))
"""Of DHCP and DHCPv6, as a client sends: RFC 2131 4.1, RFC 8415 7.2."""
SERVER_PORTS = ((67, 68), (547, 546))
Key = Tuple[Address, Address, int, int, int, str]
Heard = Tuple[str, int, str]
"""Of an event: verdict, rule, direction."""


@dataclass
class Record:
    """A connection as one end's policy judged it: under which policies, at which device, who is at the
    other end, by which way that is reached (whoever it is: the place that it came from), and the answer."""

    revision: int
    at: str
    peer: str
    way: str
    answer: Verdict


@dataclass(frozen=True)
class Fate:
    """What becomes of a packet: the reason it ends with, and every event."""

    reason: str
    events: Tuple[Heard, ...] = ()
    audited: int = 0


class Dropped(Exception):
    """By that reason."""


class Unsaid(Exception):
    """Whether a fragment without ports passes depends on whether rules that name ports for some are for anybody."""


@dataclass
class Node:
    """This node. places: address -> who has it: an endpoint here, "tunnel/<identity>", "host" or "remote-node"; what is
    not in it is the world. peers: of an endpoint's name, what judge.py calls it."""

    places: Mapping[Address, str]
    endpoints: Tuple[str, ...]
    tunnel_port: int
    documents: List[Document] = field(default_factory=list)
    revision: int = 1
    records: Dict[Key, Record] = field(default_factory=dict)
    datagrams: Dict[Tuple[Any, ...], Reading] = field(default_factory=dict)
    events: List[Heard] = field(default_factory=list)
    audited: int = 0

    def change(self, documents: List[Document]) -> None:
        """Other policies, from the next packet on."""
        self.documents = documents
        self.revision += 1

    def sends(self, name: str, frame: bytes) -> Fate:
        """A workload sends a frame."""
        return self._fate(lambda: self._sends(name, frame))

    def receives(self, name: str, frame: bytes, via: str) -> Fate:
        """The host's stack sends a frame to a workload; it came in by that device, or is the host's own ("")."""
        return self._fate(lambda: self._receives(name, frame, via))

    def _fate(self, way: Any) -> Fate:
        self.events, self.audited = [], 0
        try:
            reason = way()
        except (Dropped, Unreadable) as dropped:
            reason = str(dropped)
            if not reason.startswith("denied"):
                self.events.append(("drop", 0, ""))
        return Fate(reason, tuple(self.events), self.audited)

    def _sends(self, name: str, frame: bytes) -> str:
        if frame[12:14] == ARP:
            return "neighbour"
        packet = self._with_first(name, read(frame))
        to = self.places.get(packet.destination, "world")
        is_for_gateway = _is_discovery(packet) or _is_dhcp(packet, CLIENT_PORTS)
        if is_for_gateway and (_is_link_local(packet.destination) or to == "host"):
            return "neighbour"
        # A workload is no router: it reports only about what was sent to itself.
        if packet.kind == "related" and packet.ends[0] != packet.source:
            packet = replace(packet, kind="untracked")
        if _is_multicast(packet.destination):
            raise Dropped("multicast")
        if self.places.get(packet.source) != name:
            raise Dropped("spoofed_source")
        if to == "unattached":
            raise Dropped("no_endpoint")
        if packet.protocol == UDP and packet.ports[1] == self.tunnel_port and to in ("host", "remote-node"):
            raise Dropped("own_tunnel")
        to = self._admit(name, EGRESS, packet, to)
        self._remember(name, packet)
        if to in ("world", "host"):
            return "to_stack"
        if to in self.endpoints:
            self._admit(to, INGRESS, packet, name)
        if packet.hops <= 1:
            raise Dropped("hop_limit")
        return "to_endpoint" if to in self.endpoints else "to_tunnel"

    def _receives(self, name: str, frame: bytes, via: str) -> str:
        if frame[12:14] == ARP:
            return "neighbour"
        packet = self._with_first(name, read(frame))
        if not via and (_is_discovery(packet) or _is_dhcp(packet, SERVER_PORTS)):
            return "neighbour"
        if _is_multicast(packet.destination):
            raise Dropped("multicast")
        if self.places.get(packet.destination) != name:
            raise Dropped("unknown_destination")
        peer = self.places.get(packet.source, "world")
        devices = {"world": via, "host": "", "remote-node": "vxlan", "unattached": ""}
        if via and via != devices.get(peer, "vxlan" if peer.startswith("tunnel/") else peer):
            raise Dropped("spoofed_source")
        key = self._find(INGRESS, packet)
        if not via and not (key and key == _reverse(_key(INGRESS, packet))):
            peer = "host"
        self._admit(name, INGRESS, packet, peer)
        self._remember(name, packet)
        return "to_endpoint"

    def _with_first(self, at: str, packet: Reading) -> Reading:
        """A later fragment has what its first one had."""
        if packet.part != "later":
            return packet
        first = self.datagrams.get((at, *packet.datagram))
        if first:
            kind = "any" if first.kind == "opens" else first.kind
            packet = replace(
                packet,
                kind=kind,
                protocol=first.protocol,
                connection_protocol=first.protocol,
                ports=first.ports,
                message=first.message,
            )
        if packet.protocol == TCP and packet.offset < 20:
            raise Dropped("malformed")
        return packet

    def _remember(self, at: str, packet: Reading) -> None:
        if packet.part == "first" and packet.kind != "related":
            self.datagrams[(at, *packet.datagram)] = packet

    def _find(self, direction: str, packet: Reading) -> Optional[Key]:
        """The connection a packet belongs to, as its initiator or in answer: if it can be, one that was not denied."""
        if packet.kind in ("opens", "untracked", "fragment"):
            return None
        own, reply = _key(direction, packet), _reverse(_key(direction, packet))
        keys = [reply, own] if packet.ports[0] < packet.ports[1] else [own, reply]
        known = [key for key in keys if key in self.records and not (key == own and packet.kind == "reply_only")]
        good = [key for key in known if not self.records[key].answer.drops]
        if good:
            return good[0]
        return own if own in known else reply if reply in known else None

    def _admit(self, me: str, direction: str, packet: Reading, peer: str) -> str:
        """One end's judgement of a packet from or to a place. Returns by which way to go on. Raises Dropped."""
        way = peer
        key = self._find(direction, packet)
        record = self.records[key] if key else None
        if record and key and record.revision == self.revision and record.at == me:
            if record.answer.drops:
                self._hear(record.answer, key[5])
            return way if packet.kind == "related" else record.way
        if record and key:
            if packet.kind == "related" and direction == INGRESS:  # perhaps a router's: the connection's end is judged
                peer = self.places.get(packet.ends[0], "world")
            direction = key[5]
            if direction == INGRESS and record.peer == "host" and peer == "world":
                peer = "host"
            other, protocol, port = key[direction == EGRESS], key[4], self._port_of(key)
        elif packet.kind == "reply_only":
            raise Dropped("no_connection")
        else:
            other = packet.source if direction == INGRESS else packet.destination
            protocol = packet.protocol
            port = packet.message if protocol in (ICMP, ICMP6) else packet.ports[1]
        if packet.kind == "fragment":
            port = (-1, -1) if protocol in (ICMP, ICMP6) else -1
        flow = Flow(direction, me, self._who(peer, other), NAMES.get(protocol, str(protocol)), port)
        answer = judge(self.documents, flow) if peer != me else Verdict(ALLOW, 0)
        self.audited += answer.verdict == AUDIT
        if packet.kind == "fragment":
            self._fragment(flow, answer, peer == me)
            return way
        opens = packet.kind in ("any", "opens") and not packet.flags & RST and not answer.drops
        if packet.kind != "related" and (record or opens):
            self.records[key or _key(direction, packet)] = Record(self.revision, me, peer, way, answer)
        if answer.drops or not record or answer.verdict == AUDIT:
            self._hear(answer, direction)
        return way

    def _hear(self, answer: Verdict, direction: str) -> None:
        self.events.append((answer.verdict, answer.rule_id, direction))
        if answer.drops:
            raise Dropped("denied_by_rule" if answer.verdict == DENY else "denied_by_default")

    def _fragment(self, flow: Flow, answer: Verdict, is_self: bool) -> None:
        """One without ports passes where nothing that is enforced in its direction names any, and the rest lets it."""
        named = [] if is_self else rules_with_ports(self.documents, flow)
        if answer.drops or any(rule.get("peers") is None for rule in named):
            raise Dropped("fragment")
        if named:
            raise Unsaid

    def _who(self, place: str, address: Address) -> str:
        """What judge.py calls somebody."""
        if place == "world":
            return str(address)
        return place if place in ("host", "remote-node") else f"identity/{place.split('/')[-1]}"

    @staticmethod
    def _port_of(key: Key) -> Any:
        return {ICMP: (8, 0), ICMP6: (128, 0)}.get(key[4], key[3])


def _key(direction: str, packet: Reading) -> Key:
    return (*packet.ends, *packet.ports, packet.connection_protocol, direction)


def _reverse(key: Key) -> Key:
    return key[1], key[0], key[3], key[2], key[4], EGRESS if key[5] == INGRESS else INGRESS


def _is_discovery(packet: Reading) -> bool:
    """Neighbour and router discovery, from the link itself (RFC 4861)."""
    return (
        packet.protocol == ICMP6
        and packet.kind == "untracked"
        and 133 <= packet.message[0] <= 137
        and packet.hops == 255
    )


def _is_dhcp(packet: Reading, ports: Tuple[Tuple[int, int], ...]) -> bool:
    wanted = ports[0] if packet.source.version == 4 else ports[1]
    return packet.protocol == UDP and packet.kind == "any" and packet.ports == wanted


def _is_multicast(address: Address) -> bool:
    return address.packed[0] >= 224 if address.version == 4 else address.packed[0] == 0xFF


def _is_link_local(address: Address) -> bool:
    """On this link only; of IPv4 the broadcast that DHCP goes to."""
    if address.version == 4:
        return address == ipaddress.ip_address("255.255.255.255")
    return address in ipaddress.ip_network("fe80::/10") or address in ipaddress.ip_network("ff02::/16")
