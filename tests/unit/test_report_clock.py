"""The node's time of day of what the kernel stamps by its monotonic clock."""

from __future__ import annotations

import pytest

from bpfleet.agent import report

EPOCH = 1_800_000_000.0


class Clocks:
    """Both clocks of a process that is put aside for 20 ms before one of its questions."""

    CLOCK_MONOTONIC = 1

    def __init__(self, aside: int) -> None:
        self._aside = aside
        self._asked = 0
        self._now = 5000.0

    def _tick(self) -> float:
        self._now += 0.02 if self._asked == self._aside else 1e-6
        self._asked += 1
        return self._now

    def clock_gettime(self, which: int) -> float:
        assert which == self.CLOCK_MONOTONIC
        return self._tick()

    def time(self) -> float:
        return EPOCH + self._tick()


@pytest.mark.parametrize("aside", range(10))
def test_a_process_that_has_to_wait_takes_no_clock_for_set(monkeypatch: pytest.MonkeyPatch, aside: int) -> None:
    """Or its events would go back by that time, before those that it told just now, and forth again."""
    monkeypatch.setattr(report, "time", Clocks(aside))
    assert report._boot_offset() == pytest.approx(EPOCH, abs=report._CLOCK_MOVED_SECONDS / 10)
