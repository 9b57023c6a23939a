"""Group `policy`: what judging packets costs, by itself, observed, and against other filters and plain forwarding; and
how soon a changed policy is enforced."""

from __future__ import annotations

from typing import List

from bench import (
    policy_beds,
    policy_change,
    policy_filters,
    policy_hooks,
    policy_observe,
    policy_traffic,
    policy_verdicts,
)
from bench.report import Measurement


def measure() -> List[Measurement]:
    """All figures of the group."""
    results = [*policy_verdicts.measure(), *policy_hooks.measure()]
    with policy_beds.up() as beds:
        results += [*policy_filters.measure(beds), *policy_traffic.measure(beds), *policy_observe.measure(beds)]
    return [*results, *policy_change.measure()]
