"""Every case, through the programs in the kernel."""

from __future__ import annotations

from typing import List

import pytest

from tests.packet import cases_edge, cases_endpoint, world
from tests.packet.kernel import Datapath

pytestmark = pytest.mark.root

CASES: List[world.Case] = [
    case
    for family in (4, 6)
    for make in (
        cases_endpoint.local_cases,
        cases_endpoint.policy_cases,
        cases_endpoint.outward_cases,
        cases_edge.device_cases,
    )
    for case in make(family)
]
CASES += cases_edge.malformed_v4() + cases_edge.malformed_v6() + cases_edge.always_cases()


def play(datapath: Datapath, case: world.Case) -> None:
    """Take the steps of a case and compare all that came of each packet."""
    for number, step in enumerate(case.steps, 1):
        if not isinstance(step, world.Send):
            world.apply(datapath, step)
            continue
        at, via = world.DEVICES.get(step.at, 0), world.DEVICES.get(step.via, 0)
        result = datapath.run(step.program, step.frame, at, via)
        events = [{name: event[name] for name in want} for want, event in zip(step.events, result.events)]
        have = {
            "action": result.action,
            "counters": result.counters,
            "events": events if len(result.events) == len(step.events) else result.events,
            "frame": result.frame.hex() if step.out is not None else None,
        }
        want = {
            "action": step.action,
            "counters": dict(step.counters),
            "events": [dict(event) for event in step.events],
            "frame": step.out.hex() if step.out is not None else None,
        }
        assert have == want, f"step {number} of {case}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(datapath: Datapath, case: world.Case) -> None:
    play(datapath, case)
