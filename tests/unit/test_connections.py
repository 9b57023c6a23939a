"""Which records of connections still count. The programs reckon alike: tests/packet/test_records.py."""

from __future__ import annotations

import pytest

from bpfleet.loader import layout
from bpfleet.loader.connections import live

SEEN = 100_000
NOTHING = {
    "policy_revision": 0, "addresses_revision": 0, "next_hop": "", "flow": 0, "ifindex": 0, "translated": 0, "peer": 0,
    "route": 0,
}  # fmt: skip
REPLIED, ENDED, DENIED = 1, 2 | 4, 16


@pytest.mark.parametrize(
    ("protocol", "state", "ticks"),
    [(17, 0, 56), (17, REPLIED, 56), (6, 0, 56), (6, REPLIED, 7451), (6, REPLIED | ENDED, 10), (6, 2 | REPLIED, 7451),
     (6, DENIED | ENDED, 7451)],
)  # fmt: skip
def test_a_record_counts_for_a_time(protocol: int, state: int, ticks: int) -> None:
    ends = {"source": "10.0.0.1", "destination": "10.0.0.2", "source_port": 1, "destination_port": 2}
    key = layout.encode("connections", "key", {**ends, "protocol": protocol, "direction": 0})
    value = layout.encode("connections", "value", {**NOTHING, "state": state, "last_seen": SEEN})
    assert [live(key, value, SEEN + idle) for idle in (0, ticks, ticks + 1)] == [1, 1, 0]
    assert live(key * 2, value * 2, SEEN) == 2
