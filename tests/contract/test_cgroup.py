"""Socket hooks of the root cgroup on the real kernel: lost pins, meddling, programs of others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfleet.loader import cgroup, syscall
from bpfleet.loader.libbpf import Libbpf
from bpfleet.loader.plan import plan
from bpfleet.model.state import CGROUP_ROOT
from tests.contract.rigs import RealRig, with_constants
from tests.contract.states import EMPTY, ONE, SERVICES, SOCKETS
from tests.contract.test_kernel import bring

pytestmark = pytest.mark.root

PIN = Path("/sys/fs/bpf/bpfleet/links/%2f-connect4")
HOOK = "connect4"


@pytest.fixture
def foreign(real_rig: RealRig, tmp_path: Path) -> Iterator[int]:
    """Somebody else's program at connect4, by its id."""
    source, target = tmp_path / "other.bpf.c", tmp_path / "other.bpf.o"
    source.write_text(
        '__attribute__((section("cgroup/connect4"), used)) int somebody_else(void *context) { return 1; }\n'
        'char _license[] __attribute__((section("license"), used)) = "GPL";\n'
    )
    subprocess.run(["clang-19", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(target)], check=True)
    with Libbpf().open(str(target)) as opened:
        opened.load()
        program = opened.program_fd(opened.programs()["somebody_else"])
        link = real_rig.sandbox.run(_attach, program)
        number = syscall.program_info(program).id
    yield number
    os.close(link)


def _attach(program: int) -> int:
    place = os.open(cgroup.root() or "", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return syscall.cgroup_attach(program, place, cgroup.ATTACH_TYPES[HOOK])
    finally:
        os.close(place)


def there(rig: RealRig) -> list[int]:
    return rig.sandbox.run(rig.at_sockets, HOOK)


def test_hooks_come_with_the_first_service_and_go_with_the_last(real_rig: RealRig) -> None:
    bring(real_rig.kernel, ONE)
    assert there(real_rig) == []
    bring(real_rig.kernel, SERVICES)
    assert len(there(real_rig)) == 1
    assert real_rig.kernel.read(SERVICES) == SERVICES
    bring(real_rig.kernel, ONE)
    assert there(real_rig) == []
    bring(real_rig.kernel, EMPTY)
    assert real_rig.left() == set()


def test_a_program_is_replaced_in_place(real_rig: RealRig) -> None:
    bring(real_rig.kernel, SERVICES)
    before = real_rig.link_id(CGROUP_ROOT, HOOK)
    want = with_constants(SERVICES, {"events_slots_mask": 127}, set(SOCKETS.values()))
    done = bring(real_rig.kernel, want)
    assert {step.kind for step in done} == {"LoadProgram", "Attach", "DropProgram"}
    assert real_rig.link_id(CGROUP_ROOT, HOOK) == before and real_rig.kernel.read(want) == want


def test_a_link_that_lost_its_pin_is_adopted(real_rig: RealRig) -> None:
    bring(real_rig.kernel, SERVICES)
    before = real_rig.link_id(CGROUP_ROOT, HOOK)
    held = real_rig.sandbox.run(syscall.get, str(PIN))
    try:
        real_rig.sandbox.run(PIN.unlink)
        steps = plan(SERVICES, real_rig.kernel.read(SERVICES))
        assert [step.kind for step in steps] == ["Attach"]
        bring(real_rig.kernel, SERVICES)
    finally:
        os.close(held)
    assert real_rig.link_id(CGROUP_ROOT, HOOK) == before
    assert len(there(real_rig)) == 1 and real_rig.kernel.read(SERVICES) == SERVICES


def test_a_link_that_was_detached_is_put_back(real_rig: RealRig) -> None:
    bring(real_rig.kernel, SERVICES)

    def detach() -> None:
        fd = syscall.get(str(PIN))
        try:
            syscall.link_detach(fd)
        finally:
            os.close(fd)

    real_rig.sandbox.run(detach)
    assert there(real_rig) == []
    assert [step.kind for step in plan(SERVICES, real_rig.kernel.read(SERVICES))] == ["Attach"]
    bring(real_rig.kernel, SERVICES)
    assert len(there(real_rig)) == 1 and real_rig.kernel.read(SERVICES) == SERVICES


def test_programs_of_others_stay(real_rig: RealRig, foreign: int) -> None:
    bring(real_rig.kernel, SERVICES)
    assert foreign in there(real_rig) and len(there(real_rig)) == 2
    assert real_rig.kernel.read(SERVICES) == SERVICES
    bring(real_rig.kernel, EMPTY)
    assert there(real_rig) == [foreign]
