"""Maps that are made anew in another size under programs at work, on this machine's kernel."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Set

import pytest

from bpfleet.errors import HostFailed
from bpfleet.loader import layout, syscall
from bpfleet.loader.apply import apply
from bpfleet.loader.btf import ObjectFile
from bpfleet.loader.cpus import lru_room
from bpfleet.loader.maps import dump
from bpfleet.loader.pins import Pins
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.loader.steps import Attach, LoadProgram, PutRows, ResizeMaps
from bpfleet.model.state import NodeState
from bpfleet.observe.usage import fill_levels
from tests.contract.rigs import RealRig
from tests.contract.states import EMPTY, WEB, state
from tests.contract.test_kernel import bring, sized

pytestmark = pytest.mark.root

FULL = state({1: 65900, 2: 66000}, {65900: WEB, 66000: []}, services={80: [1, 2], 81: [1]})
SMALL = sized(FULL, connections=2048, addresses=16, policies=9, backends=9, endpoints=5)
LARGE = sized(FULL, connections=4096, addresses=99, policies=19, backends=29, endpoints=49)


def maps_in_use(pins: Pins) -> Dict[str, Set[int]]:
    """Ids of the maps of each program that is at a hook or pinned, by map."""
    found: Dict[str, Set[int]] = {}
    for path in [*pins.links.iterdir(), *pins.programs.iterdir()]:
        fd = syscall.get(str(path))
        if path.parent == pins.links:
            link, fd = fd, syscall.program_by_id(syscall.link_info(fd).program_id)
            os.close(link)
        for number in syscall.program_info(fd).map_ids:
            one = syscall.map_by_id(number)
            found.setdefault(syscall.map_info(one).name, set()).add(number)
            os.close(one)
        os.close(fd)
    return found


def connection(number: int, seconds: int) -> tuple[bytes, bytes]:
    """A UDP connection that was used so many seconds ago."""
    now = time.monotonic_ns() >> 30
    ends = {"source": "10.77.1.1", "destination": "10.77.1.2", "source_port": number, "protocol": 17}
    key = {**layout.decode("connections", "key", bytes(40)), **ends}
    value = {**layout.decode("connections", "value", bytes(40)), "last_seen": now - seconds, "flow": number}
    return layout.encode("connections", "key", key), layout.encode("connections", "value", value)


KNOWN = dict(connection(number, 20) for number in range(1, 1001))


def record(connections: Mapping[bytes, bytes]) -> None:
    fd = syscall.get(str(Pins().map("connections")))
    for key, value in connections.items():
        syscall.map_update(fd, key, value)
    os.close(fd)


def remember(fragments: Mapping[int, int]) -> None:
    """First fragments by id, seen so many ticks ago."""
    fd = syscall.get(str(Pins().map("fragments")))
    for number, ticks in fragments.items():
        key = {**layout.decode("fragments", "key", bytes(48)), "id": number}
        value = {**layout.decode("fragments", "value", bytes(16)), "seen": (time.monotonic_ns() >> 30) - ticks}
        syscall.map_update(fd, layout.encode("fragments", "key", key), layout.encode("fragments", "value", value))
    os.close(fd)


def recorded() -> Dict[bytes, bytes]:
    fd = syscall.get(str(Pins().map("connections")))
    found = dump(fd, "connections")
    os.close(fd)
    return found


def dies_in(rig: RealRig, want: NodeState, at: int) -> bool:
    """A process brings that state and is killed after so many system calls that change something; False if it took no
    more than that."""

    class Dying(RealKernel):
        def _wrote(self, count: int = 1) -> None:
            super()._wrote(count)
            if self.writes >= at:
                os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        child = os.fork()
        if child == 0:
            try:
                kernel = Dying(rig.objects, state=Path("/nonexistent"))
                apply(kernel, plan(want, kernel.read(want)))
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    code = rig.sandbox.run(work)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_process_that_dies_anywhere_leaves_all_that_maps_hold(real_rig: RealRig) -> None:
    """Every map that a hook's program or a name leads to is whole, of the old size or the new; and whoever comes next
    ends it, either way. Maps grow and shrink in turn: going back each time would cost as much again."""
    bring(real_rig.kernel, SMALL)
    real_rig.sandbox.run(record, KNOWN)
    at, old, new = 1, SMALL, LARGE
    while dies_in(real_rig, new, at):
        there = real_rig.kernel.read(SMALL)
        assert {name: there.tables[name] for name in SMALL.tables} == SMALL.tables, at
        assert there.nested == SMALL.nested, at
        assert real_rig.sandbox.run(recorded) == KNOWN, at
        assert set(there.attachments) == set(SMALL.attachments), at
        next_one = (old, new)[at % 2]
        bring(real_rig.kernel, next_one)
        assert real_rig.kernel.read(next_one) == next_one and bring(real_rig.kernel, next_one) == [], at
        assert not [path for path in real_rig.left() if path.endswith("_next")], at
        assert real_rig.sandbox.run(recorded) == KNOWN, at
        used = real_rig.sandbox.run(maps_in_use, Pins())
        assert all(len(ids) == 1 for name, ids in used.items() if not name.endswith(".rodata")), (at, used)
        at += 1
        if next_one is new:
            old, new = new, old
    assert at > 4 * 2 + len(SMALL.attachments)
    assert real_rig.kernel.read(new) == new
    bring(real_rig.kernel, EMPTY)
    assert real_rig.left() == set()


def test_a_change_that_needs_more_room_has_it_made_first(real_rig: RealRig) -> None:
    """By the programs that are in force, with the constants that they have; one that is at no hook is loaded again."""
    before = dataclasses.replace(SMALL, attachments=without(SMALL.attachments, "to_tunnel"))
    crowd = state({1: 65900, 2: 65901}, remote=40)
    want = sized(dataclasses.replace(crowd, programs=LARGE.programs, attachments=LARGE.attachments), **LARGE.sizes)
    bring(real_rig.kernel, before)
    done = bring(real_rig.kernel, want)
    kinds = [step.kind for step in done]
    assert isinstance(done[0], ResizeMaps) and {*done[0].sizes, "connections"} == set(LARGE.sizes)
    assert kinds.index("PutRows") > 0 and [step for step in done if isinstance(step, (LoadProgram, Attach, PutRows))]
    assert [step.program.object for step in done if isinstance(step, LoadProgram)] == ["to_tunnel"]
    assert real_rig.kernel.read(want) == want and bring(real_rig.kernel, want) == []


def test_pressure_is_of_what_counts_and_of_what_is_forgotten(real_rig: RealRig) -> None:
    """Records that are too old keep their places until these are needed. A map that forgets does so before it is full:
    each CPU keeps free places to itself."""
    bring(real_rig.kernel, SMALL)
    real_rig.sandbox.run(record, dict(connection(number, 1000) for number in range(1, 801)))
    real_rig.sandbox.run(record, dict(connection(number, 0) for number in range(801, 901)))

    def level(name: str = "connections") -> Dict[str, Any]:
        levels = real_rig.sandbox.run(fill_levels, str(Pins().root))
        return next(one for one in levels if one["map"] == name)

    assert (level()["used"], level()["limit"], level()["level"]) == (100, 2048, "ok")
    real_rig.sandbox.run(remember, {1: 57, 2: 57, 3: 55, 4: 0})
    assert level("fragments")["used"] == 2

    def crowd() -> None:
        cpus = os.sched_getaffinity(0)
        for cpu in sorted(cpus):
            os.sched_setaffinity(0, {cpu})  # of this thread alone
            record(dict(connection(number, 0) for number in range(1000 + cpu % 8 * 4000, 5000 + cpu % 8 * 4000)))
        os.sched_setaffinity(0, cpus)

    real_rig.sandbox.run(crowd)
    full = level()
    assert len(real_rig.sandbox.run(recorded)) == full["used"] <= 2048
    assert (full["level"], full["pressure"]) == ("critical", 1.0)


def another_program(path: Path) -> bytes:
    """The object, with another number somewhere: a packet that is no good is dropped for another reason."""
    data = path.read_bytes()
    code = ObjectFile(path).section(".text").data
    reason = bytes([0xB4, 0, 0, 0, 0x12, 0, 0, 0])  # w0 = 18
    place = data.index(code) + code.index(reason)
    return data[:place] + reason[:4] + bytes([0x13]) + data[place + 5 :]


def without(attachments: Any, program: str) -> Any:
    return {hook: name for hook, name in attachments.items() if name != program}


def test_programs_of_another_version_are_not_made_anew(real_rig: RealRig) -> None:
    """Those in force came from files that are gone: room is made by a change of its own, which brings the new ones."""
    bring(real_rig.kernel, SMALL)
    path = real_rig.objects / "from_tunnel.bpf.o"
    path.write_bytes(another_program(path))
    crowd = sized(dataclasses.replace(state({1: 65900, 2: 65901}, remote=40), programs=SMALL.programs), **LARGE.sizes)
    step = plan(crowd, real_rig.kernel.read(crowd))[0]
    assert isinstance(step, ResizeMaps)
    before = real_rig.left()
    with pytest.raises(HostFailed, match="from_tunnel that is in force is of another version") as caught:
        real_rig.kernel.do(step)
    assert "first raise the limits, then add what needs them" in caught.value.remedy
    assert real_rig.left() == before
    assert real_rig.kernel.read(SMALL).sizes == SMALL.sizes


def test_connections_under_way_are_not_forgotten_for_a_lowered_limit(real_rig: RealRig) -> None:
    """What is idle for too long to count takes no room."""
    bring(real_rig.kernel, LARGE)
    real_rig.sandbox.run(record, dict(connection(number, 1000) for number in range(1, 801)))
    real_rig.sandbox.run(record, dict(connection(number, 0) for number in range(801, 1101)))
    fewer = sized(FULL, **{**LARGE.sizes, "connections": 299})
    (obstacle,) = real_rig.kernel.obstacles(fewer)
    assert obstacle.what == "the map connections is to have room for 299 entries, 300 connections are under way"
    least = next(size for size in range(300, 1000) if lru_room(size, os.cpu_count() or 1) >= 300)
    (obstacle,) = real_rig.kernel.obstacles(sized(FULL, **{**LARGE.sizes, "connections": least - 1}))
    assert obstacle.what.endswith("300 connections are under way, and each CPU keeps up to 128 places free for itself")
    enough = sized(FULL, **{**LARGE.sizes, "connections": least})
    assert real_rig.kernel.obstacles(enough) == [] == real_rig.kernel.obstacles(LARGE)
    less = sized(FULL, **{**LARGE.sizes, "connections": 1024})
    bring(real_rig.kernel, less)
    left = real_rig.sandbox.run(recorded)
    assert {key for key, _ in (connection(number, 0) for number in range(801, 1101))} <= set(left)
    assert real_rig.kernel.read(less) == less
