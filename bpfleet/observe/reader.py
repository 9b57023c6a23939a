"""Reads verdict events from the node's shared memory, without locks and without taking them from other readers.

The protocol is that of bpf/include/bpfleet/events.h: each CPU overwrites its oldest slot, a slot's sequence number is
read before and after the rest, and gaps in a CPU's numbers are the events that were overwritten before being read.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Protocol, Set, Tuple


@dataclass(frozen=True)
class Batch:
    """Events in order of time (CLOCK_MONOTONIC) as records of field values, and how many were lost before them."""

    events: List[Dict[str, Any]]
    lost: int


class Slots(Protocol):
    """What a reader needs of the two arrays: sizes in bytes."""

    slot_size: int
    cursor_size: int
    slots: int
    cpus: int

    def written(self, cpu: int) -> int:
        """Number of the newest event of a CPU; 0 if there was none."""

    def sequence(self, index: int) -> int:
        """The sequence number in a slot now."""

    def copy(self, index: int) -> bytes:
        """A copy of a slot."""


class MappedSlots:
    """The arrays as the kernel maps them into this process, read-only."""

    def __init__(self, events_fd: int, cursor_fd: int) -> None:
        from bpfleet.loader import syscall

        events, cursors = syscall.map_info(events_fd), syscall.map_info(cursor_fd)
        self.slot_size = events.value_size
        self.cursor_size = cursors.value_size
        self.cpus = cursors.max_entries
        self.slots = events.max_entries // cursors.max_entries
        self._events = _map(events_fd, events.max_entries * events.value_size)
        self._cursors = _map(cursor_fd, cursors.max_entries * cursors.value_size)
        # Eight aligned bytes at a time: that is one load, which the writer's store cannot tear.
        self._event_words = memoryview(self._events).cast("Q")
        self._cursor_words = memoryview(self._cursors).cast("Q")

    def written(self, cpu: int) -> int:
        """See Slots."""
        return self._cursor_words[cpu * self.cursor_size // 8]

    def sequence(self, index: int) -> int:
        """See Slots."""
        return self._event_words[index * self.slot_size // 8]

    def copy(self, index: int) -> bytes:
        """See Slots."""
        start = index * self.slot_size
        return self._events[start : start + self.slot_size]

    def close(self) -> None:
        """Let go of the mappings."""
        self._event_words.release()
        self._cursor_words.release()
        self._events.close()
        self._cursors.close()


def _map(fd: int, size: int) -> mmap.mmap:
    page = mmap.PAGESIZE
    return mmap.mmap(fd, (size + page - 1) // page * page, mmap.MAP_SHARED, mmap.PROT_READ)


class Reader:
    """One reader's place in the events of every CPU. It begins with all that is kept; that counts as no loss."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.overwrote = any(slots.written(cpu) > slots.slots for cpu in range(slots.cpus))
        """Whether older events than those that are kept there were."""
        self._next = [max(1, slots.written(cpu) - slots.slots + 1) for cpu in range(slots.cpus)]

    def read(self) -> Batch:
        """All events that are complete and not read yet."""
        from bpfleet.loader.layout import decode

        found: List[Tuple[int, bytes]] = []
        lost = 0
        for cpu in range(self._slots.cpus):
            lost += self._read_cpu(cpu, found)
        events = [decode("events", "value", data) for _, data in found]
        events.sort(key=lambda event: int(event["time_ns"]))
        return Batch(events, lost)

    def _read_cpu(self, cpu: int, found: List[Tuple[int, bytes]]) -> int:
        slots = self._slots
        newest = slots.written(cpu)
        oldest = newest - slots.slots + 1
        lost = max(0, oldest - self._next[cpu])
        number = max(self._next[cpu], oldest)
        while number <= newest:
            data = self._slot(cpu, number)
            if data is not None:
                found.append((number, data))
            elif slots.written(cpu) >= number + slots.slots:
                lost += 1  # overwritten while we looked
            else:
                break  # being written: next time
            number += 1
        self._next[cpu] = number
        return lost

    def _slot(self, cpu: int, number: int) -> Optional[bytes]:
        slots = self._slots
        index = cpu * slots.slots + (number - 1) % slots.slots
        if slots.sequence(index) != number:
            return None
        data = slots.copy(index)
        return data if slots.sequence(index) == number else None


def rules_of_events(pins: str) -> Set[int]:
    """Ids of the rules that kept events name."""
    slots = open_slots(pins)
    if slots is None:
        return set()
    try:
        return {int(event["rule_id"]) for event in Reader(slots).read().events} - {0}
    finally:
        slots.close()


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
