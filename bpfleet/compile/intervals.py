"""Port sets: which port ranges and message types of a direction's rules a port lies in.

The ranges that the rules of one direction name cut each protocol's ports into intervals, numbered from 0; a rule's
range is the intervals between its ends, and policy entries are found under the interval's number. The kernel finds the
interval in a trie, into which each interval goes as the fewest prefixes. ICMP has type << 8 | code for a port.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Dict, Iterable, Iterator, List, Tuple

from bpfleet.compile.rules import Content, digest_of
from bpfleet.model.state import Row, Table

PORT_SET_KEY = ("prefixlen", "protocol", "port")
PORT_SET_VALUE = ("interval",)

PortRange = Tuple[int, int, int]
"""(protocol number, first port, last port)."""

_PROTOCOL_BITS, _PORT_BITS = 16, 16


class PortSet:
    """The intervals of some ranges. Two of the same intervals have the same content and so the same id."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        by_protocol: Dict[int, List[Tuple[int, int]]] = {}
        for protocol, first, last in sorted(set(ranges)):
            by_protocol.setdefault(protocol, []).append((first, last))
        self.intervals: Dict[int, List[Tuple[int, int]]] = {
            protocol: _cut(found) for protocol, found in by_protocol.items()
        }
        self.content: Content = ("port set", digest_of(repr(sorted(self.intervals.items()))))

    def __len__(self) -> int:
        return sum(map(len, self.intervals.values()))

    def covered(self, ranges: Iterable[PortRange]) -> Iterator[Tuple[int, int]]:
        """(protocol, number) of each interval of some ranges that it was made with, once, wherever these overlap."""
        protocol_before, begun = -1, 0
        for protocol, first, last in sorted(ranges):
            intervals = self.intervals[protocol]
            if protocol != protocol_before:
                protocol_before, begun = protocol, 0
            end = bisect_left(intervals, (last + 1, 0))
            for number in range(max(begun, bisect_left(intervals, (first, first))), end):
                yield protocol, number
            begun = max(begun, end)

    def table(self) -> Table:
        """The trie: protocol and prefix of ports -> number of the interval."""
        rows: Dict[Row, Row] = {}
        for protocol, intervals in self.intervals.items():
            for number, (first, last) in enumerate(intervals):
                for port, length in _prefixes(first, last):
                    rows[(_PROTOCOL_BITS + length, protocol, port)] = (number,)
        return Table(PORT_SET_KEY, PORT_SET_VALUE, rows)


def _cut(ranges: List[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """The longest intervals within which no range begins or ends and that some range covers, in order."""
    depth: Dict[int, int] = {}
    for first, last in ranges:
        depth[first] = depth.get(first, 0) + 1
        depth[last + 1] = depth.get(last + 1, 0) - 1
    edges = sorted(depth)
    found, covering = [], 0
    for start, end in zip(edges, edges[1:]):
        covering += depth[start]
        if covering:
            found.append((start, end - 1))
    return found


def _prefixes(first: int, last: int) -> Iterator[Tuple[int, int]]:
    """(port, bits that count): the fewest prefixes that make up an interval."""
    while first <= last:
        size = first & -first or 1 << _PORT_BITS
        while size > last - first + 1:
            size >>= 1
        yield first, _PORT_BITS - size.bit_length() + 1
        first += size
