"""Counters and fill levels of the node's maps, read from what is pinned. Nothing here changes anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

from bpfleet.loader import syscall
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.layout import decode_many
from bpfleet.loader.pins import Pins, open_pin

FIRST_DROP = 16
"""From this reason on a packet was dropped (bpf/include/bpfleet/reasons.h)."""

_COUNTED_MAPS = ("addresses", "backends", "connections", "endpoints", "policies", "services")


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
            data = syscall.map_lookup(handle, number.to_bytes(4, "little"), size * _possible_cpus())
            values = decode_many("counters", "value", data or b"")
            packets = sum(value["packets"] for value in values)
            if packets:
                total = sum(value["bytes"] for value in values)
                found.append({"reason": name, "drop": number >= FIRST_DROP, "packets": packets, "bytes": total})
    finally:
        os.close(handle)
    return found


def fill_levels(pins: str) -> List[Dict[str, Any]]:
    """{"map", "used", "limit"} in entries, for the maps that can fill up."""
    named = Pins(pins)
    found = []
    for name in _COUNTED_MAPS:
        handle = open_pin(named.map(name))
        if handle is None:
            continue
        try:
            info = syscall.map_info(handle)
            found.append({"map": name, "used": _count(handle, info), "limit": info.max_entries})
        finally:
            os.close(handle)
    return found


def _count(handle: int, info: syscall.MapInfo) -> int:
    if info.type == syscall.MAP_HASH_OF_MAPS:
        # No batches for maps of maps on older kernels; there are few.
        count, key = 0, syscall.map_next_key(handle, None, info.key_size)
        while key is not None:
            count, key = count + 1, syscall.map_next_key(handle, key, info.key_size)
        return count
    return syscall.lookup_batch(handle, info.key_size, info.value_size, 4096)[2]


def _possible_cpus() -> int:
    """How many values a per-CPU map has: the kernel counts possible CPUs, from 0 to the last in this list."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.split(",")[-1].split("-")[-1]) + 1
