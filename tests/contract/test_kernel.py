"""What every Kernel must do, in memory and for real."""

from __future__ import annotations

import dataclasses
from typing import List

import pytest

from bpfleet.errors import HostFailed, ObjectRejected
from bpfleet.loader.apply import apply
from bpfleet.loader.kernel import Kernel
from bpfleet.loader.plan import plan
from bpfleet.loader.steps import Attach, EnsureDevice, LoadProgram, PutRows, ResizeMaps, SetUp, Step, SwapInner
from bpfleet.model.state import TUNNEL_DEVICE, NodeState, Table
from tests.contract.rigs import TAP, UNDERLAY, FailingKernel, Rig, with_constants
from tests.contract.states import ALL, EMPTY, MORE_NODES, ONE, OTHER_PORT, OTHER_RULES, TWO, WEB, state, veth


def bring(kernel: Kernel, want: NodeState) -> List[Step]:
    """Stage and apply a state as the agent does; the steps that took."""
    kernel.prepare(want.programs)
    done = plan(want, kernel.read(want))
    apply(kernel, done)
    kernel.release()
    return done


def test_from_nothing(rig: Rig) -> None:
    assert rig.kernel.read(EMPTY) == EMPTY
    bring(rig.kernel, TWO)
    assert rig.kernel.read(TWO) == TWO


def test_again_writes_nothing(rig: Rig) -> None:
    bring(rig.kernel, TWO)
    before = rig.kernel.writes
    assert bring(rig.kernel, TWO) == []
    assert rig.kernel.writes == before


def test_fitness(rig: Rig) -> None:
    rig.kernel.check_fitness()


def test_facts(rig: Rig) -> None:
    bring(rig.kernel, ONE)
    facts = rig.kernel.facts("h1")
    assert facts.node == "h1"
    assert facts.devices[UNDERLAY] == (1500, ("192.0.2.1",))
    assert TAP in facts.devices
    assert facts.namespaces == ("w1", "w2")
    assert facts.tcx is getattr(rig, "use_tcx", True)
    assert not [name for name in facts.devices if name.startswith("bpf")], "devices of ours are no facts"


def test_any_state_from_any_other(rig: Rig) -> None:
    """One walk that takes every way from one state to another once."""
    for name in circuit(sorted(ALL)):
        bring(rig.kernel, ALL[name])
        assert rig.kernel.read(ALL[name]) == ALL[name], name


def test_sets_of_policies_come_change_and_go(rig: Rig) -> None:
    """Tries in a map of maps: written in batches, read back as they were written, replaced, removed."""
    key, value = ("prefixlen", "address"), ("peer",)
    rows = {(96 + 24, f"10.{n >> 8}.{n & 255}.0"): ((1 << 24) + n,) for n in range(1000)}
    first = Table(key, value, {**rows, (32, "2001:db8::"): (1 << 25,), (0, "::"): (2,), (96, "0.0.0.0"): (3,)})
    second = Table(key, value, {(128, "10.0.0.7"): (1 << 24,)})
    ports = Table(("prefixlen", "protocol", "port"), ("interval",), {(28, 6, 80): (0,), (32, 1, 0x0800): (65535,)})
    for sets in ({7: first}, {7: second, 8: first}, {8: second}, {}):
        wanted = {**ONE.nested, "prefix_sets": sets, "port_sets": dict.fromkeys(sets, ports)}
        want = dataclasses.replace(ONE, nested=wanted)
        bring(rig.kernel, want)
        assert rig.kernel.read(want) == want
        assert bring(rig.kernel, want) == []


def sized(want: NodeState, **sizes: int) -> NodeState:
    """A state whose maps are declared to have room for so many entries."""
    programs = {name: dataclasses.replace(program, sizes=sizes) for name, program in want.programs.items()}
    return dataclasses.replace(want, programs=programs, sizes=sizes)


def test_maps_become_as_large_as_declared_and_keep_what_they_hold(rig: Rig) -> None:
    """By a step of the change. Those that programs fill keep their size until they are made anew, but connections."""
    first = sized(TWO, addresses=1000, connections=5000, policies=99, prefix_sets=77, policy_entries=300, flows=102)
    larger = sized(TWO, addresses=2000, connections=9000, policies=199, prefix_sets=177, policy_entries=400, flows=202)
    bring(rig.kernel, first)
    assert rig.kernel.read(first) == first
    links = {hook: rig.link_id(*hook) for hook in first.attachments if hook[1] in ("ingress", "egress")}
    for want in (larger, first):
        (step,) = bring(rig.kernel, want)
        assert isinstance(step, ResizeMaps)
        assert set(step.sizes) == {"addresses", "connections", "policies", "prefix_sets"}
        sizes = {**want.sizes, "flows": first.sizes["flows"]}
        assert rig.kernel.read(want) == dataclasses.replace(want, sizes=sizes)
        assert bring(rig.kernel, want) == []
        rig.kernel.do(step)
        assert bring(rig.kernel, want) == []
    assert links == {hook: rig.link_id(*hook) for hook in links}, "programs are replaced in place"
    bring(rig.kernel, EMPTY)
    assert rig.left() == set()
    bring(rig.kernel, larger)
    assert rig.kernel.read(larger) == larger


def circuit(names: List[str]) -> List[str]:
    """A walk over all ordered pairs of names (Hierholzer)."""
    ways = {name: [other for other in names if other != name] for name in names}
    path, found = [names[0]], []
    while path:
        if ways[path[-1]]:
            path.append(ways[path[-1]].pop())
        else:
            found.append(path.pop())
    assert len(found) == len(names) * (len(names) - 1) + 1
    return found[::-1]


def test_a_row_changes_alone(rig: Rig) -> None:
    bring(rig.kernel, state({1: 65900}, remote=1))
    want = state({1: 65900}, remote=2)
    done = bring(rig.kernel, want)
    assert [(step.kind, len(step.rows.rows)) for step in done if isinstance(step, PutRows)] == [
        ("PutRows", 1),  # the revision, before and after
        ("PutRows", 2),
        ("PutRows", 1),
    ]
    assert len(done) == 3
    assert rig.kernel.read(want) == want


def test_rules_that_are_staged_are_in_force_from_the_switch_on(rig: Rig) -> None:
    """And a change that ends anywhere leaves the old rules or the new ones, which are settled by whoever comes next."""
    bring(rig.kernel, TWO)
    stage, switch, settle = plan(OTHER_RULES, rig.kernel.read(OTHER_RULES))
    assert isinstance(stage, SwapInner) and list(stage.inners) == [65900]
    old, new = TWO.nested["policies"], OTHER_RULES.nested["policies"]
    switched = (switch, new, [65900])
    for step, rules, staged in ((stage, old, [65900]), switched, switched, (settle, new, [])):
        rig.kernel.do(step)
        there = rig.kernel.read(OTHER_RULES).nested
        assert (there["policies"], list(there["policies_staged"])) == (rules, staged)
    assert rig.kernel.read(OTHER_RULES) == OTHER_RULES
    rig.kernel.do(settle)
    rig.kernel.do(switch)  # to nothing
    assert rig.kernel.read(OTHER_RULES) == OTHER_RULES


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("want", [TWO, OTHER_RULES, MORE_NODES])
def test_what_a_change_left_staged_is_settled(rig: Rig, want: NodeState, done: int) -> None:
    bring(rig.kernel, TWO)
    for step in plan(OTHER_RULES, rig.kernel.read(OTHER_RULES))[:done]:
        rig.kernel.do(step)
    assert [step.kind for step in bring(rig.kernel, want)].count("SettlePolicies") >= 1
    assert rig.kernel.read(want) == want


def test_a_policy_that_goes_is_gone(rig: Rig) -> None:
    bring(rig.kernel, TWO)
    want = state({1: 65900, 2: 66000}, {65900: WEB})
    assert [step.kind for step in bring(rig.kernel, want)] == ["SwapInner", "SwitchPolicies", "SettlePolicies"]
    assert rig.kernel.read(want) == want


def test_a_program_is_replaced_in_place(rig: Rig) -> None:
    bring(rig.kernel, TWO)
    hook = (veth(1).name, "ingress")
    before = rig.link_id(*hook)
    want = with_constants(TWO, {"events_slots_mask": 127})
    done = bring(rig.kernel, want)
    assert {step.kind for step in done} == {"LoadProgram", "Attach", "DropProgram"}
    assert rig.link_id(*hook) == before
    assert rig.kernel.read(want) == want


def test_a_program_may_be_loaded_by_its_step(rig: Rig) -> None:
    """The agent may plan before it prepares."""
    done = plan(TWO, rig.kernel.read(TWO))
    assert any(isinstance(step, LoadProgram) for step in done)
    apply(rig.kernel, done)
    assert rig.kernel.read(TWO) == TWO


def test_what_was_prepared_and_not_used_is_released(rig: Rig) -> None:
    rig.kernel.prepare(TWO.programs)
    rig.kernel.release()
    assert rig.left() == set()
    bring(rig.kernel, TWO)
    rig.kernel.prepare(OTHER_PORT.programs)
    rig.kernel.release()
    assert rig.kernel.read(TWO) == TWO


def test_what_was_prepared_by_a_process_that_died_is_no_difference(rig: Rig) -> None:
    """Only what is pinned outlives a process; another one sees nothing of what was prepared."""
    bring(rig.kernel, TWO)
    left = rig.left()
    rig.kernel.prepare(OTHER_PORT.programs)
    assert rig.left() == left
    assert plan(TWO, rig.kernel.read(TWO)) == []


def test_a_veth_carries_nothing_before_it_is_judged(rig: Rig) -> None:
    done = plan(ONE, rig.kernel.read(ONE))
    name = veth(1).name
    made = next(n for n, step in enumerate(done) if isinstance(step, EnsureDevice) and step.device.name == name)
    attached = [n for n, step in enumerate(done) if isinstance(step, Attach) and step.device == name]
    up = next(n for n, step in enumerate(done) if isinstance(step, SetUp) and step.device == name)
    assert made < min(attached) <= max(attached) < up
    apply(rig.kernel, done[:up])
    assert not rig.kernel.read(ONE).devices[name].up


def test_teardown_leaves_nothing(rig: Rig) -> None:
    rig.add_foreign()
    foreign = rig.foreign()
    bring(rig.kernel, TWO)
    bring(rig.kernel, MORE_NODES)
    assert rig.left() != set()
    bring(rig.kernel, EMPTY)
    assert rig.left() == set()
    assert rig.foreign() == foreign


def test_others_are_left_alone(rig: Rig) -> None:
    rig.add_foreign()
    foreign = rig.foreign()
    for want in (TWO, OTHER_PORT, with_constants(OTHER_PORT, {"events_slots_mask": 127})):
        bring(rig.kernel, want)
        assert rig.foreign() == foreign
        assert rig.kernel.read(want) == want


@pytest.mark.parametrize("name", [veth(1).name, TUNNEL_DEVICE])
def test_a_lost_device_is_made_again(rig: Rig, name: str) -> None:
    bring(rig.kernel, TWO)
    rig.lose_device(name)
    assert rig.kernel.read(TWO) != TWO
    bring(rig.kernel, TWO)
    assert rig.kernel.read(TWO) == TWO
    assert bring(rig.kernel, TWO) == []


def test_lost_maps_and_programs_are_made_again(rig: Rig) -> None:
    bring(rig.kernel, TWO)
    rig.lose_maps_and_programs()
    bring(rig.kernel, TWO)
    assert rig.kernel.read(TWO) == TWO
    bring(rig.kernel, EMPTY)
    assert rig.left() == set()


@pytest.mark.parametrize("changes", [{"netns": "w2"}, {"peer_name": "net1"}])
def test_a_veth_that_must_be_made_anew(rig: Rig, changes: dict[str, str]) -> None:
    """Its index changes, so every row that holds the old one is put again."""
    bring(rig.kernel, ONE)
    moved = veth(1, **changes)
    want = dataclasses.replace(ONE, devices={**ONE.devices, moved.name: moved})
    bring(rig.kernel, want)
    assert rig.kernel.read(want) == want


@pytest.mark.parametrize(
    "changes",
    [
        {"mac": "02:00:00:00:03:01"},
        {"peer_mac": "02:00:00:00:03:02"},
        {"mtu": 1280},
        {"peer_addresses": ("10.77.1.1", "10.77.1.77")},
    ],
)
def test_a_veth_that_is_changed(rig: Rig, changes: dict[str, object]) -> None:
    bring(rig.kernel, ONE)
    other = veth(1, **changes)
    want = dataclasses.replace(ONE, devices={**ONE.devices, other.name: other})
    done = bring(rig.kernel, want)
    assert [step.kind for step in done] == ["EnsureDevice"]
    assert rig.kernel.read(want) == want


@pytest.mark.parametrize("before,target", [("empty", "two"), ("two", "more nodes"), ("more nodes", "empty")])
def test_a_failure_at_any_step_is_got_over(rig: Rig, before: str, target: str) -> None:
    want = ALL[target]
    bring(rig.kernel, ALL[before])
    for at in rig.worth_failing(plan(want, rig.kernel.read(want))):
        bring(rig.kernel, ALL[before])
        done = plan(want, rig.kernel.read(want))
        if at >= len(done):  # sysctls stay, so there may be fewer steps than the first time
            continue
        with pytest.raises(HostFailed) as caught:
            apply(FailingKernel(rig.kernel, at), done)
        assert (caught.value.details["step"], caught.value.details["steps"]) == (at, len(done))
        assert caught.value.details["doing"] == done[at].describe()
        bring(rig.kernel, want)
        assert rig.kernel.read(want) == want


def test_a_rejected_object_changes_nothing(rig: Rig) -> None:
    bring(rig.kernel, TWO)
    rig.reject("to_endpoint")
    want = with_constants(TWO, {"events_slots_mask": 127})
    before = rig.kernel.read(EMPTY)
    with pytest.raises(ObjectRejected) as caught:
        rig.kernel.prepare(want.programs)
    assert "to_endpoint" in caught.value.what
    assert caught.value.details["object"] == "to_endpoint"
    assert any("!read_ok" in line for line in caught.value.details["log"])
    rig.kernel.release()
    assert rig.kernel.read(EMPTY) == before


def test_a_rejected_object_on_an_empty_host_leaves_nothing(rig: Rig) -> None:
    rig.reject("to_tunnel")
    with pytest.raises(ObjectRejected):
        rig.kernel.prepare(TWO.programs)
    assert rig.left() == set()


def test_missing_namespace_is_named(rig: Rig) -> None:
    lost = veth(1, netns="w9")
    want = dataclasses.replace(ONE, devices={**ONE.devices, lost.name: lost})
    with pytest.raises(HostFailed, match="w9 is not there"):
        bring(rig.kernel, want)


def test_missing_device_is_named(rig: Rig) -> None:
    want = state({1: 65900}, {65900: WEB}, tap=True)
    rig.lose_device(TAP)
    with pytest.raises(HostFailed, match=f"{TAP} is not there"):
        bring(rig.kernel, want)
