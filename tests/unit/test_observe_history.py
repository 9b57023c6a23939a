"""Reading the history while its slots change hands (bpf/include/bpfleet/flow.h says in which order)."""

from __future__ import annotations

from typing import Any

import pytest

from bpfleet.loader.layout import encode
from bpfleet.observe.history import is_still
from tests.unit.observe_support import FLOW_BLANK

USED: dict[str, Any] = {**FLOW_BLANK, "source_identity": 7, "verdict": 1, "first_seen": 10 << 30, "last_seen": 10}


@pytest.mark.parametrize(
    ("change", "still"),
    [
        ({}, True),
        ({"last_seen": 11}, True),
        ({"last_seen": 0}, False),  # its counts are being cleared for another
        ({"last_seen": 0, "source_identity": 8}, False),
        ({"last_seen": 9000, "source_identity": 8, "first_seen": 9000 << 30}, False),
        ({"last_seen": 9000, "first_seen": 9000 << 30}, False),  # the same flow again, counted anew
    ],
)
def test_counts_are_told_of_a_slot_that_was_one_flows_all_the_time(change: dict[str, Any], still: bool) -> None:
    before, after = (encode("flows", "value", {**USED, **more}) for more in ({}, change))
    assert is_still(before, after) is still
