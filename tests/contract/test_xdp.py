"""XDP under the contract: kept by a pinned link, replaced in place, in one mode at a time, others left alone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader import syscall
from bpfleet.loader.libbpf import Libbpf
from bpfleet.loader.links import device_index
from bpfleet.model.state import TUNNEL_DEVICE, NodeState, Program, Table
from tests.contract.rigs import UNDERLAY, RealRig, Rig, with_constants
from tests.contract.states import EMPTY, ONE
from tests.contract.test_kernel import bring

BLOCKED = {(120, "198.51.100.0"): (1,), (48, "2001:db8:bad::"): (1,)}
PIN = Path(f"/sys/fs/bpf/bpfleet/links/{UNDERLAY}-xdp-native")


def with_xdp(mode: str, device: str = UNDERLAY, **constants: Any) -> NodeState:
    return dataclasses.replace(
        ONE,
        programs={**ONE.programs, "xdp_underlay": Program("xdp_underlay", constants)},
        attachments={**ONE.attachments, (device, f"xdp-{mode}"): "xdp_underlay"},
        tables={**ONE.tables, "blocked": Table(("prefix_length", "address"), ("blocked",), BLOCKED)},
    )


NATIVE, GENERIC = with_xdp("native"), with_xdp("generic")


def test_every_mode_from_every_other(rig: Rig) -> None:
    for want in (NATIVE, GENERIC, ONE, GENERIC, NATIVE, EMPTY, NATIVE, ONE, EMPTY):
        bring(rig.kernel, want)
        assert rig.kernel.read(want) == want
        assert bring(rig.kernel, want) == []
    assert rig.left() == set()


def test_the_program_is_replaced_in_place(rig: Rig) -> None:
    bring(rig.kernel, NATIVE)
    want = with_xdp("native", events_slots_mask=127)
    done = bring(rig.kernel, want)
    assert {step.kind for step in done} == {"LoadProgram", "Attach", "DropProgram"}
    assert rig.kernel.read(want) == want


def test_xdp_comes_before_tc_lets_go_and_goes_after_tc_took_over(rig: Rig) -> None:
    at_tc = with_constants(ONE, {"blocked_at_tc": 1}, {"from_underlay"})
    bring(rig.kernel, at_tc)
    coming = [(step.kind, step.hook) for step in bring(rig.kernel, NATIVE) if hasattr(step, "hook")]
    assert coming == [("Attach", "xdp-native"), ("Attach", "ingress")]
    going = [(step.kind, step.hook) for step in bring(rig.kernel, at_tc) if hasattr(step, "hook")]
    assert going == [("Attach", "ingress"), ("Detach", "xdp-native")]


def test_a_block_list_changes_alone(rig: Rig) -> None:
    bring(rig.kernel, NATIVE)
    other = {(128, "203.0.113.7"): (1,), (48, "2001:db8:bad::"): (1,)}
    blocked = Table(("prefix_length", "address"), ("blocked",), other)
    want = dataclasses.replace(NATIVE, tables={**NATIVE.tables, "blocked": blocked})
    assert sorted(step.kind for step in bring(rig.kernel, want)) == ["DeleteRows", "PutRows"]
    assert rig.kernel.read(want) == want


@pytest.mark.root
@pytest.mark.parametrize("damage", ["the pin is lost", "the link is detached", "the device is made again"])
def test_damage_is_seen_and_repaired(real_rig: RealRig, damage: str) -> None:
    bring(real_rig.kernel, NATIVE)
    if damage == "the pin is lost":
        real_rig.sandbox.run(PIN.unlink)
    elif damage == "the link is detached":
        real_rig.sandbox.run(lambda: syscall.link_detach(syscall.get(str(PIN))))
    else:
        real_rig.sandbox.command("ip", "link", "del", UNDERLAY)
        for words in (
            f"ip link add {UNDERLAY} type veth peer name {UNDERLAY}p",
            f"ip address add 192.0.2.1/24 dev {UNDERLAY}",
            f"ip link set {UNDERLAY} up",
        ):
            real_rig.sandbox.command(*words.split())
    assert real_rig.kernel.read(NATIVE) != NATIVE
    bring(real_rig.kernel, NATIVE)
    assert real_rig.kernel.read(NATIVE) == NATIVE


@pytest.mark.root
def test_a_link_whose_pin_is_lost_but_which_lives_is_adopted(real_rig: RealRig) -> None:
    bring(real_rig.kernel, NATIVE)
    link = real_rig.link_id_pinned(UNDERLAY, "xdp-native")
    held = real_rig.sandbox.run(syscall.get, str(PIN))
    real_rig.sandbox.run(PIN.unlink)
    assert [step.kind for step in bring(real_rig.kernel, NATIVE)] == ["Attach"]
    assert real_rig.link_id_pinned(UNDERLAY, "xdp-native") == link
    os.close(held)
    assert real_rig.kernel.read(NATIVE) == NATIVE


@pytest.mark.root
def test_a_lost_pin_is_repaired_while_somebody_lists_links(real_rig: RealRig) -> None:
    """Who lists links holds each for a moment, and so it outlives its pin."""
    enough = threading.Event()

    def look() -> int:
        looks = 0
        while not enough.is_set():
            for fd in syscall.links():
                os.close(fd)
            looks += 1
        return looks

    with ThreadPoolExecutor(1) as pool:
        looks = pool.submit(look)
        try:
            for _ in range(20):
                bring(real_rig.kernel, NATIVE)
                real_rig.sandbox.run(PIN.unlink)
        finally:
            enough.set()
        assert looks.result() > 0
    bring(real_rig.kernel, NATIVE)
    assert real_rig.kernel.read(NATIVE) == NATIVE


def foreign_xdp(host: RealRig) -> int:
    """Somebody else's XDP program at the underlay, by a link."""
    source, target = host.objects.parent / "other_xdp.bpf.c", host.objects.parent / "other_xdp.bpf.o"
    source.write_text(
        '__attribute__((section("xdp"), used)) int somebody_else(void *xdp) { return 2; }\n'
        'char _license[] __attribute__((section("license"), used)) = "GPL";\n'
    )
    subprocess.run(["clang-19", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(target)], check=True)

    def attach() -> int:
        with Libbpf().open(str(target)) as opened:
            opened.load()
            program = opened.program_fd(opened.programs()["somebody_else"])
            return syscall.link_create(program, device_index(UNDERLAY) or 0, syscall.XDP, 1 << 1)

    return host.sandbox.run(attach)


@pytest.mark.root
@pytest.mark.parametrize("want", [NATIVE, GENERIC])
def test_a_program_of_somebody_else_is_named_and_left(real_rig: RealRig, want: NodeState) -> None:
    other = foreign_xdp(real_rig)
    bring(real_rig.kernel, ONE)
    with pytest.raises(HostFailed, match="an XDP program of somebody else: somebody_else") as told:
        bring(real_rig.kernel, want)
    assert "xdp: off" in told.value.remedy
    bring(real_rig.kernel, ONE)
    assert real_rig.kernel.read(ONE) == ONE
    bring(real_rig.kernel, EMPTY)
    assert "xdpgeneric" in real_rig.sandbox.command("ip", "link", "show", UNDERLAY)
    os.close(other)


@pytest.mark.root
def test_a_driver_that_cannot_is_named(real_rig: RealRig) -> None:
    """VXLAN devices have no native XDP; generic they can."""
    bring(real_rig.kernel, ONE)
    with pytest.raises(HostFailed, match=f"the driver of {TUNNEL_DEVICE} cannot run XDP natively") as told:
        bring(real_rig.kernel, with_xdp("native", TUNNEL_DEVICE))
    assert "xdp: generic" in told.value.remedy
    bring(real_rig.kernel, with_xdp("generic", TUNNEL_DEVICE))
    assert real_rig.kernel.read(with_xdp("generic", TUNNEL_DEVICE)) == with_xdp("generic", TUNNEL_DEVICE)
