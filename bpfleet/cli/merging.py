"""The streams of several nodes as one, in order of time, while they go on."""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import queue
import time
from collections.abc import Iterable, Iterator
from typing import Any

from bpfleet.cli.recording import newest, when

Line = dict[str, Any]
Arrived = queue.Queue[Line | None]

PATIENCE_SECONDS = 5.0
"""How long what nodes have kept waits for those that did not answer yet."""


def merge(
    arrived: Arrived, sources: int, hold_seconds: float, last: int = 0, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[Line]:
    """Lines from a queue in order of their time, each held back for a moment; None in the queue ends one source.

    `last`: not 0: each source begins with what it has kept, and ends that by one line with "clock", which is not passed
    on. Of all that the newest `last` come first (all, if negative).
    """
    first: Iterable[Line | None] = ()
    if last:
        kept, first = _begin(arrived, sources, last, patience_seconds)
        yield from kept
    held: list[tuple[float, int, Line]] = []
    order = itertools.count()
    due: collections.deque[tuple[float, int]] = collections.deque()
    passed: set[int] = set()

    def take() -> Line:
        _, number, line = heapq.heappop(held)
        passed.add(number)
        return line

    def hold(line: Line | None) -> int:
        """How many sources it ends."""
        if line is not None and "clock" not in line:
            number = next(order)
            heapq.heappush(held, (when(line), number, line))
            due.append((time.monotonic() + hold_seconds, number))
        return int(line is None)

    sources -= sum(map(hold, first))
    while sources or held:
        # Whoever is due goes, and before it all that is earlier: a node whose clock is behind, and whose lines are
        # always the earliest, keeps no other's waiting.
        while due and (due[0][0] <= time.monotonic() or not sources):
            number = due.popleft()[1]
            while number not in passed:
                yield take()
            passed.remove(number)
        if not sources:
            continue
        with contextlib.suppress(queue.Empty):
            sources -= hold(arrived.get(timeout=max(0.0, due[0][0] - time.monotonic()) if due else None))


def _begin(arrived: Arrived, sources: int, last: int, patience_seconds: float) -> tuple[list[Line], list[Line | None]]:
    """What all have kept, in order of time, of which the newest; and what came beside it, later or an end."""
    kept: list[Line] = []
    beside: list[Line | None] = []
    begun: set[object] = set()
    until = time.monotonic() + patience_seconds
    while len(begun) < sources:
        try:
            line = arrived.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if line is None or line["node"] in begun:
            beside.append(line)
        elif "clock" in line:
            begun.add(line["node"])
        else:
            kept.append(line)
    return newest(sorted(kept, key=when), last), beside
