"""Many nodes' events in one order."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, List

from hypothesis import given
from hypothesis import strategies as st

from bpfleet.cli import merging, recording


def test_streams_of_several_nodes_are_merged_in_order_of_time() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    for at, node in ((2.0, "a"), (1.0, "b"), (3.0, "b"), (2.0, "b")):
        arrived.put({"time": at, "node": node})
    arrived.put(None)
    arrived.put(None)
    merged = list(merging.merge(arrived, 2, hold_seconds=60))
    assert [(found["time"], found["node"]) for found in merged] == [(1.0, "b"), (2.0, "a"), (2.0, "b"), (3.0, "b")]


@given(st.lists(st.lists(st.integers(0, 50), max_size=8).map(sorted), min_size=1, max_size=4), st.randoms())
def test_nothing_is_lost_or_doubled_in_a_merge(nodes: List[List[int]], chance: Any) -> None:
    """However the nodes' streams interleave, each in order of time."""
    arrived: queue.Queue[Any] = queue.Queue()
    left = [[{"time": float(at), "node": str(node)} for at in times] for node, times in enumerate(nodes)]
    while any(left):
        arrived.put(chance.choice([events for events in left if events]).pop(0))
    for _ in nodes:
        arrived.put(None)
    merged = [(line["time"], line["node"]) for line in merging.merge(arrived, len(nodes), hold_seconds=60)]
    assert [at for at, _ in merged] == sorted(at for at, _ in merged)
    assert sorted(merged) == sorted((float(at), str(node)) for node, times in enumerate(nodes) for at in times)


def test_a_busy_node_whose_clock_is_behind_keeps_no_other_waiting() -> None:
    """Its events are always the earliest of those that are held."""
    arrived: queue.Queue[Any] = queue.Queue()
    began = time.monotonic()

    def feed() -> None:
        arrived.put({"time": 5000.0, "node": "right"})
        for number in range(100):
            arrived.put({"time": 1000.0 + number, "node": "behind"})
            time.sleep(0.02)
        arrived.put(None)

    feeding = threading.Thread(target=feed)
    feeding.start()
    merged = merging.merge(arrived, 1, hold_seconds=0.1)
    came = {line["node"]: time.monotonic() - began for line in merged}
    feeding.join()
    assert came["right"] < 1, "held back until the other node was silent"


def test_the_newest_kept_by_all_nodes_come_before_what_follows() -> None:
    """However long one takes to answer; --last is of all together, losses are no events."""
    arrived: queue.Queue[Any] = queue.Queue()

    def feed() -> None:
        for at in (1.0, 4.0):
            arrived.put({"time": at, "node": "quick", "verdict": "allowed"})
        arrived.put({"time": 0.0, "node": "quick", "clock": 0.0})
        arrived.put({"time": 9.0, "node": "quick", "verdict": "denied"})
        time.sleep(0.3)
        for at in (2.0, 3.0):
            arrived.put({"time": at, "node": "slow", "verdict": "allowed"})
        arrived.put({"time": 3.5, "node": "slow", "lost": 7})
        arrived.put({"time": 0.0, "node": "slow", "clock": 0.0})
        arrived.put(None)
        arrived.put(None)

    feeding = threading.Thread(target=feed)
    feeding.start()
    merged = list(merging.merge(arrived, 2, hold_seconds=0.05, last=2))
    feeding.join()
    assert [(line["time"], line["node"]) for line in merged] == [
        (3.0, "slow"),
        (3.5, "slow"),
        (4.0, "quick"),
        (9.0, "quick"),
    ]


def test_a_node_that_does_not_answer_keeps_the_kept_ones_for_a_while_only() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    arrived.put({"time": 1.0, "node": "quick", "verdict": "allowed"})
    arrived.put({"time": 0.0, "node": "quick", "clock": 0.0})
    began = time.monotonic()
    merged = merging.merge(arrived, 2, hold_seconds=0.05, last=-1, patience_seconds=0.2)
    assert next(merged)["time"] == 1.0
    assert time.monotonic() - began < 2


def test_the_newest_of_many_keep_the_losses() -> None:
    lines = [{"time": float(n), "verdict": "allowed"} for n in range(4)]
    lines.insert(1, {"time": 0.5, "lost": 1})
    assert [line["time"] for line in recording.newest(lines, 2)] == [0.5, 2.0, 3.0]
    assert recording.newest(lines, -1) == lines
