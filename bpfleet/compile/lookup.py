"""What compiled policy maps say of one packet: the look-ups of bpf/include/bpfleet/policy.h, in Python.

For `explain`, which answers from declared state, and for tests that hold the compiler to what policies mean.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import List, Mapping, Optional, Sequence

from bpfleet.compile import entries as e
from bpfleet.compile.policy import ANY
from bpfleet.model import identity
from bpfleet.model.meaning import PORT_PROTOCOLS
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import Row, Table

ALLOWED, DENIED, DENIED_BY_DEFAULT, AUDITED = "allow", "deny", "default_deny", "audit"
"""Verdicts, named as the packet path names them."""

NO_PORT = 0
_WITH_PORTS = frozenset(PROTOCOL_NUMBERS[name] for name in PORT_PROTOCOLS)


@dataclass(frozen=True)
class Question:
    """A new connection as one end's policy sees it.

    peer: number of the other end's identity or entity. address: the other end's, which counts only if it is the
    world's. port: destination port; of ICMP type << 8 | code; of TCP, UDP and SCTP 0 for one that no port rule names.
    """

    direction: str
    peer: int
    protocol: int
    port: int = NO_PORT
    address: Optional[str] = None


@dataclass(frozen=True)
class Answer:
    """The verdict and the id of the rule that made it; 0 where nothing closes the direction."""

    verdict: str
    rule_id: int


@dataclass(frozen=True)
class Maps:
    """One subject's policy map (None: it has none), and all prefix sets and port sets by id."""

    entries: Optional[Mapping[Row, Row]]
    prefix_sets: Mapping[int, Table]
    port_sets: Mapping[int, Table]

    def names_networks(self, direction: str) -> bool:
        """Whether rules of that direction, enforced or not, are about CIDRs."""
        code = e.DIRECTION_NUMBERS[direction]
        headers = ((e.HEADER_PEER, code | audit, e.HEADER_PREFIXES, 0) for audit in (0, e.AUDIT))
        return any(header in (self.entries or ()) for header in headers)


def judge(maps: Maps, question: Question) -> Answer:
    """The verdict on a new connection."""
    code = e.DIRECTION_NUMBERS[question.direction]
    header = maps.entries.get((e.HEADER_PEER, code, e.HEADER, 0)) if maps.entries is not None else None
    if header is None:
        return Answer(ALLOWED, 0)
    enforced = _judge_side(maps, question, code, header)
    if enforced.verdict != ALLOWED or not header[4] & e.HAS_AUDIT:
        return enforced
    assert maps.entries is not None
    code |= e.AUDIT
    would_be = _judge_side(maps, question, code, maps.entries[(e.HEADER_PEER, code, e.HEADER, 0)])
    return enforced if would_be.verdict == ALLOWED else Answer(AUDITED, would_be.rule_id)


def _judge_side(maps: Maps, question: Question, code: int, header: Row) -> Answer:
    assert maps.entries is not None
    rule_id, action, _, _, flags = header
    peer = question.peer
    if flags & e.HAS_PREFIXES and peer == identity.WORLD and question.address is not None:
        set_id = maps.entries[(e.HEADER_PEER, code, e.HEADER_PREFIXES, 0)][0]
        peer = _class_of(maps.prefix_sets[set_id], question.address)
    allow: Optional[int] = None
    for key in _keys(maps, question, code):
        hits = [maps.entries[(who, *key)] for who in (peer, ANY) if (who, *key) in maps.entries]
        denies = [hit[0] for hit in hits if hit[1] == e.DENY]
        if denies:
            return Answer(DENIED, min(denies))
        if allow is None and hits:
            allow = min(hit[0] for hit in hits)
    if allow is not None:
        return Answer(ALLOWED, allow)
    return Answer(DENIED_BY_DEFAULT if action == e.DENY else ALLOWED, rule_id)


def keys_of(maps: Maps, question: Question) -> Sequence[Row]:
    """What is enforced of a protocol and port is found under these keys, the most exact first, behind a peer."""
    return _keys(maps, question, e.DIRECTION_NUMBERS[question.direction]) if maps.entries else ()


def _keys(maps: Maps, question: Question, code: int) -> Sequence[Row]:
    assert maps.entries is not None
    keys: List[Row] = []
    if question.protocol in _WITH_PORTS and question.port:
        keys.append((code, question.protocol, question.port))
    named = maps.entries.get((e.HEADER_PEER, code, e.HEADER_PORTS, 0))
    interval = _interval_of(maps.port_sets[named[0]], question.protocol, question.port) if named is not None else None
    if interval is not None:
        keys.append((code | e.RANGE, question.protocol, interval))
    return [*keys, (code, question.protocol, ANY), (code, ANY, ANY)]


def _class_of(table: Table, address: str) -> int:
    """The class of the longest prefix that holds an address, as the trie finds it: IPv4 as ::ffff:0:0/96."""
    parsed = ipaddress.ip_address(address)
    number = int(parsed) if parsed.version == 6 else 0xFFFF << 32 | int(parsed)
    for length in range(128, -1, -1):
        start = number >> (128 - length) << (128 - length)
        found = table.rows.get((length, _address_text(start, length)))
        if found is not None:
            return int(found[0])
    return identity.WORLD


def _address_text(number: int, length: int) -> str:
    if length >= 96 and number >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return str(ipaddress.IPv6Address(number))


def _interval_of(table: Table, protocol: int, port: int) -> Optional[int]:
    for length in range(16, -1, -1):
        found = table.rows.get((16 + length, protocol, port >> (16 - length) << (16 - length)))
        if found is not None:
            return int(found[0])
    return None
