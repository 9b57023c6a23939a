"""Every case, through the model of a node: it says of each packet what the programs do with it in test_verdicts.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.packet import modelled, world
from tests.packet.test_verdicts import CASES, ENDPOINT_CASES, HOST_CASES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: world.Case) -> None:
    modelled.play(case, is_judged=False)


@pytest.mark.parametrize("case", HOST_CASES, ids=str)
def test_case_of_a_host(case: world.Case) -> None:
    modelled.play(case, is_judged=True)


@pytest.mark.parametrize("case", ENDPOINT_CASES, ids=str)
def test_an_open_host_changes_no_case_of_an_endpoint(case: world.Case) -> None:
    steps = tuple(replace(step, events=None) if isinstance(step, world.Send) else step for step in case.steps)
    modelled.play(replace(case, steps=steps), is_judged=True)
