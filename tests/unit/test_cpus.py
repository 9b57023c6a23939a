"""Arrays that depend on how many CPUs a host has."""

from __future__ import annotations

import pytest

from bpfleet.loader.cpus import lru_room, new_copy_sets, new_event_slots, slots_of_each
from bpfleet.loader.generated.layouts import MAPS

SLOT_BYTES = MAPS["events"]["value"]["size"]


@pytest.mark.parametrize(
    ("cpus", "slots"), [(1, 4096), (2, 4096), (48, 4096), (64, 2048), (128, 1024), (1024, 256), (8192, 256)]
)
def test_events_take_no_more_than_sixteen_megabytes_of_a_usual_host(cpus: int, slots: int) -> None:
    assert new_event_slots(cpus, SLOT_BYTES) == slots
    assert slots == 256 or cpus * slots * SLOT_BYTES <= 16 << 20
    assert slots_of_each(cpus * slots, cpus) == slots


def test_slots_are_a_power_of_two_whatever_the_arrays_are() -> None:
    """An array that is there keeps its size; its mask must fit, also beside a cursor of another time."""
    assert slots_of_each(64 * 256, 64) == 256
    assert slots_of_each(64 * 256, 3) == 4096
    assert slots_of_each(3 * 4096, 64) == 128
    assert slots_of_each(7, 7) == 1


@pytest.mark.parametrize(
    ("cpus", "connections", "sets"),
    [
        (2, 131072, 32768),
        (64, 131072, 1024),
        (3, 131072, 16384),
        (2, 1 << 24, 32768),
        (512, 1024, 1),
        (8192, 1024, 1),
    ],
)
def test_copies_have_room_for_each_connection(cpus: int, connections: int, sets: int) -> None:
    assert new_copy_sets(cpus, connections) == sets
    assert slots_of_each(cpus * sets, cpus) == sets


@pytest.mark.parametrize(("cpus", "room"), [(1, 131072 - 128), (64, 131072 - 8192), (256, 98304), (1024, 65536)])
def test_an_lru_map_forgets_before_it_is_full(cpus: int, room: int) -> None:
    assert lru_room(131072, cpus) == room
