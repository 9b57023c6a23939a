"""plan: the order of a change, and what people read of it."""

from __future__ import annotations

import dataclasses
from typing import List

import pytest

from bpfleet.agent.node import DESCRIBED_STEPS, described
from bpfleet.errors import HostFailed, InvalidInput
from bpfleet.loader.apply import apply
from bpfleet.loader.fake import FakeKernel
from bpfleet.loader.kernel import Found
from bpfleet.loader.plan import plan
from bpfleet.loader.steps import SetUp, Step, SwapInner
from bpfleet.model.state import TUNNEL_DEVICE, NodeState, Program, Table
from tests.contract.rigs import UNDERLAY
from tests.contract.states import EMPTY, MORE_NODES, ONE, OTHER_RULES, TWO, WEB, state, veth


def kinds(steps: List[Step]) -> List[str]:
    """Kinds in order, repeats told once; puts and deletes with their table."""
    found: List[str] = []
    for step in steps:
        table = getattr(step, "table", None)
        name = f"{step.kind} {table}" if table else step.kind
        if not found or found[-1] != name:
            found.append(name)
    return found


def test_the_order_of_a_beginning() -> None:
    assert kinds(plan(TWO, EMPTY)) == [
        "EnsureDevice",
        "SetSysctl",
        "LoadProgram",
        "PutRows addresses",
        "SwapInner policies",
        "PutRows endpoints",
        "PutRows node",
        "Attach",
        "SetUp",
        "PutRoute",
    ]


def test_the_order_of_an_end() -> None:
    assert kinds(plan(EMPTY, TWO)) == [
        "SetDown",
        "Detach",
        "RemoveRoute",
        "DropProgram",
        "RemoveDevice",
        "RemoveMap",
    ]


def test_the_order_of_a_change() -> None:
    """An endpoint goes, another identity comes: what is added first, what is removed after, the revision last; till
    then it is another."""
    want = dataclasses.replace(MORE_NODES, sysctls={})
    have = dataclasses.replace(TWO, sysctls={})
    assert kinds(plan(want, have)) == [
        "SetDown",
        "EnsureDevice",  # a tap
        "PutRows node",
        "PutRows addresses",
        "SwapInner policies_staged",  # of an identity that stays
        "SwitchPolicies",
        "SettlePolicies",
        "PutRows endpoints",
        "Detach",
        "RemoveRoute",
        "DeleteRows endpoints",
        "DeleteRows addresses",
        "RemoveInner policies",
        "PutRows node",
        "Attach",
        "SetUp",
        "PutRoute",
        "RemoveDevice",
    ]


def test_nothing_to_do() -> None:
    assert plan(TWO, TWO) == []
    assert plan(EMPTY, EMPTY) == []


def test_only_the_changed_inner_map_is_swapped() -> None:
    steps = plan(OTHER_RULES, TWO)
    assert kinds(steps) == ["SwapInner policies_staged", "SwitchPolicies", "SettlePolicies"]
    assert isinstance(steps[0], SwapInner) and list(steps[0].inners) == [65900]


def test_a_policy_that_goes_is_switched_to_with_those_that_change() -> None:
    """As an empty one: no packet sees it gone and the others unchanged."""
    have = state({1: 65900, 2: 66000}, {65900: WEB, 66000: WEB})
    steps = plan(state({1: 65900, 2: 66000}, {66000: [*WEB, (0, 0, 17, 53)]}), have)
    assert kinds(steps) == ["SwapInner policies_staged", "SwitchPolicies", "SettlePolicies"]
    assert isinstance(steps[0], SwapInner)
    assert {subject: len(inner.rows) for subject, inner in steps[0].inners.items()} == {65900: 0, 66000: 3}


def test_the_host_is_switched_with_its_endpoints() -> None:
    """Also where no policy selected it, or none will: a program that judges it may be there."""
    selected, open_host = state({1: 65900}, {1: WEB, 65900: WEB}), state({1: 65900})
    for want, have in ((selected, open_host), (open_host, selected)):
        steps = [step for step in plan(want, have) if isinstance(step, SwapInner)]
        assert [(step.table, list(step.inners)) for step in steps] == [("policies_staged", [1, 65900])]


def test_what_was_left_staged_is_settled_first() -> None:
    left = dataclasses.replace(TWO, nested={**TWO.nested, "policies_staged": OTHER_RULES.nested["policies"]})
    assert kinds(plan(TWO, left)) == ["SettlePolicies"]
    assert kinds(plan(OTHER_RULES, left)) == [
        "SettlePolicies",
        "SwapInner policies_staged",
        "SwitchPolicies",
        "SettlePolicies",
    ]


def test_an_endpoint_that_goes_is_not_open_on_its_way() -> None:
    have = state({1: 65900, 2: 66000}, {66000: WEB})
    order = kinds(plan(state({1: 65900}), have))
    assert order.index("SetDown") < order.index("DeleteRows endpoints") < order.index("RemoveInner policies")


def test_sysctls_keep_their_order() -> None:
    """IPv6 forwarding comes after what keeps the host's own route, and the names would sort the other way."""
    want = NodeState(sysctls={"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/all/forwarding": "1"})
    assert [step.describe() for step in plan(want, EMPTY)] == [
        "set sysctl net/ipv6/conf/eth0/accept_ra = 2",
        "set sysctl net/ipv6/conf/all/forwarding = 1",
    ]


def test_a_device_that_is_only_down_is_only_set_up() -> None:
    name = veth(1).name
    found = Found(name, "veth", {"mtu": 1450}, up=False)
    have = dataclasses.replace(ONE, devices={**ONE.devices, name: found})
    assert [step.describe() for step in plan(ONE, have)] == [f"set device {name} up"]


def test_a_device_made_anew_takes_along_what_hangs_on_its_index() -> None:
    found = Found(TUNNEL_DEVICE, "vxlan", {}, up=True, lacks=("UDP port 4789",), rebuild=True)
    have = dataclasses.replace(ONE, devices={**ONE.devices, TUNNEL_DEVICE: found})
    assert kinds(plan(ONE, have)) == [
        "SetDown",
        "Detach",
        "RemoveRoute",
        "RemoveDevice",
        "EnsureDevice",
        "PutRows node",
        "Attach",
        "SetUp",
        "PutRoute",
    ]


def test_tables_nobody_declares_are_not_touched() -> None:
    have = dataclasses.replace(ONE, tables={**ONE.tables, "connections": Table((), ())})
    assert [step.describe() for step in plan(EMPTY, have)][-1] == "remove map services"
    want = dataclasses.replace(ONE, programs={**ONE.programs, "from_tunnel": Program("from_tunnel")})
    assert kinds(plan(want, ONE)) == ["LoadProgram", "Attach"]


def test_rows_of_other_fields_are_an_error_of_ours() -> None:
    have = dataclasses.replace(ONE, tables={**ONE.tables, "node": Table(("index",), ("x",), {(0,): (1,)})})
    with pytest.raises(ValueError, match="are wanted"):
        plan(ONE, have)


def test_what_does_not_fit_is_refused_before_anything() -> None:
    rows = {(f"bpf-{n:010x}",): (1, 0, "", "") for n in range(8193)}
    fields = ("identity", "flags", "workload_mac", "device_mac")
    want = NodeState(tables={"endpoints": Table(("ifindex",), fields, rows)})
    with pytest.raises(InvalidInput, match="endpoints has room for 8192 entries, 8193 are needed") as caught:
        plan(want, EMPTY)
    assert caught.value.remedy and caught.value.field == "endpoints"


def _with_set(number: int) -> NodeState:
    """The state TWO, whose policies name one prefix set and one port set."""
    prefixes = {number: Table(("prefixlen", "address"), ("peer",), {(104, "10.0.0.0"): (1 << 24,)})}
    ports = {number: Table(("prefixlen", "protocol", "port"), ("interval",), {(28, 6, 80): (0,)})}
    key, web = next(iter(TWO.nested["policies"].items()))
    table = Table(web.key, web.value, {**web.rows, (0xFFFFFFFF, 0, 1, 0): (number, 0, 0)})
    nested = {"policies": {**TWO.nested["policies"], key: table}, "prefix_sets": prefixes, "port_sets": ports}
    return dataclasses.replace(TWO, nested=nested)


def test_sets_are_there_before_policies_name_them_and_until_none_does() -> None:
    steps = kinds(plan(_with_set(8), _with_set(7)))
    assert steps == [
        "SwapInner port_sets",
        "SwapInner prefix_sets",
        "SwapInner policies_staged",
        "SwitchPolicies",
        "SettlePolicies",
        "RemoveInner port_sets",
        "RemoveInner prefix_sets",
    ]


def test_a_policy_map_or_set_without_end_is_refused_by_name() -> None:
    rows = {(number, 0, 6, 80): (1, 1, 0) for number in range(262145)}
    web = next(iter(TWO.nested["policies"].values()))
    sizes = {"policy_entries": 262144}
    want = dataclasses.replace(ONE, nested={"policies": {70001: Table(web.key, web.value, rows)}}, sizes=sizes)
    with pytest.raises(
        InvalidInput, match="policy_entries of identity 70001 has room for 262144 entries, 262145 are needed"
    ) as caught:
        plan(want, ONE)
    assert caught.value.remedy
    sets = {number: Table(("prefixlen", "address"), ("peer",)) for number in range(8193)}
    with pytest.raises(InvalidInput, match="prefix_sets has room for 8192 entries, 8193 are needed; 1 are used now"):
        plan(dataclasses.replace(ONE, nested={**ONE.nested, "prefix_sets": sets}), _with_set(7))


def test_what_people_read() -> None:
    small = state({1: 65900}, {65900: WEB}, remote=0)
    assert [step.describe() for step in plan(small, EMPTY)] == [
        "create device bpf-0000000001: veth to eth0 in w1 with 10.77.1.1, fd77::1:1, MTU 1450",
        "create tunnel device bpfleet_vxlan: VXLAN, UDP port 8472, MTU 1450",
        f"set sysctl net/ipv4/conf/{UNDERLAY}/accept_local = 1",
        "load program from_endpoint (tunnel_port=8472)",
        "load program from_tunnel (tunnel_port=8472)",
        "load program from_underlay (tunnel_port=8472)",
        "load program to_endpoint (tunnel_port=8472)",
        "load program to_tunnel (tunnel_port=8472)",
        "put 3 rows into addresses: 192.0.2.1, 10.77.1.1, fd77::1:1",
        "swap 1 map of policies (2 rows) in: 65900",
        "put 1 row into endpoints: bpf-0000000001",
        "put 1 row into node: 0",
        "attach to_endpoint to bpf-0000000001 egress",
        "attach from_endpoint to bpf-0000000001 ingress",
        "attach to_tunnel to bpfleet_vxlan egress",
        "attach from_tunnel to bpfleet_vxlan ingress",
        f"attach from_underlay to {UNDERLAY} ingress",
        "set device bpf-0000000001 up",
        "set device bpfleet_vxlan up",
        "route 10.77.1.1/32 through bpf-0000000001",
        "route fd77::1:1/128 through bpf-0000000001",
    ]
    found = Found(TUNNEL_DEVICE, "vxlan", {}, up=True, lacks=("MTU 1300", "MAC 02:00:00:00:00:09"))
    have = dataclasses.replace(
        small,
        devices={**small.devices, TUNNEL_DEVICE: found},
        attachments={**small.attachments, (UNDERLAY, "ingress"): "from_underlay@0123 (not pinned)"},
    )
    assert [step.describe() for step in plan(small, have)] == [
        "repair device bpfleet_vxlan: MTU 1300, MAC 02:00:00:00:00:09",
        f"replace from_underlay@0123 (not pinned) by from_underlay at {UNDERLAY} ingress",
    ]


def test_apply_tells_of_each_step_and_stops_at_the_first_failure() -> None:
    kernel = FakeKernel({UNDERLAY: (1500, ())}, ("w1",), fail_at=2)
    steps = plan(ONE, kernel.read(ONE))
    told: List[int] = []
    with pytest.raises(HostFailed) as caught:
        apply(kernel, steps, lambda index, step: told.append(index))
    assert told == [0, 1, 2]
    assert caught.value.details == {"step": 2, "steps": len(steps), "doing": steps[2].describe()}
    assert kernel.writes == 2


def test_apply_puts_an_os_error_into_the_tree() -> None:
    class Broken(FakeKernel):
        def do(self, step: Step) -> None:
            raise PermissionError(1, "Operation not permitted")

    kernel = Broken()
    steps = plan(NodeState(sysctls={"net/ipv4/ip_forward": "1"}), EMPTY)
    with pytest.raises(
        HostFailed, match="cannot set sysctl net/ipv4/ip_forward = 1: Operation not permitted"
    ) as caught:
        apply(kernel, steps)
    assert caught.value.details["errno"] == 1
    assert caught.value.remedy


def test_what_is_not_described_is_counted() -> None:
    steps = [SetUp(f"d{number}") for number in range(DESCRIBED_STEPS)]
    assert len(described(steps)) == DESCRIBED_STEPS
    assert described([*steps, *steps])[DESCRIBED_STEPS:] == [f"and {DESCRIBED_STEPS} more"]
