"""Taps that bpfleet makes: who may open them, and that nothing passes before it is judged."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import struct
import sys

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader.apply import apply
from bpfleet.loader.plan import plan
from bpfleet.loader.steps import Attach, EnsureDevice, SetUp, Step
from bpfleet.model.state import NodeState, Tap
from tests.contract.rigs import RealRig
from tests.contract.states import EMPTY, MACHINE, state
from tests.contract.test_kernel import bring

pytestmark = pytest.mark.root

WANT = state({}, remote=0, machine=True)
FRAME = b"\xff" * 6 + bytes.fromhex("02000000aa01") + b"\x08\x00" + bytes(64)

# Opens the tap as another user, as a virtual machine's process does, and says the errno of that.
OPENER = """
import fcntl, os, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
os.setuid(int(sys.argv[2]))
try:
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
    print(0)
except OSError as error:
    print(error.errno)
"""


def opened(name: str) -> int:
    """The tap, opened as its process does: with a virtio header or not is that one's choice."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
    return fd


def sent(fd: int) -> int:
    """Send a frame: 0, or the errno."""
    try:
        os.write(fd, FRAME)
    except OSError as error:
        return error.errno or -1
    return 0


def received(rig: RealRig) -> int:
    """Frames that the host took from the tap."""
    (shown,) = json.loads(rig.sandbox.command("ip", "-s", "-j", "link", "show", MACHINE.name))
    return int(shown["stats64"]["rx"]["packets"])


def other(**changes: object) -> NodeState:
    """The same node with another tap of the same name."""
    changed = dataclasses.replace(MACHINE, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(WANT, devices={**WANT.devices, MACHINE.name: changed})


def test_what_is_sent_before_it_is_judged_goes_nowhere(real_rig: RealRig) -> None:
    """From the tap's first moment on, a process sends before each step: all is refused until both programs judge."""
    steps = plan(WANT, real_rig.kernel.read(WANT))
    fds: list[int] = []
    answers: list[tuple[Step, int]] = []

    def send(index: int, step: Step) -> None:
        made = any(isinstance(one, EnsureDevice) and isinstance(one.device, Tap) for one in steps[:index])
        if made and not fds:
            fds.append(opened(MACHINE.name))
        if fds:
            answers.append((step, sent(fds[0])))

    real_rig.sandbox.run(apply, real_rig.real, steps, send)
    try:
        up = next(n for n, (step, _) in enumerate(answers) if step == SetUp(MACHINE.name))
        before = answers[: up + 1]
        assert {code for _, code in before} == {errno.EIO}
        assert sum(isinstance(step, Attach) and step.device == MACHINE.name for step, _ in before) == 2
        assert len(before) > 5
        assert {code for _, code in answers[up + 1 :]} <= {0}
        assert received(real_rig) == len(answers) - up - 1
        assert real_rig.sandbox.run(sent, fds[0]) == 0
        assert real_rig.kernel.read(WANT) == WANT  # open or not
    finally:
        os.close(fds[0])


def test_who_may_open_it(real_rig: RealRig) -> None:
    bring(real_rig.kernel, WANT)

    def answer(user: int) -> int:
        return int(real_rig.sandbox.command(sys.executable, "-c", OPENER, MACHINE.name, str(user)))

    assert answer(12345) == 0
    assert answer(12346) == errno.EPERM
    bring(real_rig.kernel, other(owner="12346"))
    assert (answer(12345), answer(12346)) == (errno.EPERM, 0)
    bring(real_rig.kernel, other(owner=""))  # root's
    assert (answer(12345), answer(12346), answer(0)) == (errno.EPERM, errno.EPERM, 0)


def test_an_owner_is_not_changed_under_an_open_tap(real_rig: RealRig) -> None:
    bring(real_rig.kernel, WANT)
    fd = real_rig.sandbox.run(opened, MACHINE.name)
    try:
        with pytest.raises(HostFailed, match="while a process has it open"):
            bring(real_rig.kernel, other(owner="12346"))
        assert real_rig.kernel.read(WANT) == WANT
    finally:
        os.close(fd)
    with pytest.raises(HostFailed, match="no user nobody-like-this"):
        bring(real_rig.kernel, other(owner="nobody-like-this"))


def test_damage_and_loss_are_repaired_and_the_end_leaves_nothing(real_rig: RealRig) -> None:
    for damage in ("link set vm1 down", "link set vm1 mtu 1300", "addr flush dev vm1", "link del vm1"):
        bring(real_rig.kernel, WANT)
        real_rig.sandbox.command("ip", *damage.split())
        assert real_rig.kernel.read(WANT) != WANT
    bring(real_rig.kernel, WANT)
    assert real_rig.kernel.read(WANT) == WANT
    bring(real_rig.kernel, other(multi_queue=True))
    bring(real_rig.kernel, EMPTY)
    assert real_rig.left() == set()


def test_a_tap_of_somebody_else_is_left_alone(real_rig: RealRig) -> None:
    real_rig.sandbox.command("ip", "tuntap", "add", MACHINE.name, "mode", "tap")
    assert MACHINE.name in real_rig.kernel.facts("n1").devices
    with pytest.raises(HostFailed, match="a device of that name already"):
        bring(real_rig.kernel, WANT)
    bring(real_rig.kernel, EMPTY)
    assert MACHINE.name in real_rig.sandbox.command("ip", "link", "show", MACHINE.name)
