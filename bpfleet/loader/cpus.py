"""What depends on how many CPUs there are."""

from __future__ import annotations

from pathlib import Path

_MOST_SLOTS, _LEAST_SLOTS = 4096, 256
_MOST_BYTES = 16 << 20
_MOST_COPIES = 131072
_COPIES_OF_ONE = 2


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


def new_connection_copies(cpus: int, connections: int) -> int:
    """How many connections each CPU keeps a copy of, a power of two.

    There is room for each connection on two CPUs, as its two directions may pass on different ones. More than 8 MB of
    one CPU are in no cache, and so hardly better than the records themselves.
    """
    return min(_MOST_COPIES, slots_of_each(max(_COPIES_OF_ONE * connections, cpus), cpus))


def judgement_copies(connection_copies: int) -> int:
    """How many judgements each CPU keeps beside so many copies of connections; the programs count alike."""
    return ((connection_copies - 1) >> 1) + 1


def slots_of_each(entries: int, cpus: int) -> int:
    """How many slots each CPU has in an array of so many entries, by which programs and readers find a slot."""
    return 1 << (entries // cpus).bit_length() - 1
