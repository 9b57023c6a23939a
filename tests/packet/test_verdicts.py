"""Every case, through the programs in the kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import List

import pytest

from tests.packet import (
    cases_edge,
    cases_endpoint,
    cases_expiry,
    cases_fragments,
    cases_host,
    cases_services,
    cases_time,
    world,
)
from tests.packet.kernel import Datapath

pytestmark = pytest.mark.root

ENDPOINT_CASES: List[world.Case] = [
    case
    for family in (4, 6)
    for make in (
        cases_endpoint.local_cases,
        cases_endpoint.policy_cases,
        cases_endpoint.outward_cases,
        cases_expiry.expiry_cases,
        cases_fragments.fragment_cases,
        cases_services.flow_cases,
        cases_services.error_cases,
        cases_time.endpoint_cases,
    )
    for case in make(family)
]
CASES = [*ENDPOINT_CASES, *(case for family in (4, 6) for case in cases_edge.device_cases(family))]
CASES += cases_edge.sound_transports(4) + cases_edge.sound_transports(6)
CASES += cases_edge.malformed_v4() + cases_edge.malformed_v6() + cases_edge.always_cases() + cases_services.odd_cases()


HOST_CASES = [
    case
    for family in (4, 6)
    for make in (
        cases_host.underlay_cases,
        cases_host.always_cases,
        cases_host.forwarded_cases,
        cases_host.endpoint_cases,
        cases_time.host_cases,
    )
    for case in make(family)
]


RECORDED = ("verdict", "rule_id", "direction")
"""What an event and the history say alike."""


def play(datapath: Datapath, case: world.Case) -> None:
    """Take the steps of a case and compare all that came of each packet."""
    for number, step in enumerate(case.steps, 1):
        if not isinstance(step, world.Send):
            world.apply(datapath, step)
            continue
        at, via = world.DEVICES.get(step.at, 0), world.DEVICES.get(step.via, 0)
        result = datapath.run(step.program, step.frame, at, via)
        expected = result.events if step.events is None else step.events
        events = [{name: event[name] for name in want} for want, event in zip(expected, result.events)]
        have = {
            "action": result.action,
            "counters": result.counters,
            "events": events if len(result.events) == len(expected) else result.events,
            "frame": result.frame.hex() if step.out is not None else None,
        }
        want = {
            "action": step.action,
            "counters": dict(step.counters),
            "events": [dict(event) for event in expected],
            "frame": step.out.hex() if step.out is not None else None,
        }
        assert have == want, f"step {number} of {case}"
        kept = {tuple(flow[name] for name in RECORDED) for flow in datapath.flows()}
        for event in result.events:
            if event["reason"] != "failsafe" and event["hook"] != "xdp_underlay":
                assert tuple(event[name] for name in RECORDED) in kept, f"step {number} of {case}: not in the history"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(datapath: Datapath, case: world.Case) -> None:
    play(datapath, case)


@pytest.mark.parametrize("case", HOST_CASES, ids=str)
def test_case_of_a_host(host_datapath: Datapath, case: world.Case) -> None:
    play(host_datapath, case)


@pytest.mark.parametrize("case", ENDPOINT_CASES, ids=str)
def test_an_open_host_changes_no_case_of_an_endpoint(host_datapath: Datapath, case: world.Case) -> None:
    """Where policies select the node but close nothing, endpoints meet the same. Only the host has events as well."""
    steps = tuple(replace(step, events=None) if isinstance(step, world.Send) else step for step in case.steps)
    play(host_datapath, replace(case, steps=steps))
