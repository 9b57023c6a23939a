"""What it costs the program to be observed: 50,000 verdict events a second, with and without an agent that reads them.

A workload sends to where policy does not let it, so that each packet is an event of bpfl_from_ep. What the program
takes is the kernel's own count (BPF_ENABLE_STATS); in every other round `bpfleet observe --follow`'s request is under
way, and what it streams and what it says was lost are counted against what was sent.

    python -m bench.policy_observe
"""

from __future__ import annotations

import contextlib
import os
import statistics
import struct
import threading
import time
from pathlib import Path
from typing import Iterator, List, Tuple

from bench import policy_beds
from bench.policy_beds import FIRST_PORT, RULES, Beds
from bench.report import Measurement, table
from tests.packet import kernel

RATE, SECONDS, ROUNDS = 50_000, 1.0, 9
NOWHERE = "198.51.100.1"  # the world, which no rule of the client's lets it reach
_DRAIN_SECONDS = 20.0

_NEXT_ID, _FD_BY_ID, _ENABLE_STATS = 11, 13, 32


class Observer:
    """Follows a host's events in a thread of its own, as the command line does."""

    def __init__(self, beds: Beds) -> None:
        self.events = self.lost = 0
        self._stream = beds.fleet.stream(
            beds.target(beds.ours.client), "events", {"follow": True, "last": 0, "notices": True}
        )
        self._reads = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._ended = False
        self._thread.start()
        if not self._reads.wait(_DRAIN_SECONDS):
            raise RuntimeError("the agent does not begin to read")

    def _follow(self) -> None:
        with contextlib.closing(self._stream):
            for item in self._stream:
                if self._ended:
                    return
                if "clock" in item:
                    self._reads.set()
                    self.events = self.lost = 0  # those before are not ours
                elif "lost" in item:
                    self.lost += int(item["lost"])
                elif "verdict" in item:
                    self.events += 1

    def drained(self, count: int) -> None:
        """Wait until so many events are accounted for. RuntimeError if they do not come."""
        until = time.monotonic() + _DRAIN_SECONDS
        while self.events + self.lost < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{count} events, of which {self.events} were seen and {self.lost} said to be lost")
            time.sleep(0.05)

    def end(self, beds: Beds) -> None:
        """End it, which takes one more event."""
        self._ended = True
        _send(beds, 0.001)
        self._thread.join(_DRAIN_SECONDS)


def measure(beds: Beds) -> List[Measurement]:
    """observe_slowdown_ratio: the program's time for a packet, observed over unobserved, median of paired rounds."""
    stats, _ = kernel.bpf(_ENABLE_STATS, struct.pack("<I", 0))
    alone: List[float] = []
    observed: List[float] = []
    rates: List[float] = []
    seen = lost = 0
    try:
        for _ in range(ROUNDS):
            alone.append(_round(beds)[0])
            observer = Observer(beds)
            ns, sent = _round(beds)
            observed.append(ns)
            rates.append(sent / SECONDS)
            observer.drained(sent)
            observer.end(beds)
            seen, lost = seen + observer.events, lost + observer.lost
    finally:
        os.close(stats)
    ratio = statistics.median(one / other for one, other in zip(observed, alone))
    return [
        Measurement(
            "observe_slowdown_ratio",
            round(ratio, 3),
            "ratio",
            at_most=1.05,
            sides={
                "observed ns": round(statistics.median(observed), 1),
                "unobserved ns": round(statistics.median(alone), 1),
                "events a second": round(statistics.median(rates)),
                "seen": seen,
                "said to be lost": lost,
            },
            note=f"median of {ROUNDS} pairs; every event was seen or counted as lost",
        )
    ]


def _round(beds: Beds) -> Tuple[float, int]:
    """Send for a while: the program's nanoseconds a run, and packets sent."""
    before = dict(_programs())
    sent = _send(beds, SECONDS)
    grown = [
        (runs - before[number][0], ns - before[number][1]) for number, (runs, ns) in _programs() if number in before
    ]
    runs, ns = min(grown, key=lambda one: abs(one[0] - sent))  # of all that run on this machine, that one ran so often
    if abs(runs - sent) > sent / 100:
        raise RuntimeError(f"no program ran {sent} times: {sorted(grown)[-3:]}")
    return ns / runs, sent


def _send(beds: Beds, seconds: float) -> int:
    return int(beds.ours.traffic("blast", 0, NOWHERE, FIRST_PORT, RULES, seconds, RATE)[0])


def _programs() -> Iterator[Tuple[int, Tuple[int, int]]]:
    """Every program's number, how often it ran and for how many nanoseconds, since the kernel counts."""
    number = 0
    while True:
        try:
            _, left = kernel.bpf(_NEXT_ID, struct.pack("<II", number, 0))
        except FileNotFoundError:
            return
        number = struct.unpack_from("<II", left)[1]
        try:
            handle, _ = kernel.bpf(_FD_BY_ID, struct.pack("<I", number))
        except OSError:
            continue  # gone meanwhile
        try:
            lines = Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines()
        finally:
            os.close(handle)
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        yield number, (int(told["run_cnt"]), int(told["run_time_ns"]))


if __name__ == "__main__":
    with policy_beds.up() as up:
        print(table(measure(up)))
