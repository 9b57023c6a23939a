"""Reads the history of flows that the packet path keeps (bpf/include/bpfleet/flow.h). Nothing here changes anything."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Tuple

from bpfleet.loader import syscall
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.layout import decode, decode_many, layout
from bpfleet.loader.maps import dump
from bpfleet.loader.memory import map_array
from bpfleet.loader.pins import Pins, open_pin

KINDS = ("passed", "dropped")
_FIRST = ENUMS["flow_slot"]["first"]
_COUNTS = tuple(field["name"] for field in MAPS["flow_counts"]["value"]["fields"])
_WAYS = {ENUMS["flow_way"]["openers"]: "", ENUMS["flow_way"]["answers"]: "answer_"}
"""What is before the names of counts, by way."""
_TOGETHER = {kind: ENUMS["flow_slot"][kind] for kind in KINDS}
"""The slots in which is counted together what has none."""
_TICK_SHIFT: int = ENUMS["flow_time"]["tick_shift"]
_AT = {field["name"]: field["offset"] for field in MAPS["flows"]["value"]["fields"]}


@dataclass(frozen=True)
class History:
    """flows: (record of `flows`, its counts over all CPUs). did_not_fit: counts by kind, of the flows that have no slot
    of their own. retired: flows by kind that were idle and gave their slot to another. limit: slots for both kinds."""

    flows: List[Tuple[Dict[str, Any], Dict[str, int]]]
    did_not_fit: Dict[str, Dict[str, int]]
    retired: Dict[str, int]
    limit: int


def read_history(pins: str) -> History:
    """What is kept now; nothing if the programs were never loaded."""
    named = Pins(pins)
    with ExitStack() as held:
        handles: Dict[str, int] = {}
        for name in ("flows", "flow_counts", "flow_cursors"):
            handle = open_pin(named.map(name))
            if handle is None:
                return History([], {}, {}, 0)
            held.callback(os.close, handle)
            handles[name] = handle
        slots = dump(handles["flows"], "flows")
        before = {slot: slots[slot] for slot in sorted(slots) if _is_used(slots[slot])}
        with _carried(handles["flow_counts"], len(slots)) as carried:
            sums = {slot: _summed(carried(slot)) for slot in [*before, *map(_slot, _TOGETHER.values())]}
        after = dump(handles["flows"], "flows")
        # A slot that another flow took meanwhile: its counts are of neither.
        kept = [slot for slot in before if is_still(before[slot], after[slot])]
        return History(
            [(decode("flows", "value", after[slot]), sums[slot]) for slot in kept],
            {kind: sums[_slot(number)] for kind, number in _TOGETHER.items()},
            {kind: _cursor(handles["flow_cursors"], kind)["retired"] for kind in KINDS},
            len(slots) - _FIRST,
        )


def kept_flows(pins: str) -> List[Dict[str, Any]]:
    """Of all flows of the history: of those that name the same, the one that was seen first, as records of what they
    name and when they were seen."""
    handle = open_pin(Pins(pins).map("flows"))
    if handle is None:
        return []
    try:
        slots = dump(handle, "flows")
    finally:
        os.close(handle)
    return seen_first(b"".join(slots.values()))


def seen_first(slots: bytes) -> List[Dict[str, Any]]:
    """As kept_flows, of slots one after the other. Each change asks it of all, so only what counts is decoded."""
    first: Dict[Tuple[int, int, int], Tuple[int, int, int]] = {}
    names = ("source_identity", "destination_identity", "rule_id", "verdict", "last_seen", "first_seen")
    for source, destination, rule, verdict, last_seen, first_seen in (
        layout("flows", "value").only(*names).iter_unpack(slots)
    ):
        if verdict and last_seen:
            told = (source, destination, rule)
            seen = (max(first_seen, last_seen << _TICK_SHIFT), last_seen, first_seen)
            first[told] = min(seen, first.get(told, seen))
    named = ("source_identity", "destination_identity", "rule_id", "last_seen", "first_seen")
    return [dict(zip(named, (*told, *times))) for told, (_, *times) in first.items()]


def _slot(number: int) -> bytes:
    return number.to_bytes(4, "little")


@contextmanager
def _carried(handle: int, slots: int) -> Iterator[Callable[[bytes], bytes]]:
    """What each CPU counted in a slot, with the connection and against it, one after the other (flow.h)."""
    info = syscall.map_info(handle)
    size, entries = info.value_size, info.max_entries
    counts = map_array(handle, size * entries)
    try:
        yield lambda slot: b"".join(
            [counts[at * size : (at + 1) * size] for at in range(int.from_bytes(slot, "little"), entries, slots)]
        )
    finally:
        counts.close()


def _is_used(data: bytes) -> bool:
    """Whether a slot is some flow's and not just changing its owner."""
    return bool(data[_AT["verdict"]]) and any(data[_AT["last_seen"] : _AT["last_seen"] + 4])


def is_still(before: bytes, after: bytes) -> bool:
    """Whether a slot had the same flow all the time between. One that is just being taken from it has its key yet, and
    no longer all its counts."""
    return _is_used(after) and _who(before) == _who(after)


def _who(data: bytes) -> bytes:
    """All but when it was last seen."""
    return data[: _AT["last_seen"]] + data[_AT["last_seen"] + 4 :]


def _summed(values: bytes) -> Dict[str, int]:
    """What all CPUs counted in one slot."""
    counted = decode_many("flow_counts", "value", values)
    ways = len(_WAYS)
    return {
        f"{prefix}{name}": sum(value[name] for value in counted[way::ways])
        for way, prefix in _WAYS.items()
        for name in _COUNTS
    }


def _cursor(handle: int, kind: str) -> Dict[str, Any]:
    size = MAPS["flow_cursors"]["value"]["size"]
    data = syscall.map_lookup(handle, _slot(ENUMS["flow_slot"][kind]), size)
    return decode("flow_cursors", "value", data or bytes(size))
