"""Group `spine`: what the foundations cost. Verdicts, compilation, the agent, and an update that changes nothing."""

from __future__ import annotations

import statistics
import time
from typing import Callable, List

from bench import large_fleet, spine_agent, spine_verdicts
from bench.report import Measurement
from bpfleet.compile.compiler import Compiler
from bpfleet.model.document import DocumentSet

COMPILE_ROUNDS = 5


def measure() -> List[Measurement]:
    """All figures of the group."""
    return [*spine_verdicts.measure(), *compilation(), *spine_agent.measure()]


def compilation() -> List[Measurement]:
    """A whole compilation for one node of a large fleet, and one with one changed policy on top; best of some rounds.

    The best, because everything else on the machine only ever adds; each round has a compiler of its own.
    """
    facts = large_fleet.facts()
    full, delta = [], []
    for round_ in range(COMPILE_ROUNDS):
        documents = DocumentSet(large_fleet.documents())
        compiler = Compiler()
        full.append(_seconds(lambda: compiler.compile(documents, facts)))  # noqa: B023 - called at once
        changed = documents.changed([large_fleet.policy(round_, port=8080)])
        delta.append(_seconds(lambda: compiler.compile(changed, facts)))  # noqa: B023 - called at once
    note = (
        f"{large_fleet.NODES} nodes, {large_fleet.ENDPOINTS} endpoints, {large_fleet.POLICIES} policies, "
        f"{large_fleet.LOCAL_ENDPOINTS} endpoints local"
    )
    sides = {"median": statistics.median(full)}
    return [
        Measurement("compile_full_seconds", min(full), "s", at_most=2.0, sides=sides, note=note),
        Measurement(
            "compile_delta_seconds",
            min(delta),
            "s",
            at_most=0.05,
            sides={"median": statistics.median(delta)},
            note="one changed policy",
        ),
    ]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
