"""Group `policy`: what judging packets costs, by itself and against other filters and plain forwarding."""

from __future__ import annotations

from typing import List

from bench import policy_hooks, policy_verdicts
from bench.report import Measurement


def measure() -> List[Measurement]:
    """All figures of the group."""
    return [*policy_verdicts.measure(), *policy_hooks.measure()]
