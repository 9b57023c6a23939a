"""Which records of connections still count. The programs reckon alike: tests/packet/test_records.py."""

from __future__ import annotations

import pytest

from bpfleet.loader.connections import is_live

REPLIED, ENDED, DENIED = 1, 2 | 4, 16


@pytest.mark.parametrize(
    ("protocol", "state", "ticks"),
    [(17, 0, 56), (17, REPLIED, 56), (6, 0, 56), (6, REPLIED, 7451), (6, REPLIED | ENDED, 10), (6, 2 | REPLIED, 7451),
     (6, DENIED | ENDED, 7451)],
)  # fmt: skip
def test_a_record_counts_for_a_time(protocol: int, state: int, ticks: int) -> None:
    assert is_live(protocol, state, ticks) and not is_live(protocol, state, ticks + 1)
