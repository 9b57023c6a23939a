"""Arrays that depend on how many CPUs a host has."""

from __future__ import annotations

import pytest

from bpfleet.loader.cpus import event_slots, new_event_slots
from bpfleet.loader.generated.layouts import MAPS

SLOT_BYTES = MAPS["events"]["value"]["size"]


@pytest.mark.parametrize(
    ("cpus", "slots"), [(1, 4096), (2, 4096), (48, 4096), (64, 2048), (128, 1024), (1024, 256), (8192, 256)]
)
def test_events_take_no_more_than_sixteen_megabytes_of_a_usual_host(cpus: int, slots: int) -> None:
    assert new_event_slots(cpus, SLOT_BYTES) == slots
    assert slots == 256 or cpus * slots * SLOT_BYTES <= 16 << 20
    assert event_slots(cpus * slots, cpus) == slots


def test_slots_are_a_power_of_two_whatever_the_arrays_are() -> None:
    """An array that is there keeps its size; its mask must fit, also beside a cursor of another time."""
    assert event_slots(64 * 256, 64) == 256
    assert event_slots(64 * 256, 3) == 4096
    assert event_slots(3 * 4096, 64) == 128
    assert event_slots(7, 7) == 1
