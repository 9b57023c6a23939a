"""A kernel in memory, which keeps the contract of kernel.py: for tests of whoever uses one, and for plans without root.

Devices have indexes here too, so that one that is made again is another one, and rows keep what they were bound to.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.errors import HostFailed, HostUnfit, ObjectRejected
from bpfleet.loader import steps as s
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.loader.kernel import Found
from bpfleet.loader.objects import SHARED
from bpfleet.loader.rows import is_index
from bpfleet.loader.staging import IS_STAGED, POLICIES, STAGED, in_force, settled, switched
from bpfleet.model.document import canonical_json
from bpfleet.model.state import CGROUP_ROOT, Adopted, Facts, NodeState, Program, Route, Row, Table, Tap, Veth

_INNER = {described["inner"] for described in MAPS.values() if "inner" in described}
MAP_NAMES = tuple(sorted(name for name in MAPS if name not in _INNER and name not in SHARED))

XDP_HOOKS = {"xdp-native", "xdp-generic"}

Record = Tuple[Tuple[str, Any], ...]


@dataclass
class _Device:
    index: int
    device: Any  # Veth, Vxlan, or None for one of the host
    up: bool = False


@dataclass
class _Link:
    id: int
    index: int
    program: Program


class FakeKernel:
    """A node in memory.

    `fail_at`: the number (from 0, counted over this object's life as `steps_done`) of the step that fails, once.
    `rejects`: names of objects that the verifier refuses.    `unfit`: what check_fitness complains of.
    `foreign_xdp`: device -> name of the XDP program that somebody else has there.
    `unjudged`: what passed unjudged at some time, which must never happen: a veth or tap of ours that is up
    without both programs.
    """

    def __init__(
        self,
        devices: Optional[Mapping[str, Tuple[int, Tuple[str, ...]]]] = None,
        namespaces: Tuple[str, ...] = (),
        *,
        fail_at: Optional[int] = None,
    ) -> None:
        self.writes = 0
        self.steps_done = 0
        self.fail_at = fail_at
        self.rejects: Set[str] = set()
        self.unfit = ""
        self.foreign_xdp: Dict[str, str] = {}
        self.unjudged: List[str] = []
        self.host_devices: Dict[str, Tuple[int, Tuple[str, ...]]] = {}
        self.namespaces = set(namespaces)
        self.sysctls: Dict[str, str] = {}
        self.maps: Set[str] = set()
        self.sizes: Dict[str, int] = {}
        self.links: Dict[Tuple[str, str], _Link] = {}
        self._indexes = 1
        self._link_ids = 0
        self._devices: Dict[str, _Device] = {}
        self._programs: List[Program] = []
        self._unused: List[Program] = []
        self._tables: Dict[str, Dict[Record, Dict[str, Any]]] = {}
        self._nested: Dict[str, Dict[int, Table]] = {}
        self._generation = 0
        self._routes: Dict[Tuple[str, str], Route] = {}
        for name, description in (devices if devices is not None else {"eth0": (1500, ("192.168.77.1",))}).items():
            self.add_host_device(name, *description)

    # -- what happens to a host from outside -------------------------------------------------------------------------

    def add_host_device(self, name: str, mtu: int = 1500, addresses: Tuple[str, ...] = ()) -> None:
        """A device that is not ours appears, with a new index."""
        self.host_devices[name] = (mtu, addresses)
        self._devices[name] = _Device(self._next_index(), None, up=True)

    def lose_device(self, name: str) -> None:
        """A device vanishes, and with it its routes; pinned links to it stay, defunct."""
        self._devices.pop(name, None)
        self.host_devices.pop(name, None)
        self._routes = {key: route for key, route in self._routes.items() if route.device != name}
        self.sysctls = {key: value for key, value in self.sysctls.items() if name not in re.split("[./]", key)}

    def lose_maps_and_programs(self) -> None:
        """Somebody removes our maps and programs by name; links go on with what they hold."""
        self._drop_maps()
        self._tables.clear()
        self._nested.clear()
        self._programs = []

    def reboot(self) -> None:
        """All that is in the kernel's memory is gone; the host's own devices and namespaces come back."""
        host = dict(self.host_devices)
        self.__init__(host, tuple(self.namespaces))  # type: ignore[misc]

    # -- Kernel ------------------------------------------------------------------------------------------------------

    def check_fitness(self) -> None:
        """Raises HostUnfit with what `unfit` says."""
        if self.unfit:
            raise HostUnfit(self.unfit, remedy="Use another host.")

    def facts(self, node: str) -> Facts:
        """Facts of the host devices and namespaces given."""
        return Facts(node, dict(self.host_devices), tuple(sorted(self.namespaces)), True)

    def read(self, want: NodeState) -> NodeState:
        """As Kernel.read."""
        programs = {self._name(program, want): program for program in self._programs}
        tables = {name: self._read_table(name, table) for name, table in want.tables.items() if name in self.maps}
        nested = {name: dict(self._nested.get(name, {})) for name in want.nested if name in self.maps}
        if POLICIES in nested:
            nested[POLICIES] = in_force(nested[POLICIES], self._nested.get(STAGED, {}), self._generation)
        if not want.programs:
            tables.update({name: Table((), ()) for name in self.maps - {*want.tables, *want.nested}})
        return NodeState(
            programs=programs,
            attachments={hook: self._attached(hook, link, want) for hook, link in self.links.items()},
            tables=tables,
            nested=nested,
            devices=self._read_devices(want),
            routes=dict(self._routes),
            sysctls={name: self.sysctls[name] for name in want.sysctls if name in self.sysctls},
            sizes={
                name: self.sizes.get(name, most)
                for name, most in want.sizes.items()
                if name in self.maps or name in _INNER
            },
        )

    def obstacles(self, want: NodeState) -> List[HostFailed]:
        """As Kernel.obstacles."""
        hooks = sorted(hook for hook in want.attachments if hook[1] in XDP_HOOKS and hook[0] in self.foreign_xdp)
        return [self._occupied(device) for device, _ in hooks]

    def prepare(self, programs: Mapping[str, Program]) -> None:
        """As Kernel.prepare; refuses what `rejects` names."""
        new = [program for program in programs.values() if program not in [*self._programs, *self._unused]]
        for program in new:
            if program.object in self.rejects:
                raise ObjectRejected(
                    f"the kernel refused object {program.object}: Permission denied",
                    remedy="Read the log.",
                    details={"object": program.object, "log": ["R0 !read_ok"], "log_path": ""},
                )
        for program in new:
            self._load(program, self._unused)

    def release(self) -> None:
        """As Kernel.release."""
        self._unused = []
        if not self._programs and not self.links:
            self._drop_maps()

    def hurry(self, steps: Sequence[s.Step]) -> ContextManager[None]:
        """As Kernel.hurry: memory waits for nothing."""
        return nullcontext()

    def do(self, step: s.Step) -> None:
        """As Kernel.do; fails at step `fail_at` before doing anything of it."""
        number, self.steps_done = self.steps_done, self.steps_done + 1
        if number == self.fail_at:
            self.fail_at = None
            raise HostFailed(f"step {number} was made to fail: {step.describe()}", remedy="Try again.")
        getattr(self, "_do_" + step.kind)(step)
        self.writes += 1
        for name, found in self._devices.items():
            if isinstance(found.device, (Veth, Tap)) and found.up and not self._judged(name, found.index):
                self.unjudged.append(f"{name} after: {step.describe()}")

    # -- steps -------------------------------------------------------------------------------------------------------

    def _do_EnsureDevice(self, step: s.EnsureDevice) -> None:
        device = step.device
        if isinstance(device, Veth) and device.netns not in self.namespaces:
            raise HostFailed(f"network namespace {device.netns} is not there", remedy="Create it.")
        there = self._devices.get(device.name)
        if isinstance(device, Tap) and there is not None and there.device is None:
            raise HostFailed(f"the host has a device {device.name} already", remedy="Remove it.")
        if there is None:
            self._devices[device.name] = _Device(self._next_index(), device)
        else:
            there.device = device

    def _do_SetUp(self, step: s.SetUp) -> None:
        self._device(step.device).up = True

    def _do_SetDown(self, step: s.SetDown) -> None:
        if step.device in self._devices:
            self._devices[step.device].up = False
            self._routes = {key: route for key, route in self._routes.items() if route.device != step.device}

    def _do_RemoveDevice(self, step: s.RemoveDevice) -> None:
        self.lose_device(step.device)

    def _do_SetSysctl(self, step: s.SetSysctl) -> None:
        self.sysctls[step.name] = step.value

    def _do_LoadProgram(self, step: s.LoadProgram) -> None:
        if step.program in self._programs:
            return
        if step.program not in self._unused:
            self._load(step.program, self._unused)
        self._unused.remove(step.program)
        self._programs.append(step.program)
        self.writes += 1

    def _do_DropProgram(self, step: s.DropProgram) -> None:
        self._programs = [item for item in self._programs if step.name not in (item.object, _versioned(item))]

    def _do_Attach(self, step: s.Attach) -> None:
        index = self._place(step.device)
        if step.program not in self._programs:
            raise HostFailed(f"program {step.program.object} is not loaded", remedy="Load it first.")
        if step.hook in XDP_HOOKS and step.device in self.foreign_xdp:
            raise self._occupied(step.device)
        if step.hook in XDP_HOOKS:  # a device has one of them
            for other in XDP_HOOKS - {step.hook}:
                self.links.pop((step.device, other), None)
        link = self.links.get((step.device, step.hook))
        if link is None or link.index != index:
            self._link_ids += 1
            self.links[(step.device, step.hook)] = _Link(self._link_ids, index, step.program)
        else:
            link.program = step.program

    def _do_Detach(self, step: s.Detach) -> None:
        self.links.pop((step.device, step.hook), None)

    def _do_PutRows(self, step: s.PutRows) -> None:
        self._need_map(step.table)
        table = self._tables.setdefault(step.table, {})
        for key, value in step.rows.rows.items():
            table[self._bound(step.rows.key, key)] = dict(self._bound(step.rows.value, value))

    def _do_DeleteRows(self, step: s.DeleteRows) -> None:
        self._need_map(step.table)
        table = self._tables.get(step.table, {})
        for key in step.keys:
            missing = any(is_index(n) and isinstance(v, str) and v not in self._devices for n, v in zip(step.key, key))
            if not missing:
                table.pop(self._bound(step.key, key), None)

    def _do_SwapInner(self, step: s.SwapInner) -> None:
        self._need_map(step.table)
        self._nested.setdefault(step.table, {}).update(step.inners)

    def _do_RemoveInner(self, step: s.RemoveInner) -> None:
        for key in step.keys:
            self._nested.get(step.table, {}).pop(key, None)

    def _do_SwitchPolicies(self, step: s.SwitchPolicies) -> None:
        if self._nested.get(STAGED) and not self._generation & IS_STAGED:
            self._generation = switched(self._generation)

    def _do_SettlePolicies(self, step: s.SettlePolicies) -> None:
        staged = self._nested.pop(STAGED, {})
        self._nested[POLICIES] = in_force(self._nested.get(POLICIES, {}), staged, self._generation)
        self._generation = settled(self._generation)

    def _do_ResizeMaps(self, step: s.ResizeMaps) -> None:
        for name, size in step.sizes.items():
            self._need_map(name)
            self.sizes[name] = size

    def _do_RemoveMap(self, step: s.RemoveMap) -> None:
        self.maps.discard(step.name)
        self._tables.pop(step.name, None)
        self._nested.pop(step.name, None)

    def _do_PutRoute(self, step: s.PutRoute) -> None:
        if not self._device(step.route.device).up:
            raise HostFailed(f"device {step.route.device} is down", remedy="Set it up.")
        self._routes[(step.route.destination, step.route.device)] = step.route

    def _do_RemoveRoute(self, step: s.RemoveRoute) -> None:
        self._routes.pop((step.route.destination, step.route.device), None)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _next_index(self) -> int:
        self._indexes += 1
        return self._indexes

    def _occupied(self, device: str) -> HostFailed:
        return HostFailed(
            f"device {device} runs an XDP program of somebody else: {self.foreign_xdp[device]}",
            field=f"devices {device} xdp",
            remedy="Remove it, or set xdp: off for this device.",
            details={"device": device, "programs": [self.foreign_xdp[device]]},
        )

    def _place(self, name: str) -> int:
        """What is at a hook's place: a device's index, or the root cgroup, which is always the same."""
        return 0 if name == CGROUP_ROOT else self._device(name).index

    def _device(self, name: str) -> _Device:
        try:
            return self._devices[name]
        except KeyError:
            raise HostFailed(f"device {name} is not there", remedy=f"Create {name}.") from None

    def _judged(self, name: str, index: int) -> bool:
        links = [self.links.get((name, hook)) for hook in ("ingress", "egress")]
        return all(link is not None and link.index == index for link in links)

    def _load(self, program: Program, to: List[Program]) -> None:
        to.append(program)
        for name in set(MAP_NAMES) - self.maps:
            self.maps.add(name)
            self.sizes[name] = program.sizes.get(name, int(MAPS[name]["max_entries"]))
        self.writes += 1

    def _drop_maps(self) -> None:
        self.maps.clear()
        self.sizes.clear()

    def _need_map(self, name: str) -> None:
        if name not in self.maps:
            raise HostFailed(f"map {name} is not there", field=name, remedy="Load the programs first.")

    def _name(self, program: Program, want: NodeState) -> str:
        return program.object if want.programs.get(program.object) == program else _versioned(program)

    def _attached(self, hook: Tuple[str, str], link: _Link, want: NodeState) -> str:
        place = self._devices.get(hook[0])
        there = hook[0] == CGROUP_ROOT or (place is not None and place.index == link.index)
        name = self._name(link.program, want) if link.program in self._programs else f"{link.program.object}#{link.id}"
        return name if there else f"{name} (its device is gone)"

    def _bound(self, fields: Tuple[str, ...], row: Row) -> Record:
        """A row as a record, in an order of its own, with indexes for devices."""
        pairs = []
        for name, value in zip(fields, row):
            if is_index(name) and isinstance(value, str):
                value = self._device(value).index
            pairs.append((name, value))
        return tuple(sorted(pairs, key=lambda pair: pair[0]))

    def _read_table(self, name: str, table: Table) -> Table:
        names = {device.index: device_name for device_name, device in self._devices.items()}

        def row(fields: Tuple[str, ...], record: Mapping[str, Any]) -> Row:
            return tuple(names.get(record[f], record[f]) if is_index(f) else record[f] for f in fields)

        rows = {row(table.key, dict(key)): row(table.value, value) for key, value in self._tables.get(name, {}).items()}
        return Table(table.key, table.value, rows)

    def _read_devices(self, want: NodeState) -> Dict[str, Any]:
        found: Dict[str, Any] = {}
        for name, there in self._devices.items():
            wanted = want.devices.get(name)
            if there.device is None:
                if isinstance(wanted, Adopted):
                    found[name] = wanted
                continue
            kind = type(there.device).__name__.lower()
            if there.device == wanted and there.up:
                found[name] = wanted
            elif wanted is None or there.device == wanted:
                found[name] = Found(name, kind, vars(there.device), up=there.up)
            else:
                differs = tuple(key for key, value in vars(wanted).items() if getattr(there.device, key, None) != value)
                made_by = {"netns", "peer_name", "port", "multi_queue"}
                rebuild = type(wanted) is not type(there.device) or bool(made_by & set(differs))
                found[name] = Found(name, kind, vars(there.device), there.up, differs, rebuild)
        return found


def _versioned(program: Program) -> str:
    digest = hashlib.sha256(canonical_json([program.object, dict(program.constants)]).encode()).hexdigest()[:16]
    return f"{program.object}@{digest}"
