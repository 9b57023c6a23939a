"""The two kernels under one contract, each with the hands to do to its host what others might."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Protocol, Sequence, Set, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import cgroup, syscall, tc
from bpfleet.loader.btf import ObjectFile
from bpfleet.loader.fake import FakeKernel
from bpfleet.loader.kernel import Kernel
from bpfleet.loader.libbpf import Libbpf
from bpfleet.loader.real import RealKernel
from bpfleet.loader.steps import Step
from bpfleet.model.state import SOCKET_HOOKS, NodeState, Program
from tests.contract.sandbox import Sandbox

UNDERLAY = "under0"
TAP = "tap0"
FOREIGN_PINS = Path("/sys/fs/bpf/somebody")


class Rig(Protocol):
    """A host with an underlay device, a device TAP, and network namespaces w1 and w2."""

    kernel: Kernel

    def link_id(self, device: str, hook: str) -> int:
        """Identity of the link of ours at a hook."""

    def lose_device(self, name: str) -> None:
        """Somebody removes a device."""

    def lose_maps_and_programs(self) -> None:
        """Somebody removes our pins of maps and programs."""

    def add_foreign(self) -> None:
        """Others put a program on the underlay's ingress, a device, routes of both families, and pins into bpffs."""

    def foreign(self) -> Any:
        """What is there of others, to be compared."""

    def left(self) -> Set[str]:
        """Names of everything of ours, whatever it is."""

    def reject(self, object_name: str) -> None:
        """From now on the verifier refuses this object."""

    def worth_failing(self, steps: Sequence[Step]) -> List[int]:
        """Numbers of the steps to try a failure at."""

    def close(self) -> None:
        """End it."""


class FakeRig:
    """The kernel in memory."""

    def __init__(self) -> None:
        self.fake = FakeKernel({UNDERLAY: (1500, ("192.0.2.1",)), TAP: (1500, ())}, ("w1", "w2"))
        self.kernel: Kernel = self.fake

    def link_id(self, device: str, hook: str) -> int:
        return self.fake.links[(device, hook)].id

    def lose_device(self, name: str) -> None:
        self.fake.lose_device(name)

    def lose_maps_and_programs(self) -> None:
        self.fake.lose_maps_and_programs()

    def add_foreign(self) -> None:
        """A kernel in memory holds nothing of others but devices."""
        self.fake.add_host_device("other0", 1500, ("198.51.100.1",))

    def foreign(self) -> Any:
        return dict(self.fake.host_devices)

    def left(self) -> Set[str]:
        state = self.fake.read(NodeState())
        return {
            *map(str, state.attachments), *state.programs, *state.tables, *state.devices, *map(str, state.routes)
        }  # fmt: skip

    def reject(self, object_name: str) -> None:
        self.fake.rejects.add(object_name)

    def worth_failing(self, steps: Sequence[Step]) -> List[int]:
        return list(range(len(steps)))

    def close(self) -> None:
        assert self.fake.unjudged == []


class Inside:
    """A kernel whose every call is made inside a sandbox."""

    def __init__(self, kernel: RealKernel, sandbox: Sandbox) -> None:
        self._kernel = kernel
        self._sandbox = sandbox

    @property
    def writes(self) -> int:
        return self._kernel.writes

    @writes.setter
    def writes(self, value: int) -> None:
        raise AttributeError(value)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._kernel, name)
        return lambda *arguments: self._sandbox.run(method, *arguments)


class RealRig:
    """This machine's kernel, in namespaces of its own."""

    def __init__(self, objects: Path, scratch: Path, *, use_tcx: bool = True) -> None:
        self.objects = scratch / "objects"
        shutil.copytree(objects, self.objects)
        self.sandbox = Sandbox()
        self.use_tcx = use_tcx
        self.real = RealKernel(self.objects, state=scratch / "logs", use_tcx=use_tcx)
        self.kernel: Kernel = Inside(self.real, self.sandbox)
        for words in (
            f"ip link add {UNDERLAY} type veth peer name {UNDERLAY}p",
            f"ip address add 192.0.2.1/24 dev {UNDERLAY}",
            f"ip link set {UNDERLAY} up",
            f"ip link set {UNDERLAY}p up",
            f"ip link add {TAP} type veth peer name {TAP}p",
            f"ip link set {TAP} up",
            "ip netns add w1",
            "ip netns add w2",
        ):
            self.sandbox.command(*words.split())
        self._foreign_fds: List[int] = []

    def link_id(self, device: str, hook: str) -> int:
        def ask() -> int:
            (ours,) = filters(device, hook)
            return ours.handle

        return self.link_id_pinned(device, hook) if self.use_tcx else self.sandbox.run(ask)

    def link_id_pinned(self, device: str, hook: str) -> int:
        """Id of the link pinned for a hook."""

        def ask() -> int:
            fd = syscall.get(f"/sys/fs/bpf/bpfleet/links/{device.replace('/', '%2f')}-{hook}")
            try:
                return syscall.link_info(fd).id
            finally:
                os.close(fd)

        return self.sandbox.run(ask)

    def lose_device(self, name: str) -> None:
        self.sandbox.command("ip", "link", "del", name)

    def lose_maps_and_programs(self) -> None:
        def lose() -> None:
            for kind in ("maps", "programs"):
                for path in Path("/sys/fs/bpf/bpfleet", kind).iterdir():
                    path.unlink()

        self.sandbox.run(lose)

    def add_foreign(self) -> None:
        for words in (
            "ip link add other0 type veth peer name other0p",
            "ip address add 198.51.100.1/24 dev other0",
            "ip link set other0 up",
            "ip route add 203.0.113.0/24 dev other0",
            "ip -6 route add 2001:db8:7::/48 dev other0",
        ):
            self.sandbox.command(*words.split())
        self.sandbox.run(self._attach_foreign)
        self.sandbox.run(_pin_foreign_map)

    def _attach_foreign(self) -> None:
        index = _index(UNDERLAY)
        program = foreign_program(self.objects.parent)
        try:
            self._foreign_fds.append(syscall.tcx_attach(program, index, syscall.TCX_INGRESS))
            with tc.TrafficControl() as control:
                control.do(tc.new_clsact(index), tc.put_program(index, "ingress", 7, 0, program, "somebody_else"))
        finally:
            FOREIGN_PINS.mkdir()
            syscall.pin(program, str(FOREIGN_PINS / "program"))
            os.close(program)

    def foreign(self) -> Any:
        attached = self.sandbox.run(lambda: [link for _, link in syscall.tcx_query(_index(UNDERLAY), 46)])
        ours = [self.sandbox.run(_link_id, fd) for fd in self._foreign_fds]
        return (
            [link for link in attached if link in ours],
            self.sandbox.command("tc", "qdisc", "show", "dev", UNDERLAY),
            [one for one in self.sandbox.run(all_filters, UNDERLAY, "ingress") if one.name == "somebody_else"],
            self.sandbox.command("ip", "route", "show", "dev", "other0"),
            self.sandbox.command("ip", "-6", "route", "show", "2001:db8:7::/48"),
            self.sandbox.run(_foreign_pins) if self._foreign_fds else [],
            self.sandbox.command("ip", "-4", "-o", "addr", "show", "dev", "other0"),
            self.sandbox.command("ip", "-4", "-o", "addr", "show", "dev", UNDERLAY),
        )

    def left(self) -> Set[str]:
        def look() -> Set[str]:
            found = {path for path in Path("/sys/fs/bpf").rglob("*") if "debug" not in path.name}
            return {str(path) for path in found if path != FOREIGN_PINS and FOREIGN_PINS not in path.parents}

        found = self.sandbox.run(look)
        for line in self.sandbox.command("ip", "-o", "link").splitlines():
            name = line.split()[1].split("@")[0].rstrip(":")
            if name.startswith("bpf"):
                found.add(name)
        found.update(self.sandbox.command("ip", "route", "show", "proto", "191").splitlines())
        found.update(self.sandbox.command("ip", "-6", "route", "show", "proto", "191").splitlines())
        for device in (UNDERLAY, TAP):
            for hook in ("ingress", "egress"):
                found.update(str(item) for item in self.sandbox.run(self._ours_at, device, hook))
        for hook in SOCKET_HOOKS:
            found.update(f"{hook} {number}" for number in self.sandbox.run(self.at_sockets, hook))
        for namespace in ("w1", "w2"):
            if "eth0" in self.sandbox.command("ip", "-n", namespace, "link"):
                found.add(f"eth0 in {namespace}")
        return found

    @staticmethod
    def at_sockets(hook: str) -> List[int]:
        """Ids of the programs at a hook of the root cgroup."""
        fd = os.open(cgroup.root() or "", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return syscall.cgroup_query(fd, cgroup.ATTACH_TYPES[hook])
        finally:
            os.close(fd)

    def _ours_at(self, device: str, hook: str) -> List[Tuple[str, int]]:
        foreign = [_link_id(fd) for fd in self._foreign_fds]
        index = _index(device)
        there = [(f"{device} {hook}", one.handle) for one in filters(device, hook)]
        linked = syscall.tcx_query(index, syscall.ATTACH_TYPES[hook])
        return there + [(f"{device} {hook}", link) for _, link in linked if link not in foreign]

    def reject(self, object_name: str) -> None:
        """Turn the program's first instruction into one that reads a register nobody has set."""
        path = self.objects / f"{object_name}.bpf.o"
        path.write_bytes(corrupted(path))

    def worth_failing(self, steps: Sequence[Step]) -> List[int]:
        """The last of each kind: loading five objects for each of thirty steps would take minutes."""
        return sorted({step.kind: number for number, step in enumerate(steps)}.values())

    def close(self) -> None:
        for fd in self._foreign_fds:
            os.close(fd)
        self.sandbox.close()


def corrupted(path: Path) -> bytes:
    """The object with its first tc instruction replaced by `r0 = r9`, where r9 holds nothing."""
    data = bytearray(path.read_bytes())
    section = ObjectFile(path).section("tc")
    at = data.index(section.data)
    data[at : at + 8] = bytes([0xBF, 0x90, 0, 0, 0, 0, 0, 0])
    return bytes(data)


def all_filters(device: str, hook: str) -> List[tc.Filter]:
    """The filters at a hook, in their order."""
    with tc.TrafficControl() as control:
        return control.filters(_index(device), hook)


def filters(device: str, hook: str) -> List[tc.Filter]:
    """Those of ours."""
    return [one for one in all_filters(device, hook) if one.name.startswith("bpfl_")]


def _index(device: str) -> int:
    return socket.if_nametoindex(device)


def _link_id(fd: int) -> int:
    return syscall.link_info(fd).id


def _pin_foreign_map() -> None:
    """Somebody else's map, with something in it."""
    fd = syscall.map_create(syscall.MAP_HASH, 4, 4, 8, name="addresses")
    try:
        syscall.map_update(fd, b"mine", b"what")
        syscall.pin(fd, str(FOREIGN_PINS / "addresses"))
    finally:
        os.close(fd)


def _foreign_pins() -> Any:
    """Which objects others' pins hold, and what is in their map."""
    map_fd, program_fd = (syscall.get(str(FOREIGN_PINS / name)) for name in ("addresses", "program"))
    try:
        return (
            sorted(path.name for path in FOREIGN_PINS.iterdir()),
            syscall.map_info(map_fd).id,
            syscall.map_lookup(map_fd, b"mine", 4),
            syscall.program_info(program_fd).id,
        )
    finally:
        os.close(map_fd)
        os.close(program_fd)


def foreign_program(scratch: Path) -> int:
    """Descriptor of somebody else's program, which passes everything."""
    source = scratch / "other.bpf.c"
    source.write_text(
        '__attribute__((section("tc"), used)) int somebody_else(void *skb) { return -1; }\n'
        'char _license[] __attribute__((section("license"), used)) = "GPL";\n'
    )
    target = scratch / "other.bpf.o"
    subprocess.run(["clang-19", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(target)], check=True)
    with Libbpf().open(str(target)) as opened:
        opened.load()
        return os.dup(opened.program_fd(opened.programs()["somebody_else"]))


class FailingKernel:
    """A kernel that dies before its step number `at`."""

    def __init__(self, kernel: Kernel, at: int) -> None:
        self._kernel = kernel
        self._left = at

    def do(self, step: Step) -> None:
        """As Kernel.do, until its turn comes."""
        if self._left == 0:
            raise HostFailed("the power went out", remedy="Start again.")
        self._left -= 1
        self._kernel.do(step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def with_constants(state: NodeState, constants: Mapping[str, Any], names: Optional[Set[str]] = None) -> NodeState:
    """The state with other load-time constants in some programs, or in all."""
    programs: Dict[str, Program] = {
        name: Program(name, {**program.constants, **constants}) if names is None or name in names else program
        for name, program in state.programs.items()
    }
    return dataclasses.replace(state, programs=programs)
