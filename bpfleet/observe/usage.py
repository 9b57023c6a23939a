"""Counters and fill levels of the node's maps, read from what is pinned. Nothing here changes anything."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from bpfleet.loader import syscall
from bpfleet.loader.capacity import CONNECTIONS, LIMITS, Usage
from bpfleet.loader.connections import live, now_ticks
from bpfleet.loader.cpus import lru_room, possible_cpus
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.layout import decode_many, layout
from bpfleet.loader.maps import dump
from bpfleet.loader.objects import history_shares
from bpfleet.loader.pins import Pins, open_pin
from bpfleet.observe.events import FIRST_DROP

HIGH, CRITICAL = 0.8, 0.95
"""From these shares of its room on a map is `high`, and `critical`."""

EVICTING = "lru_hash"
"""Maps of this type forget the idlest entry when they are full; the others refuse, but the history. What does not count
any longer stays there until its place is needed: of connections and fragments those that count are told."""
HISTORY = "flow_slots"
"""The history has a room for each kind of flow. Where one is full of flows that are not idle, new ones are counted
together."""

FRAGMENTS = "fragments"
"""What is remembered of datagrams (fragment.h)."""

_INNER = {described["inner"] for described in MAPS.values() if "inner" in described}
_NOT_COUNTED = ("array", "percpu_array")  # all of an array is always there


def counters(pins: str) -> List[Dict[str, Any]]:
    """{"reason", "drop", "packets", "bytes"} for every reason that ever occurred, over all CPUs."""
    handle = open_pin(Pins(pins).map("counters"))
    if handle is None:
        return []
    size = MAPS["counters"]["value"]["size"]
    found = []
    try:
        for name, number in sorted(ENUMS["reason"].items(), key=lambda entry: int(entry[1])):
            if name in ("none", "limit"):
                continue
            data = syscall.map_lookup(handle, number.to_bytes(4, "little"), size * possible_cpus())
            values = decode_many("counters", "value", data or b"")
            packets = sum(value["packets"] for value in values)
            if packets:
                total = sum(value["bytes"] for value in values)
                found.append({"reason": name, "drop": number >= FIRST_DROP, "packets": packets, "bytes": total})
    finally:
        os.close(handle)
    return found


def fill_levels(pins: str, inner: Iterable[Usage] = ()) -> List[Dict[str, Any]]:
    """gauge() of every map that can fill up. inner: those that others hold, of which the fullest counts. Of the
    history it is the fuller room, with its kind as "room"."""
    named = Pins(pins)
    found = [gauge(one.map, one.used, one.limit, one.key) for one in inner]
    for name, described in MAPS.items():
        handle = None if name in _INNER or described["type"] in _NOT_COUNTED else open_pin(named.map(name))
        if handle is None:
            continue
        try:
            if name == HISTORY:
                found.extend(_fuller_room(named))
                continue
            found.append(_level(name, handle))
        finally:
            os.close(handle)
    return sorted(found, key=lambda one: str(one["map"]))


def gauge(
    name: str, used: int, limit: int, key: Optional[int] = None, *, holds: Optional[int] = None
) -> Dict[str, Any]:
    """{"map", "used", "limit"} in entries, with "pressure" (how much of its room is used, 1 at most), "level" (ok,
    high, critical), "evicts" (whether a full map forgets rather than refuses), "declared_by" (the field of the cluster
    that makes it larger) and, of an inner map, its "key". holds: up to how many it forgets nothing, if not `limit`.
    """
    room = limit if holds is None else holds
    pressure = min(used / room, 1.0) if room else 0.0
    found: Dict[str, Any] = {
        "map": name,
        "used": used,
        "limit": limit,
        "pressure": round(pressure, 4),
        "level": "critical" if pressure >= CRITICAL else "high" if pressure >= HIGH else "ok",
        "evicts": MAPS[name]["type"] == EVICTING,
    }
    if name in LIMITS:
        found["declared_by"] = f"limits.{LIMITS[name]}"
    return found if key is None else {**found, "key": key}


def _level(name: str, handle: int) -> Dict[str, Any]:
    info = syscall.map_info(handle)
    if info.type != syscall.MAP_LRU_HASH:
        return gauge(name, _count(handle, info), info.max_entries)
    keys, values, used = syscall.lookup_batch(handle, info.key_size, info.value_size, 4096)
    if name == CONNECTIONS:
        used = live(keys, values, now_ticks())
    elif name == FRAGMENTS:
        used = _fresh_fragments(values)
    return gauge(name, used, info.max_entries, holds=lru_room(info.max_entries, os.cpu_count() or 1))


def _fresh_fragments(values: bytes) -> int:
    times = ENUMS["fragment_time"]
    now = time.monotonic_ns() >> times["tick_shift"]
    return sum(now - seen <= times["ticks"] for (seen,) in layout(FRAGMENTS, "value").only("seen").iter_unpack(values))


def _fuller_room(named: Pins) -> List[Dict[str, Any]]:
    handle = open_pin(named.map("flows"))
    if handle is None:
        return []
    try:
        slots = [data for _, data in sorted(dump(handle, "flows").items(), key=lambda item: _number(item[0]))]
    finally:
        os.close(handle)
    rooms = rooms_of(slots, time.monotonic_ns() >> ENUMS["flow_time"]["tick_shift"])
    held = [{**gauge(HISTORY, used, limit), "room": kind} for kind, (used, limit) in rooms.items() if limit]
    return sorted(held, key=lambda one: -float(one["pressure"]))[:1]


def rooms_of(slots: Sequence[bytes], now_ticks: int) -> Dict[str, Tuple[int, int]]:
    """By kind of flow how many of its slots have one that is not idle, and how many there are (flow.h).

    slots: the values of `flows` in order of their numbers.
    """
    times, shares, first = ENUMS["flow_time"], history_shares(len(slots)), int(ENUMS["flow_slot"]["first"])
    fields = {field["name"]: int(field["offset"]) for field in MAPS["flows"]["value"]["fields"]}
    found: Dict[str, Tuple[int, int]] = {}
    for kind, idle in (("passed", times["idle_ticks"]), ("dropped", times["dropped_idle_ticks"])):
        limit = shares.get(f"flows_{kind}", 0)
        used = 0
        for data in slots[first : first + limit]:
            seen = _number(data[fields["last_seen"] : fields["last_seen"] + 4])
            used += bool(data[fields["verdict"]] and seen and now_ticks - seen <= idle)
        found[kind] = (used, limit)
        first += limit
    return found


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _count(handle: int, info: syscall.MapInfo) -> int:
    # No batches for maps of maps on older kernels, and of per-CPU maps they would need room for each CPU.
    if info.type == syscall.MAP_HASH:
        return syscall.lookup_batch(handle, info.key_size, info.value_size, 4096)[2]
    count, key = 0, syscall.map_next_key(handle, None, info.key_size)
    while key is not None:
        count, key = count + 1, syscall.map_next_key(handle, key, info.key_size)
    return count
