"""Reads verdict events from the node's shared memory, without locks and without taking them from other readers.

The protocol is that of bpf/include/bpfleet/events.h: each CPU overwrites its oldest slot, a slot's sequence number is
read before and after the rest, and gaps in a CPU's numbers are the events that were overwritten before being read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Protocol, Tuple

_FULL = 4
"""A reader that finds this part of a CPU's slots new, or more, is to come back soon."""


@dataclass(frozen=True)
class Batch:
    """Whole slots, one after the other, by CPU in order of their numbers; and how many events were lost before them.

    begins: where in `data` those of each CPU begin, and after the last one's end.
    """

    data: bytes
    lost: int
    begins: Tuple[int, ...] = ()

    @property
    def events(self) -> List[Dict[str, Any]]:
        """The events in order of time (CLOCK_MONOTONIC) as records of field values."""
        from bpfleet.loader.layout import decode_many

        return sorted(decode_many("events", "value", self.data), key=lambda event: int(event["time_ns"]))


class Slots(Protocol):
    """What a reader needs of the two arrays. `slots`: of each CPU."""

    slot_size: int
    slots: int
    cpus: int

    def written(self, cpu: int) -> int:
        """Number of the newest event of a CPU; 0 if there was none."""

    def sequences(self, index: int, count: int) -> List[int]:
        """The sequence numbers in `count` slots now."""

    def copy(self, index: int, count: int) -> bytes:
        """A copy of `count` slots."""


class MappedSlots:
    """The arrays as the kernel maps them into this process, read-only."""

    def __init__(self, events_fd: int, cursor_fd: int) -> None:
        from bpfleet.loader import syscall
        from bpfleet.loader.cpus import slots_of_each
        from bpfleet.loader.memory import map_array

        events, cursors = syscall.map_info(events_fd), syscall.map_info(cursor_fd)
        self.identifier = events.id
        self.slot_size = events.value_size
        self._cursor_size = cursors.value_size
        self.cpus = cursors.max_entries
        self.slots = slots_of_each(events.max_entries, cursors.max_entries)
        self._events = map_array(events_fd, events.max_entries * events.value_size)
        self._cursors = map_array(cursor_fd, cursors.max_entries * cursors.value_size)
        # Eight aligned bytes at a time: that is one load, which the writer's store cannot tear.
        self._event_words = memoryview(self._events).cast("Q")
        self._cursor_words = memoryview(self._cursors).cast("Q")

    def written(self, cpu: int) -> int:
        """See Slots."""
        return self._cursor_words[cpu * self._cursor_size // 8]

    def sequences(self, index: int, count: int) -> List[int]:
        """See Slots."""
        step = self.slot_size // 8
        return self._event_words[index * step : (index + count) * step : step].tolist()

    def copy(self, index: int, count: int) -> bytes:
        """See Slots."""
        return self._events[index * self.slot_size : (index + count) * self.slot_size]

    def close(self) -> None:
        """Let go of the mappings."""
        self._event_words.release()
        self._cursor_words.release()
        self._events.close()
        self._cursors.close()


class Reader:
    """One reader's place in the events of every CPU. It begins with all that is kept; what is not counts as no loss,
    unless it was to be read from the first one on."""

    def __init__(self, slots: Slots, from_first: bool = False) -> None:
        self._slots = slots
        self.overwrote = [slots.written(cpu) > slots.slots for cpu in range(slots.cpus)]
        """Of each CPU, whether older events than those that are kept there were."""
        self._next = [1 if from_first else max(1, slots.written(cpu) - slots.slots + 1) for cpu in range(slots.cpus)]

    def read(self) -> Batch:
        """All events that are complete and not read yet."""
        found: List[bytes] = []
        begins, lost = [0], 0
        for cpu in range(self._slots.cpus):
            before = len(found)
            lost += self._read_cpu(cpu, found)
            begins.append(begins[-1] + sum(map(len, found[before:])))
        return Batch(b"".join(found), lost, tuple(begins))

    def kept_from(self, first: Batch) -> Optional[int]:
        """Of the first batch: since when (CLOCK_MONOTONIC, ns) no event is missing; None if none was overwritten. Each
        CPU overwrites its own, so one that has little to tell still has what another has long forgotten."""
        times = field_of_all(first, "time_ns")
        at = [begin // self._slots.slot_size for begin in first.begins]
        starts = [times[begin] for begin, end, gone in zip(at, at[1:], self.overwrote) if gone and begin < end]
        return max(starts, default=None)

    def crowded(self, batch: Batch) -> bool:
        """Whether events come so fast that the next ones should be read soon."""
        return batch.lost > 0 or len(batch.data) > self._slots.slots * self._slots.slot_size // _FULL

    def _read_cpu(self, cpu: int, found: List[bytes]) -> int:
        slots = self._slots
        newest = slots.written(cpu)
        oldest = newest - slots.slots + 1
        lost = max(0, oldest - self._next[cpu])
        number = max(self._next[cpu], oldest)
        while number <= newest:
            index = (number - 1) % slots.slots
            count = min(newest - number + 1, slots.slots - index)  # as far as they lie one after the other
            piece = cpu * slots.slots + index
            before, data = slots.sequences(piece, count), slots.copy(piece, count)
            after, wanted = slots.sequences(piece, count), list(range(number, number + count))
            start = 0
            if not before == wanted == after:
                for at, event in enumerate(wanted):
                    if before[at] == event == after[at]:
                        continue
                    found.append(data[start * slots.slot_size : at * slots.slot_size])
                    if slots.written(cpu) < event + slots.slots:
                        self._next[cpu] = event  # being written: next time
                        return lost
                    # Overwritten while we looked. What was copied behind it counts: to copy anew from the next one on
                    # would lose against a writer that makes one in the time that this takes.
                    lost, start = lost + 1, at + 1
            found.append(data[start * slots.slot_size :])
            number += count
        self._next[cpu] = number
        return lost


def field_of_all(batch: Batch, name: str) -> List[int]:
    """One plain number of every event: a fraction of what decoding them takes."""
    from bpfleet.loader.layout import layout

    return [value for (value,) in layout("events", "value").only(name).iter_unpack(batch.data)]


def kept_events(pins: str) -> List[Dict[str, Any]]:
    """Of all events that are kept: the earliest of those that name the same, as records of what they name."""
    slots = open_slots(pins)
    if slots is None:
        return []
    try:
        return _earliest(Reader(slots).read())
    finally:
        slots.close()


def _earliest(batch: Batch) -> List[Dict[str, Any]]:
    from bpfleet.loader.layout import address_text, layout

    first: Dict[Tuple[bytes, bytes, int, int, int], int] = {}
    names = ("time_ns", "source", "destination", "rule_id", "source_identity", "destination_identity")
    for time, *key in layout("events", "value").only(*names).iter_unpack(batch.data):
        told = (key[0], key[1], key[2], key[3], key[4])
        first[told] = min(time, first.get(told, time))
    return [
        dict(zip(names, (time, address_text(source), address_text(destination), *rest)))
        for (source, destination, *rest), time in first.items()
    ]


def renewed_slots(pins: str, slots: MappedSlots) -> Optional[MappedSlots]:
    """The arrays pinned on this node, if they are others than those: all was taken away and made anew. HostFailed if
    they have another layout, which only another version of the agent knows."""
    from bpfleet.errors import HostFailed
    from bpfleet.loader import syscall
    from bpfleet.loader.pins import Pins, open_pin

    named = Pins(pins)
    handle = open_pin(named.map("events"))
    if handle is None:
        if any(named.maps.glob("events_v*")):
            raise HostFailed(
                "the node's programs are of another version now, whose events this agent cannot read",
                remedy="Start again; a new connection has the agent that can.",
            )
        return None
    try:
        if syscall.map_info(handle).id == slots.identifier:
            return None
    finally:
        os.close(handle)
    return open_slots(pins)


def open_slots(pins: str) -> Optional[MappedSlots]:
    """The arrays pinned on this node, or None if the programs were never loaded."""
    from bpfleet.loader.pins import Pins, open_pin

    named = Pins(pins)
    handles = []
    try:
        for name in ("events", "event_cursor"):
            handle = open_pin(named.map(name))
            if handle is None:
                return None
            handles.append(handle)
        return MappedSlots(*handles)
    finally:
        for handle in handles:
            os.close(handle)
