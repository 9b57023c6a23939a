"""Sets of prefixes: which CIDRs of a direction's rules an outside address lies in.

The CIDRs and exceptions that the rules of one direction name are its prefix set. Each prefix is a *class*, with a
number that no identity has; an address is of the class of its longest prefix. So a class stands for one combination of
covering CIDRs and exceptions, a rule's CIDR covers the classes inside it less those inside its exceptions, and a policy
map is still looked up exactly: the kernel finds the class in a trie, then the entry by class.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from typing import Any, Dict, Iterable, List, Tuple

from bpfleet.compile.rules import Content, digest_of
from bpfleet.model import identity
from bpfleet.model.state import Row, Table

FIRST_CLASS = 1 << 24
"""Above every identity: those have 24 bits."""

PREFIX_KEY = ("prefixlen", "address")
PREFIX_VALUE = ("peer",)

Prefix = Tuple[int, int, int]
"""(version, network address as a number, length). Sorted, what lies inside a prefix follows it without a gap."""

Network = Tuple[Prefix, Tuple[Prefix, ...]]
"""A CIDR peer: its prefix, and what is excepted from it."""

_BITS = {4: 32, 6: 128}
_MAPPED, _MAPPED_START = 96, 0xFFFF << 32
"""::ffff:0:0/96, as which IPv4 addresses are kept in maps. An IPv6 CIDR that holds it still means no IPv4 address."""


def prefix_of(text: str) -> Prefix:
    """The prefix of a checked CIDR."""
    return prefix_of_network(ipaddress.ip_network(text))


def prefix_of_network(network: Any) -> Prefix:
    """The same of one that is parsed."""
    return network.version, int(network.network_address), network.prefixlen


def _end(prefix: Prefix) -> Prefix:
    """The least that sorts after all that lies inside."""
    version, start, length = prefix
    return version, start + (1 << _BITS[version] - length), 0


class PrefixSet:
    """The prefixes of some networks. Two of the same prefixes have the same content and so the same id."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self.prefixes: List[Prefix] = sorted({prefix for whole, parts in networks for prefix in (whole, *parts)})
        self.content: Content = ("prefix set", digest_of(repr(self.prefixes)))

    def __len__(self) -> int:
        return len(self.prefixes)

    @property
    def classes(self) -> range:
        """The numbers of all classes."""
        return range(FIRST_CLASS, FIRST_CLASS + len(self.prefixes))

    def covered(self, network: Network) -> List[int]:
        """The classes that a CIDR peer means."""
        whole, parts = network
        kept: List[int] = []
        at = bisect_left(self.prefixes, whole)
        for part in sorted(parts):
            first = bisect_left(self.prefixes, part)
            if first < at:
                continue  # inside an exception before it
            kept.extend(range(FIRST_CLASS + at, FIRST_CLASS + first))
            at = bisect_left(self.prefixes, _end(part))
        kept.extend(range(FIRST_CLASS + at, FIRST_CLASS + bisect_left(self.prefixes, _end(whole))))
        return kept

    def table(self) -> Table:
        """The trie: prefix -> number of its class."""
        rows: Dict[Row, Row] = {}
        for number, (version, start, length) in zip(self.classes, self.prefixes):
            rows[_row(version, start, length)] = (number,)
        if any(version == 6 and _holds_mapped(start, length) for version, start, length in self.prefixes):
            rows.setdefault(_row(4, 0, 0), (identity.WORLD,))
        return Table(PREFIX_KEY, PREFIX_VALUE, rows)


def _holds_mapped(start: int, length: int) -> bool:
    return length < _MAPPED and (start ^ _MAPPED_START) >> (_BITS[6] - length) == 0


def _row(version: int, start: int, length: int) -> Row:
    if version == 4:
        return (_MAPPED + length, str(ipaddress.IPv4Address(start)))
    return (length, str(ipaddress.IPv6Address(start)))
