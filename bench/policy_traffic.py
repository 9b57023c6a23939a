"""TCP between two workloads on two hosts with policy on, against plain forwarding over VXLAN between the same.

Throughput: both ends on CPUs of their own, packets received on the sender's, pairs of runs in alternating order, the
median of the pairs' ratios. Beside it without that steering, where it is reordering that differs from run to run.
Latency: a byte there and back, both ends on one CPU (across CPUs it would be wake-ups that are measured). XDP off;
beside it the same with XDP on bpfleet's underlay devices, which a veth pays for in itself.

    python -m bench.policy_traffic
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Callable, Dict, List, Tuple

from bench import policy_beds
from bench.policy_beds import ANSWERS_PORT, TCP_PORT, Beds, Way, serving
from bench.report import Measurement, table

PAIRS, XDP_PAIRS = 40, 12
SECONDS = 0.2
ASKED = 1_500
XDP_MODES = ("generic", "native")


def measure(beds: Beds) -> List[Measurement]:
    """policy_throughput_ratio and policy_latency_ratio, and both with XDP."""
    results = _both(beds, PAIRS, "", goals=True)
    try:
        for mode in XDP_MODES:
            beds.use_xdp(mode)
            results += _both(beds, XDP_PAIRS, f"_xdp_{mode}", goals=False)
    finally:
        beds.use_xdp("off")
    return results


def _both(beds: Beds, pairs: int, suffix: str, *, goals: bool) -> List[Measurement]:
    ways = [beds.ours, beds.plain]
    results: List[Measurement] = []
    with serving(ways, 1, TCP_PORT):
        with contextlib.ExitStack() as steered:
            for way in ways:
                steered.enter_context(way.steered(0))
            results.append(_throughput(ways, pairs, suffix, 0.95 if goals else None))
        if goals:
            results.append(_throughput(ways, pairs, "_unsteered", None))
    with serving(ways, 0, ANSWERS_PORT):
        took, latency = _paired(
            ways, pairs, lambda way: way.traffic("ask", 0, way.answering, ANSWERS_PORT, ASKED)[0] / 1e3
        )
    results.append(
        Measurement(
            f"policy_latency_ratio{suffix}",
            round(latency, 3),
            "ratio",
            at_most=1.0 if goals else None,
            sides=took,
            note=f"microseconds there and back, ours over plain, median of {pairs} pairs",
        )
    )
    return results


def _throughput(ways: List[Way], pairs: int, suffix: str, goal: float | None) -> Measurement:
    bits, ratio = _paired(ways, pairs, lambda way: way.traffic("send", 0, way.answering, TCP_PORT, SECONDS)[0] / 1e9)
    return Measurement(
        f"policy_throughput_ratio{suffix}",
        round(ratio, 3),
        "ratio",
        at_least=goal,
        sides=bits,
        note=f"Gb/s, ours over plain, median of {pairs} pairs",
    )


def _paired(ways: List[Way], pairs: int, once: Callable[[Way], float]) -> Tuple[Dict[str, float], float]:
    """The median of each way, and that of the first over the second in each pair."""
    found: Dict[str, List[float]] = {way.name: [] for way in ways}
    for number in range(pairs):
        for way in ways if number % 2 else ways[::-1]:
            found[way.name].append(once(way))
    first, second = (found[way.name] for way in ways)
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    return medians, statistics.median(a / b for a, b in zip(first, second))


if __name__ == "__main__":
    with policy_beds.up() as up:
        print(table(measure(up)))
