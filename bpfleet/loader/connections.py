"""Which records of connections are live, as the programs reckon it (bpf/include/bpfleet/connection.h)."""

from __future__ import annotations

import time
from typing import Dict, Mapping, Tuple

from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.layout import layout

_TCP = 6
_STATE: Mapping[str, int] = ENUMS["connection_state"]
_TIME: Mapping[str, int] = ENUMS["connection_time"]
_SHIFT, _BITS = next(
    (int(field["bit_offset"]), int(field["bit_size"]))
    for field in MAPS["connections"]["value"]["fields"]
    if field["name"] == "state"
)


def now_ticks() -> int:
    """connection_now."""
    return time.monotonic_ns() >> _TIME["tick_shift"]


def _limit(protocol: int, state: int) -> int:
    """Of connection_is_live."""
    if protocol != _TCP:
        return _TIME["other_ticks"]
    ends = _STATE["end_initiator"] | _STATE["end_responder"]
    if state & _STATE["denied"]:
        return _TIME["tcp_ticks"]
    if state & ends == ends:
        return _TIME["closing_ticks"]
    return _TIME["tcp_ticks" if state & _STATE["replied"] else "other_ticks"]


def live(keys: bytes, values: bytes, now: int) -> int:
    """How many of so many records, one after the other, are live at this tick. One that is not keeps its place until
    another one needs it."""
    limits: Dict[Tuple[int, int], int] = {}
    count = 0
    protocols = layout("connections", "key").only("protocol").iter_unpack(keys)
    records = layout("connections", "value").only("last_seen", "state").iter_unpack(values)
    for (protocol,), (last_seen, word) in zip(protocols, records):
        kind = protocol, word >> _SHIFT & (1 << _BITS) - 1
        limit = limits.get(kind)
        if limit is None:
            limit = limits[kind] = _limit(*kind)
        count += now - last_seen <= limit
    return count
