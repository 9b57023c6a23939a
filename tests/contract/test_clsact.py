"""Programs as clsact filters, among those of others; and from one way of attaching to the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader import links, syscall, tc
from bpfleet.loader.kernel import Kernel
from bpfleet.loader.pins import Pins
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.loader.steps import Attach
from bpfleet.model.state import NodeState
from tests.contract.conftest import real
from tests.contract.rigs import UNDERLAY, Inside, RealRig, all_filters, filters, foreign_program, with_constants
from tests.contract.states import EMPTY, ONE, TWO, veth
from tests.contract.test_kernel import bring

pytestmark = pytest.mark.root


@pytest.fixture
def host(objects: Path, tmp_path: Path) -> Iterator[RealRig]:
    """A fresh host whose programs are attached as clsact filters."""
    made = real(objects, tmp_path, "clsact")
    yield made
    made.close()


def qdiscs(host: RealRig) -> str:
    return host.sandbox.command("tc", "qdisc", "show", "dev", UNDERLAY)


def put_foreign(host: RealRig, preference: int, handle: int = 0) -> None:
    """Somebody else's filter at the underlay's ingress, and the qdisc if there is none."""

    def put() -> None:
        index = links.device_index(UNDERLAY) or 0
        program = foreign_program(host.objects.parent)
        with tc.TrafficControl() as control:
            control.do(
                tc.new_clsact(index), tc.put_program(index, "ingress", preference, handle, program, "somebody_else")
            )
        os.close(program)

    host.sandbox.run(put)


def at_underlay(host: RealRig) -> list[str]:
    return [one.name.partition("+")[0] for one in host.sandbox.run(all_filters, UNDERLAY, "ingress")]


def test_a_qdisc_made_for_us_goes_with_us(host: RealRig) -> None:
    bring(host.kernel, TWO)
    assert "clsact" in qdiscs(host)
    bring(host.kernel, with_constants(TWO, {"events_slots_mask": 127}))
    bring(host.kernel, EMPTY)
    assert "clsact" not in qdiscs(host)
    assert host.left() == set()


def test_a_qdisc_of_others_stays_even_if_it_is_empty(host: RealRig) -> None:
    host.sandbox.command("tc", "qdisc", "add", "dev", UNDERLAY, "clsact")
    bring(host.kernel, ONE)
    bring(host.kernel, EMPTY)
    assert "clsact" in qdiscs(host)
    assert host.left() == set()


def test_a_qdisc_made_for_us_that_others_use_stays(host: RealRig) -> None:
    bring(host.kernel, ONE)
    put_foreign(host, 7)
    bring(host.kernel, EMPTY)
    assert at_underlay(host) == ["somebody_else"]


@pytest.mark.parametrize("preference", [1, 7])
def test_ours_is_first(host: RealRig, preference: int) -> None:
    put_foreign(host, preference)
    bring(host.kernel, ONE)
    assert at_underlay(host) == ["bpfl_from_under", "somebody_else"]
    bring(host.kernel, EMPTY)
    assert at_underlay(host) == ["somebody_else"]


def test_one_that_came_before_ours_is_seen_and_got_before(host: RealRig) -> None:
    bring(host.kernel, ONE)
    put_foreign(host, 1)
    assert at_underlay(host) == ["somebody_else", "bpfl_from_under"]
    assert host.kernel.read(ONE).attachments[(UNDERLAY, "ingress")] == "from_underlay (behind another filter)"
    assert [step.kind for step in bring(host.kernel, ONE)] == ["Attach"]
    assert at_underlay(host) == ["bpfl_from_under", "somebody_else"]
    assert host.kernel.read(ONE) == ONE


def test_a_filter_of_another_kind_at_our_preference_is_named(host: RealRig) -> None:
    host.sandbox.command(*f"tc qdisc add dev {UNDERLAY} clsact".split())
    host.sandbox.command(
        *f"tc filter add dev {UNDERLAY} ingress pref 1 protocol ip u32 match u32 0 0 classid 1:1".split()
    )
    with pytest.raises(HostFailed, match=f"somebody's u32 filter has preference 1 at {UNDERLAY} ingress"):
        bring(host.kernel, ONE)


def test_a_qdisc_without_egress(host: RealRig) -> None:
    """Ingress filters go where the old ingress qdisc is; for egress it is named."""
    host.sandbox.command("tc", "qdisc", "add", "dev", UNDERLAY, "ingress")
    bring(host.kernel, ONE)
    assert host.kernel.read(ONE) == ONE
    want = NodeState(**{**vars(ONE), "attachments": {**ONE.attachments, (UNDERLAY, "egress"): "to_tunnel"}})
    with pytest.raises(HostFailed, match=f"device {UNDERLAY} has a qdisc called ingress, which has no egress"):
        bring(host.kernel, want)
    bring(host.kernel, EMPTY)
    assert "ingress" in qdiscs(host)
    assert host.left() == set()


def test_a_removed_filter_or_qdisc_is_put_back(host: RealRig) -> None:
    bring(host.kernel, TWO)
    for damage in (
        f"tc filter del dev {UNDERLAY} ingress",
        f"tc qdisc del dev {UNDERLAY} clsact",
        f"tc qdisc del dev {veth(1).name} clsact",
    ):
        host.sandbox.command(*damage.split())
        assert host.kernel.read(TWO) != TWO
        assert {step.kind for step in bring(host.kernel, TWO)} == {"Attach"}
        assert host.kernel.read(TWO) == TWO


def test_a_second_filter_of_ours_is_taken_away(host: RealRig) -> None:
    bring(host.kernel, ONE)

    def again() -> None:
        index = links.device_index(UNDERLAY) or 0
        (ours,) = filters(UNDERLAY, "ingress")
        program = syscall.program_by_id(ours.program_id)
        with tc.TrafficControl() as control:
            control.do(tc.put_program(index, "ingress", 3, 0, program, "bpfl_again"))
        os.close(program)

    host.sandbox.run(again)
    assert len(host.sandbox.run(filters, UNDERLAY, "ingress")) == 2
    assert [step.kind for step in bring(host.kernel, ONE)] == ["Attach"]
    assert len(host.sandbox.run(filters, UNDERLAY, "ingress")) == 1


# -- from one way to the other -----------------------------------------------------------------------------------------


def judging(host: RealRig, device: str, hook: str) -> int:
    """How many programs of ours sit at a hook, in either way."""

    def count() -> int:
        there = syscall.tcx_query(links.device_index(device) or 0, syscall.ATTACH_TYPES[hook])
        return len(there) + len(filters(device, hook))

    return host.sandbox.run(count)


@pytest.mark.parametrize("first", [True, False])
def test_from_one_way_to_the_other_and_back(host: RealRig, first: bool) -> None:
    """As after a kernel upgrade that kept everything, or when the operator's switch is turned."""
    ways = {use: RealKernel(host.objects, state=host.objects.parent / "logs", use_tcx=use) for use in (True, False)}
    kernels: dict[bool, Kernel] = {use: Inside(kernel, host.sandbox) for use, kernel in ways.items()}
    bring(kernels[first], TWO)
    for use in (not first, first):
        before = kernels[use].read(TWO)
        assert before != TWO and set(before.attachments) == set(TWO.attachments)
        steps = plan(TWO, before)
        assert {step.kind for step in steps} == {"Attach"}
        for step in steps:
            kernels[use].do(step)
            assert isinstance(step, Attach)
            assert judging(host, step.device, step.hook) == 1
        assert kernels[use].read(TWO) == TWO
        assert all(judging(host, *hook) == 1 for hook in TWO.attachments)
        assert bool(host.sandbox.run(Pins().list_links)) is use
    bring(kernels[not first], EMPTY)
    assert host.left() == set()
    assert "clsact" not in qdiscs(host)


def test_a_device_that_is_gone_has_nothing_to_be_taken_off(real_rig: RealRig) -> None:
    """It may go between the look for it and the question what is there, with the namespace of its other end."""
    with tc.TrafficControl() as control:
        assert control.qdisc(999_999) is None
