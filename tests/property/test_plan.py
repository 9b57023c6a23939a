"""plan and apply over a kernel in memory: for every state, from every state, through every failure."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Set, Tuple

from hypothesis import given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.entries import HEADER, HEADER_PEER, HEADER_PREFIXES
from bpfleet.errors import HostFailed
from bpfleet.loader.apply import apply
from bpfleet.loader.fake import FakeKernel
from bpfleet.loader.plan import plan
from bpfleet.loader.staging import POLICIES
from bpfleet.loader.steps import DeleteRows, PutRows, Step
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import NodeState
from tests.contract.rigs import TAP, UNDERLAY, with_constants
from tests.contract.states import EMPTY, state, veth
from tests.reference.fleets import clusters

calm = settings(deadline=None, max_examples=60)  # a busy machine is no failure

rules = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([6, 17]), st.integers(0, 3)),
    max_size=4,
    unique=True,
)

backends = st.lists(st.integers(1, 4), max_size=4, unique=True)


@st.composite
def states(draw: st.DrawFn) -> NodeState:
    """A state as a compiler may make it, of devices, endpoints and policies from a small stock."""
    if draw(st.integers(0, 9)) == 0:
        return EMPTY
    endpoints = draw(st.dictionaries(st.integers(1, 4), st.integers(65900, 65903), max_size=4))
    identities = sorted(set(endpoints.values()))
    chosen = st.dictionaries(st.sampled_from(identities), rules) if identities else st.just({})
    made = state(
        endpoints,
        draw(chosen),
        remote=draw(st.integers(0, 3)),
        port=draw(st.sampled_from([8472, 4789])),
        tap=draw(st.booleans()),
        tunnel_mtu=draw(st.sampled_from([1400, 1450])),
        services=draw(st.dictionaries(st.integers(80, 83), backends, max_size=4)),
    )
    devices: Dict[str, Any] = dict(made.devices)
    for number in endpoints:
        change = draw(st.sampled_from([{}, {}, {"mtu": 1400}, {"netns": "w9"}, {"peer_addresses": ("10.9.9.9",)}]))
        devices[veth(number).name] = veth(number, **change)
    made = dataclasses.replace(made, devices=devices)
    return with_constants(made, {"events_slots_mask": draw(st.sampled_from([127, 255]))})


def host(**options: Any) -> FakeKernel:
    """A fresh host with what the states need."""
    return FakeKernel({UNDERLAY: (1500, ("192.0.2.1",)), TAP: (1500, ())}, ("w1", "w2", "w3", "w4", "w9"), **options)


def bring(kernel: FakeKernel, want: NodeState) -> List[Step]:
    done = plan(want, kernel.read(want))
    apply(kernel, done)
    return done


@calm
@given(states())
def test_nothing_to_do_when_done(want: NodeState) -> None:
    kernel = host()
    bring(kernel, want)
    assert kernel.read(want) == want
    assert plan(want, kernel.read(want)) == []


@calm
@given(st.lists(states(), min_size=1, max_size=4))
def test_the_way_does_not_matter(path: List[NodeState]) -> None:
    kernel = host()
    for want in path:
        bring(kernel, want)
    assert kernel.read(path[-1]) == path[-1]
    assert kernel.unjudged == []
    bring(kernel, EMPTY)
    assert kernel.read(EMPTY) == EMPTY


@calm
@given(states(), states(), st.integers(0, 60))
def test_a_failure_is_got_over(before: NodeState, want: NodeState, at: int) -> None:
    kernel = host()
    bring(kernel, before)
    kernel.fail_at = kernel.steps_done + at
    done = plan(want, kernel.read(want))
    failed: Optional[HostFailed] = None
    try:
        apply(kernel, done)
    except HostFailed as error:
        failed = error
    assert (failed is not None) == (at < len(done))
    if failed is not None:
        assert failed.details["step"] == at
    kernel.fail_at = None
    bring(kernel, want)
    assert kernel.read(want) == want
    assert kernel.unjudged == []


@calm
@given(states(), states(), st.data())
def test_a_lost_device_is_got_over(before: NodeState, want: NodeState, data: st.DataObject) -> None:
    kernel = host()
    bring(kernel, before)
    made = sorted(name for name in before.devices if name != TAP)
    for name in data.draw(st.lists(st.sampled_from(made), unique=True)) if made else ():
        kernel.lose_device(name)
    bring(kernel, want)
    assert kernel.read(want) == want


@calm
@given(states(), states())
def test_at_every_step_the_policies_in_force_are_all_old_or_all_new(before: NodeState, want: NodeState) -> None:
    """Of every identity that keeps an endpoint, not made again; and who comes is judged by its policies at once."""
    kernel = host()
    bring(kernel, before)
    stay = {
        row[0]
        for (device,), row in _rows(before, "endpoints").items()
        if _rows(want, "endpoints").get((device,)) == row and want.devices.get(device) == before.devices.get(device)
    }
    for step in plan(want, kernel.read(want)):
        kernel.do(step)
        there = kernel.read(want)
        if POLICIES not in there.nested:
            continue
        old, new, have = (whole.nested.get(POLICIES, {}) for whole in (before, want, there))
        assert any(all(have.get(one) == whole.get(one) for one in stay) for whole in (old, new)), step.describe()
        for one in _identities(there) - _identities(before):
            assert have.get(one) == new.get(one), step.describe()
        for one in _identities(there) - _identities(want):
            assert have.get(one) == old.get(one), step.describe()


@calm
@given(clusters(), clusters())
def test_at_every_step_the_sets_that_policies_name_are_there(before: List[Document], then: List[Document]) -> None:
    """Without them nobody knows what is denied, and all is dropped."""
    kernel = FakeKernel(namespaces=("w1", "w2", "w3"))
    states_of = [Compiler().compile(DocumentSet(documents), kernel.facts("h1")).state for documents in (before, then)]
    for want in (*states_of, EMPTY):
        for step in plan(want, kernel.read(want)):
            kernel.do(step)
            nested = kernel.read(states_of[0]).nested
            for table in nested.get(POLICIES, {}).values():
                for (peer, _, header, _), value in table.rows.items():
                    if peer == HEADER_PEER and header != HEADER:
                        sets = nested["prefix_sets" if header == HEADER_PREFIXES else "port_sets"]
                        assert value[0] in sets, step.describe()


@calm
@given(states(), states())
def test_no_row_has_a_new_revision_with_old_contents(before: NodeState, want: NodeState) -> None:
    """Connections are stamped with the revisions: what an old map or table let through must never carry a new one."""
    kernel = host()
    bring(kernel, before)
    for step in plan(want, kernel.read(want)):
        kernel.do(step)
        there = kernel.read(want)
        if _node(there) == _node(want) is not None and _node(before) != _node(want):
            assert _rows(there, "addresses") == _rows(want, "addresses"), step.describe()


@calm
@given(states(), states(), st.integers(0, 60))
def test_no_row_has_the_old_revision_with_new_contents(before: NodeState, want: NodeState, end: int) -> None:
    """Nor does a change that is put back from anywhere: what was judged meanwhile would be believed again then.
    (A device that is made anew has another index, which the kernel's revision covers.)"""
    kernel = host()
    bring(kernel, before)
    done = plan(want, kernel.read(want))[:end]
    if any(step.kind == "RemoveDevice" for step in done):
        return

    def do(steps: List[Step]) -> None:
        for step in steps:
            kernel.do(step)
            there = kernel.read(want)
            if _node(there) == _node(before) is not None:
                assert _rows(there, "addresses") == _rows(before, "addresses"), step.describe()

    do(done)
    do(plan(before, kernel.read(before)))


@calm
@given(states(), states())
def test_no_frontend_ever_counts_other_backends_than_are_there(before: NodeState, want: NodeState) -> None:
    kernel = host()
    bring(kernel, before)
    for step in plan(want, kernel.read(want)):
        kernel.do(step)
        there = kernel.read(want)
        for number, count in _rows(there, "services").values():
            assert count == (len(there.nested["backends"][number].rows) if number else 0), step.describe()


@calm
@given(states(), states())
def test_only_what_differs_is_touched(before: NodeState, want: NodeState) -> None:
    """Established traffic survives an unrelated change: no row is written that is as it shall be."""
    kernel = host()
    bring(kernel, before)
    have = kernel.read(want)
    done = plan(want, have)
    if any(step.kind == "RemoveDevice" for step in done):
        return  # what is bound to the index of a device that is made anew is written again
    for step in done:
        if isinstance(step, PutRows):
            there = _rows(have, step.table)
            assert not [key for key, value in step.rows.rows.items() if there.get(key) == value]
        if isinstance(step, DeleteRows):
            assert not [key for key in step.keys if key in want.tables[step.table].rows]


@calm
@given(states())
def test_every_step_says_what_it_does(want: NodeState) -> None:
    kernel = host()
    for step in [*bring(kernel, want), *bring(kernel, EMPTY)]:
        assert step.describe() and "\n" not in step.describe() and len(step.describe()) < 300


def _rows(of: NodeState, table: str) -> Dict[Any, Tuple[Any, ...]]:
    return dict(of.tables[table].rows) if table in of.tables else {}


def _identities(of: NodeState) -> Set[Any]:
    return {value[0] for value in _rows(of, "endpoints").values()}


def _node(of: NodeState) -> Any:
    return _rows(of, "node").get((0,))
