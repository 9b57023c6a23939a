"""Ends of connections: what the policy of one end makes of a packet, and what is kept of that.

An end is an endpoint of this node by its name, or the node itself ("host"). A place is where an address is: an end, an
endpoint elsewhere ("tunnel/<identity>") or not attached yet ("unattached/<identity>"), "remote-node", or the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Protocol, Tuple

from tests.reference.judge import ALLOW, AUDIT, DENY, Flow, Verdict
from tests.reference.reading import FIN, ICMP, ICMP6, RST, TCP, Address, Reading

INGRESS, EGRESS = "ingress", "egress"
HOST, WORLD, REMOTE_NODE, UNATTACHED = "host", "world", "remote-node", "unattached"
WAITING = "waiting"
NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmpv6"}

Key = Tuple[Address, Address, int, int, int, str]
"""Of a connection, as its initiator sends and as the end sees it: addresses, ports, protocol, direction."""
Heard = Tuple[str, int, str]
"""Of an event: verdict, rule, direction."""


def ticks(seconds: int) -> int:
    """Time is counted in ticks of 2^30 ns."""
    return math.ceil(seconds * 10**9 / 2**30)


LIVES_REPLIED, LIVES, LIVES_CLOSING = ticks(8000), ticks(60), ticks(10)


class Dropped(Exception):
    """By that reason."""


class Policies(Protocol):
    """What is declared. A flow's subject is an identity, or "host"."""

    def judge(self, flow: Flow) -> Verdict:
        """The verdict on the first packet of a connection."""

    def rules_with_ports(self, flow: Flow) -> List[Mapping[str, Any]]:
        """The rules that are enforced in the flow's direction for its subject and name ports or types for anybody."""


@dataclass
class Record:
    """A connection as one end's policy judged it: under which revision, at which end, from or to which place, and the
    answer. None: nobody judged it.

    translated: it goes to the frontend of a service.
    """

    revision: Any
    at: str
    way: str
    answer: Optional[Verdict]
    seen: int
    replied: bool = False
    finished: Tuple[bool, bool] = (False, False)
    translated: bool = False

    @property
    def denies(self) -> bool:
        """Whether it was allowed once and is no longer."""
        return bool(self.answer and self.answer.drops)

    def is_live(self, protocol: int, now: int) -> bool:
        """Whether it still counts."""
        lives = LIVES
        if protocol == TCP and (self.denies or self.replied):
            lives = LIVES_REPLIED
        if protocol == TCP and not self.denies and all(self.finished):
            lives = LIVES_CLOSING
        return now - self.seen <= lives

    def sees(self, packet: Reading, is_reply: bool, now: int) -> None:
        """A packet of it."""
        self.seen = now
        if packet.kind == "related":
            return
        self.replied |= is_reply and not packet.flags & RST
        if packet.flags & (FIN | RST):  # a reset may be a stranger's: it speaks for no more than one side
            self.finished = (self.finished[0], True) if is_reply else (True, self.finished[1])


@dataclass
class Found:
    """The connection that a packet belongs to, or else the key that one would have."""

    key: Key
    record: Optional[Record] = None
    is_reply: bool = False
    translated: bool = False


@dataclass
class Datagram:
    """The first fragment of one that was let through, as it came."""

    first: Reading
    seen: int


@dataclass
class Ends:
    """All ends on a node, and what they know. identities: of endpoints here, by name; WAITING of one that has none."""

    places: Dict[Address, str]
    identities: Mapping[str, str]
    policies: Optional[Policies] = None
    generation: int = 1
    addresses_revision: int = 1
    now: int = 0
    records: Dict[Key, Record] = field(default_factory=dict)
    datagrams: Dict[Tuple[Any, ...], Datagram] = field(default_factory=dict)
    came: Optional[Reading] = None
    events: List[Heard] = field(default_factory=list)
    audited: int = 0

    def place(self, address: Address) -> str:
        """Where an address is."""
        return self.places.get(address, WORLD)

    @property
    def revision(self) -> Tuple[int, int]:
        """What changes with any policy, and with anybody's address."""
        return self.generation, self.addresses_revision

    def begin(self, at: str, packet: Reading) -> Reading:
        """A packet comes to a device. A later fragment has what its first one had there."""
        packet = replace(packet, datagram=(at, packet.source, packet.destination, *packet.datagram))
        known = self.datagrams.get(packet.datagram) if packet.part == "later" else None
        if known and self.now - known.seen <= LIVES:
            first = known.first
            packet = replace(
                packet,
                kind="any" if first.kind == "opens" else first.kind,
                protocol=first.protocol,
                connection_protocol=first.protocol,
                ports=first.ports,
                message=first.message,
            )
        if packet.part == "later" and packet.protocol == TCP and packet.offset < 20:
            raise Dropped("malformed")
        self.came = packet
        return packet

    def of_endpoint(self, packet: Reading) -> Reading:
        """What an endpoint sends. It is no router: it reports only about what was sent to itself."""
        if packet.kind == "related" and packet.ends[0] != packet.source:
            ends = packet.source, packet.destination
            packet = replace(packet, kind="untracked", ends=ends, ports=(0, 0), connection_protocol=packet.protocol)
            self.came = packet
        return packet

    def remember(self) -> None:
        """The packet was let through."""
        if self.came and self.came.part == "first" and self.came.kind != "related":
            self.datagrams[self.came.datagram] = Datagram(self.came, self.now)

    def find(self, direction: str, packet: Reading) -> Found:
        """The connection a packet belongs to, as its initiator or in answer: if it can be, one that was not denied."""
        own = key_of(direction, packet)
        answered = reverse(own)
        if packet.kind in ("opens", "untracked", "fragment"):
            return Found(own)
        keys = [answered, own] if packet.ports[0] < packet.ports[1] else [own, answered]
        live = [key for key in keys if key in self.records and self.records[key].is_live(key[4], self.now)]
        known = [key for key in live if not (key == own and packet.kind == "reply_only")]
        good = [key for key in known if not self.records[key].denies]
        for key in (*good, own, answered):
            if key in known:
                record = self.records[key]
                return Found(key, record, key == answered, record.translated)
        return Found(own)

    def is_current(self, me: str, found: Found) -> bool:
        """Whether what was judged is what would be judged now."""
        return bool(found.record and found.record.revision == self.revision and found.record.at == me)

    def established(self, me: str, packet: Reading, found: Found) -> bool:
        """Whether a connection alone lets a packet pass. (An error about one is looked at more closely.)"""
        if packet.kind == "related" or not found.record or not self.is_current(me, found) or found.record.denies:
            return False
        found.record.sees(packet, found.is_reply, self.now)
        self.remember()
        return True

    def admit(self, me: str, direction: str, packet: Reading, place: str, found: Found) -> str:
        """One end's judgement of a packet from or to a place. Returns by which way to go on. Raises Dropped."""
        record, peer = found.record, place
        if self.identities.get(me) == WAITING:
            raise Dropped("waiting")
        if record and self.is_current(me, found):
            record.sees(packet, found.is_reply, self.now)
            if record.answer and record.denies:
                self.hear(record.answer, found.key[5])
            self.remember()
            return place if packet.kind == "related" else record.way
        if record:
            if packet.kind == "related" and direction == INGRESS:  # perhaps a router's: the connection's end is judged
                peer = self.place(packet.ends[0])
            direction = found.key[5]
            if record.way == HOST and peer == WORLD:
                peer = HOST  # by an address of its own that nobody told bpfleet of
            other, protocol, port = found.key[direction == EGRESS], found.key[4], _port_of(found.key)
        elif packet.kind == "reply_only":
            raise Dropped("no_connection")
        else:
            other = packet.source if direction == INGRESS else packet.destination
            protocol = packet.protocol
            port = packet.message if protocol in (ICMP, ICMP6) else packet.ports[1]
        if packet.kind == "fragment":
            port = (-1, -1) if protocol in (ICMP, ICMP6) else -1
        subject = me if me == HOST else self.identities[me]
        flow = Flow(direction, subject, self._who(peer, other), NAMES.get(protocol, str(protocol)), port)
        assert self.policies
        is_self = peer == me != HOST  # what the host sends to itself passes no device of ours
        answer = Verdict(ALLOW, 0) if is_self else self.policies.judge(flow)
        self.audited += answer.verdict == AUDIT
        if packet.kind == "fragment":
            self._fragment(self.policies, flow, answer, is_self)
            return place
        opens = packet.kind in ("any", "opens") and not packet.flags & RST and not answer.drops
        if packet.kind != "related":
            place = HOST if peer == HOST else place
            if record or opens:
                self._record(found, Record(self.revision, me, place, answer, self.now), packet)
        if answer.drops or not record or answer.verdict == AUDIT:
            self.hear(answer, direction)
        self.remember()
        return place

    def _record(self, found: Found, fresh: Record, packet: Reading) -> None:
        if found.record:
            fresh.replied, fresh.finished = found.record.replied, found.record.finished
        fresh.translated = found.translated and found.key[5] == EGRESS
        fresh.sees(packet, found.is_reply, self.now)
        self.records[found.key] = found.record = fresh

    def pass_unjudged(self, packet: Reading, found: Found, place: str) -> None:
        """A connection of the host that nobody judges is known from then on."""
        if found.record:
            found.record.sees(packet, found.is_reply, self.now)
        elif packet.kind in ("any", "opens") and not packet.flags & RST:
            self.records[found.key] = Record(None, HOST, place, None, self.now)
        self.remember()

    def hear(self, answer: Verdict, direction: str) -> None:
        """An event; of what drops, raises Dropped as well."""
        self.events.append((answer.verdict, answer.rule_id, direction))
        if answer.drops:
            raise Dropped("denied_by_rule" if answer.verdict == DENY else "denied_by_default")

    @staticmethod
    def _fragment(policies: Policies, flow: Flow, answer: Verdict, is_self: bool) -> None:
        """One without ports passes where nothing that is enforced in its direction names any, and the rest lets it."""
        named = [] if is_self else policies.rules_with_ports(flow)
        if answer.drops or named:
            raise Dropped("fragment")

    def _who(self, place: str, address: Address) -> str:
        """What judge.py calls somebody."""
        if place == WORLD:
            return str(address)
        name = self.identities.get(place, place.split("/")[-1])
        return place if place in (HOST, REMOTE_NODE) else f"identity/{name}"


def key_of(direction: str, packet: Reading) -> Key:
    """A packet's own."""
    return (*packet.ends, *packet.ports, packet.connection_protocol, direction)


def reverse(key: Key) -> Key:
    """That of what answers, at the same end."""
    return key[1], key[0], key[3], key[2], key[4], EGRESS if key[5] == INGRESS else INGRESS


def _port_of(key: Key) -> Any:
    return {ICMP: (8, 0), ICMP6: (128, 0)}.get(key[4], key[3])
