"""Reading verdict events while they are overwritten. The writer here follows bpf/include/bpfleet/events.h."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, cast

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader.layout import encode, layout
from bpfleet.observe.reader import MappedSlots, Reader, field_of_all, renewed_slots

SIZE = layout("events", "value").size
BLANK: Dict[str, Any] = dict.fromkeys(layout("events", "value").names, 0)


class Memory:
    """The two arrays of `cpus` CPUs with `slots` slots each, and the packet path that writes them."""

    def __init__(self, cpus: int = 1, slots: int = 8) -> None:
        self.slot_size = SIZE
        self.cpus = cpus
        self.slots = slots
        self._data = bytearray(cpus * slots * SIZE)
        self._written = [0] * cpus
        self.before_copy: Optional[Callable[[], None]] = None

    def written(self, cpu: int) -> int:
        return self._written[cpu]

    def sequences(self, index: int, count: int) -> List[int]:
        return [int(struct.unpack_from("<Q", self._data, at * SIZE)[0]) for at in range(index, index + count)]

    def copy(self, index: int, count: int) -> bytes:
        if self.before_copy is not None:
            hook, self.before_copy = self.before_copy, None
            hook()
        return bytes(self._data[index * SIZE : (index + count) * SIZE])

    def begin(self, cpu: int) -> int:
        """Take a number and mark its slot."""
        self._written[cpu] += 1
        number = self._written[cpu]
        struct.pack_into("<Q", self._data, self._at(cpu, number), 0)
        return number

    def end(self, cpu: int, number: int, time: Optional[int] = None) -> None:
        """Fill the slot with what can be checked, then give it its number."""
        at = self._at(cpu, number)
        record = {**BLANK, "source": "10.0.0.1", "destination": "10.0.0.2", "rule_id": number % (1 << 32)}
        record["time_ns"], record["length"] = number if time is None else time, number % (1 << 32)
        self._data[at + 8 : at + SIZE] = encode("events", "value", record)[8:]
        struct.pack_into("<Q", self._data, at, number)

    def write(self, count: int, cpu: int = 0) -> None:
        for _ in range(count):
            self.end(cpu, self.begin(cpu))

    def _at(self, cpu: int, number: int) -> int:
        return (cpu * self.slots + (number - 1) % self.slots) * SIZE


def numbers(events: List[Dict[str, Any]]) -> List[int]:
    return [event["sequence"] for event in events]


def test_nothing_was_written() -> None:
    batch = Reader(Memory(cpus=4)).read()
    assert (batch.events, batch.lost) == ([], 0)


def test_a_reader_begins_with_all_that_is_kept_and_lost_nothing() -> None:
    memory = Memory()
    memory.write(20)
    batch = Reader(memory).read()
    assert numbers(batch.events) == list(range(13, 21))
    assert batch.lost == 0


def test_it_goes_on_where_it_was() -> None:
    memory = Memory()
    reader = Reader(memory)
    memory.write(3)
    assert numbers(reader.read().events) == [1, 2, 3]
    assert numbers(reader.read().events) == []
    memory.write(2)
    assert numbers(reader.read().events) == [4, 5]


def test_what_was_overwritten_is_counted() -> None:
    memory = Memory()
    reader = Reader(memory)
    memory.write(3)
    reader.read()
    memory.write(13)
    batch = reader.read()
    assert numbers(batch.events) == list(range(9, 17))
    assert batch.lost == 5


def test_readers_take_nothing_from_each_other() -> None:
    memory = Memory()
    one, two = Reader(memory), Reader(memory)
    memory.write(4)
    assert numbers(one.read().events) == numbers(two.read().events) == [1, 2, 3, 4]


def test_an_event_that_is_being_written_is_waited_for() -> None:
    memory = Memory()
    reader = Reader(memory)
    memory.write(1)
    number = memory.begin(0)
    assert numbers(reader.read().events) == [1]
    memory.end(0, number)
    batch = reader.read()
    assert (numbers(batch.events), batch.lost) == ([2], 0)


def test_an_event_that_is_overwritten_while_it_is_copied_is_lost_not_torn() -> None:
    memory = Memory()
    memory.write(8)
    reader = Reader(memory)
    memory.before_copy = lambda: memory.write(1)  # takes the slot of event 1
    batch = reader.read()
    assert numbers(batch.events) == [2, 3, 4, 5, 6, 7, 8]
    assert batch.lost == 1
    assert numbers(reader.read().events) == [9]


def test_a_writer_as_fast_as_the_looking_takes_only_what_it_overwrites() -> None:
    """A reader that was held up begins where the writer is: its next event takes the place of the first one there."""

    class Busy(Memory):
        def copy(self, index: int, count: int) -> bytes:
            self.write(1)
            return super().copy(index, count)

    memory = Busy()
    memory.write(20)
    batch = Reader(memory).read()
    assert (numbers(batch.events), batch.lost) == ([14, 15, 16, 17, 18, 19, 20], 1)


def test_since_when_all_events_are_kept_goes_by_the_cpu_that_forgot_last() -> None:
    memory = Memory(cpus=4)
    for cpu, times in ((0, range(1, 10)), (1, range(100, 120)), (2, range(50, 53))):
        for time in times:
            memory.end(cpu, memory.begin(cpu), time)
    reader = Reader(memory)
    assert reader.kept_from(reader.read()) == 112


def test_nothing_overwritten_is_nothing_forgotten() -> None:
    memory = Memory(cpus=2)
    memory.write(8)
    reader = Reader(memory)
    assert reader.kept_from(reader.read()) is None


def test_events_that_lie_across_the_end_of_the_slots_are_one_batch() -> None:
    memory = Memory(cpus=2)
    reader = Reader(memory)
    for cpu in range(2):
        memory.write(5, cpu)
    reader.read()
    for cpu in range(2):
        memory.write(7, cpu)
    assert numbers(reader.read().events) == sorted([*range(6, 13)] * 2)


def test_a_reader_says_when_it_should_come_back_soon() -> None:
    memory = Memory(slots=16)
    reader = Reader(memory)
    memory.write(2)
    assert not reader.crowded(reader.read())
    memory.write(9)
    assert reader.crowded(reader.read())
    memory.write(17)
    assert reader.crowded(reader.read())


def test_one_number_of_every_event_needs_no_decoding() -> None:
    memory = Memory(cpus=2)
    memory.write(3)
    memory.write(2, 1)
    batch = Reader(memory).read()
    assert field_of_all(batch, "rule_id") == field_of_all(batch, "time_ns") == [1, 2, 3, 1, 2]


def test_cpus_are_merged_in_order_of_time() -> None:
    memory = Memory(cpus=2)
    reader = Reader(memory)
    for cpu, time in ((0, 10), (1, 5), (1, 20), (0, 15)):
        memory.end(cpu, memory.begin(cpu), time)
    assert [event["time_ns"] for event in reader.read().events] == [5, 10, 15, 20]


def test_a_reader_that_an_upgrade_left_behind_says_so(tmp_path: Path) -> None:
    """The events of today's programs have a layout that this agent does not know; those it knows end here."""
    slots = cast(MappedSlots, Memory())
    assert renewed_slots(str(tmp_path), slots) is None  # nothing is there at all: perhaps soon
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "events_v0123").touch()
    with pytest.raises(HostFailed, match="another version"):
        renewed_slots(str(tmp_path), slots)


def test_under_a_writer_that_never_stops_every_event_is_whole_and_accounted_for() -> None:
    memory = Memory(cpus=2, slots=16)
    reader = Reader(memory)
    total = 4000

    def writer(cpu: int) -> None:
        for _ in range(total):
            memory.write(1, cpu)

    threads = [threading.Thread(target=writer, args=(cpu,)) for cpu in range(2)]
    for thread in threads:
        thread.start()
    seen = lost = 0
    while any(thread.is_alive() for thread in threads):
        batch = reader.read()
        seen, lost = seen + len(batch.events), lost + batch.lost
        assert all(event["sequence"] == event["length"] == event["rule_id"] for event in batch.events)
    for thread in threads:
        thread.join()
    batch = reader.read()
    assert seen + len(batch.events) + lost + batch.lost == 2 * total
