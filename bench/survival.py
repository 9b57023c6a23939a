"""Group `survival`: what a replaced program and a reboot cost the workloads of a host, and a service its clients."""

from __future__ import annotations

from typing import List

from bench import survival_restore, survival_sockets, survival_swap
from bench.report import Measurement


def measure() -> List[Measurement]:
    """All figures of the group."""
    return [*survival_swap.measure(), *survival_restore.measure(), *survival_sockets.measure()]
