"""Which of many events match the filters, without making an event of each: for a node that makes 50,000 a second.

Events differ in their time and length, and most of them in the sender's port, and are alike in the rest. So an event is
made, named and judged once of each kind, and what was found out is remembered for the others of its kind. What happened
before and after a change of names is of two kinds.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from bpfleet.loader.layout import decode, layout
from bpfleet.model.json_text import compact_json
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.observe.filters import Filter, matcher
from bpfleet.observe.reader import Batch

_FIELDS = (
    *("time_ns", "source", "destination", "rule_id", "source_identity", "destination_identity", "length"),
    *("source_port", "destination_port", "protocol", "verdict", "direction", "reason", "hook"),
)
_MESSAGES = frozenset(PROTOCOL_NUMBERS[name] for name in ("icmp", "icmpv6"))
_REMEMBERED = 1 << 14

Key = Tuple[Any, ...]


class Kind:
    """What events of one kind have in common, but for their time, length and the sender's port."""

    def __init__(self, event: Mapping[str, Any]) -> None:
        self._event = event
        self._form = ""

    def json(self, time: float, length: int, port: int) -> str:
        """The event of this kind with these as JSON."""
        if not self._form:
            self._form = self._pattern()
        if "icmp" in self._event:
            return self._form % (time, length)
        return self._form % (time, length, f'"port":{port},' if port else "")

    def _pattern(self) -> str:
        rest = {name: value for name, value in self._event.items() if name not in ("time", "length", "source")}
        source = {name: value for name, value in self._event["source"].items() if name != "port"}
        port = "" if "icmp" in self._event else "%s"
        return f'{{"time":%r,"length":%d,"source":{{{port}{_inside(source)}}},{_inside(rest)}}}'


def _inside(fields: Mapping[str, Any]) -> str:
    return compact_json(fields)[1:-1].replace("%", "%%")


Found = Tuple[int, int, int, Kind]
"""When (CLOCK_MONOTONIC, ns), length, the sender's port, and the kind."""


class Sifter:
    """Filters, and what is known about kinds of events."""

    def __init__(self, filters: Iterable[Filter], since: Optional[float], until: Optional[float]) -> None:
        """InvalidInput for a value that nothing can match. since, until: seconds since the epoch."""
        filters = list(filters)
        self._matches = matcher(filters)
        self._by_port = any("port" in one.key.split("-") for one in filters)
        self._since, self._until = since, until
        self._kinds: Dict[Key, Optional[Kind]] = {}
        self._unpack = layout("events", "value").only(*_FIELDS).iter_unpack
        self._size = layout("events", "value").size

    def forget(self) -> None:
        """Names are others now."""
        self._kinds.clear()

    def sift(
        self,
        batch: Batch,
        named: Callable[[Mapping[str, Any]], Dict[str, Any]],
        boot_offset: float,
        ends: Sequence[int] = (),
    ) -> List[Found]:
        """The events of a batch that match, in order of time. named: the event of a decoded slot.

        boot_offset: seconds from CLOCK_MONOTONIC to the epoch. ends: times, in order, at which names changed.
        """
        newest = ends[-1] if ends else 0
        found: List[Found] = []
        kinds, by_port, timed = self._kinds, self._by_port, self._since is not None or self._until is not None
        at = -self._size
        for time, source, target, rule, one, two, length, port, to_port, protocol, *rest in self._unpack(batch.data):
            at += self._size
            ported = by_port or protocol in _MESSAGES
            era = len(ends) if time >= newest else bisect_right(ends, time)
            key = (source, target, rule, one, two, to_port, protocol, *rest, port if ported else 0, era)
            try:
                kind = kinds[key]
            except KeyError:
                kind = self._judge(key, named(decode("events", "value", batch.data[at : at + self._size])))
            if kind is not None and (not timed or self._is_in_time(time, boot_offset)):
                found.append((time, length, port, kind))
        found.sort(key=lambda one: one[0])
        return found

    def _judge(self, key: Key, event: Dict[str, Any]) -> Optional[Kind]:
        if len(self._kinds) >= _REMEMBERED:
            self._kinds.clear()
        kind = self._kinds[key] = Kind(event) if self._matches(event) else None
        return kind

    def _is_in_time(self, time: int, boot_offset: float) -> bool:
        seen = event_time(time, boot_offset)
        return (self._since is None or seen >= self._since) and (self._until is None or seen <= self._until)


def event_time(time_ns: int, boot_offset: float) -> float:
    """Seconds since the epoch."""
    return round(time_ns / 1e9 + boot_offset, 6)


def event_json(found: Found, boot_offset: float) -> str:
    """The event as JSON."""
    time, length, port, kind = found
    return kind.json(event_time(time, boot_offset), length, port)
