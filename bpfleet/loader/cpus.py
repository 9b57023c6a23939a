"""What depends on how many CPUs there are."""

from __future__ import annotations

from pathlib import Path

_MOST_SLOTS, _LEAST_SLOTS = 4096, 256
_MOST_BYTES = 16 << 20
_MOST_SETS = 32768
LRU_FREE = 128
"""Up to how many places of an LRU map each CPU keeps free for itself."""


def possible_cpus() -> int:
    """How many values a per-CPU map has: the kernel counts possible CPUs, from 0 to the last in this list."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.split(",")[-1].split("-")[-1]) + 1


def new_event_slots(cpus: int, slot_bytes: int) -> int:
    """How many events of each CPU are kept, a power of two.

    The more, the longer a reader may be held up. At 50,000 events a second, 4096 are those of 80 ms.
    """
    slots = _MOST_SLOTS
    while slots > _LEAST_SLOTS and slots * cpus * slot_bytes > _MOST_BYTES:
        slots //= 2
    return slots


def new_copy_sets(cpus: int, connections: int) -> int:
    """How many sets of two copies of connections each CPU has, a power of two: room for each connection on one CPU.

    More than 4 MB of one CPU are in no cache, and so hardly better than the records themselves.
    """
    return min(_MOST_SETS, slots_of_each(max(connections // 2, cpus), cpus))


def lru_room(entries: int, cpus: int) -> int:
    """How many entries an LRU map holds for sure: from there on it may forget some, with so many CPUs at work.

    Each keeps up to LRU_FREE places, and one that has none left forgets what is idle rather than look for another one's
    (LOCAL_FREE_TARGET in the kernel's bpf_lru_list.c; of small maps newer kernels let them keep half).
    """
    return entries - min(LRU_FREE * cpus, entries // 2)


def slots_of_each(entries: int, cpus: int) -> int:
    """How many slots each CPU has in an array of so many entries, by which programs and readers find a slot."""
    return 1 << (entries // cpus).bit_length() - 1
