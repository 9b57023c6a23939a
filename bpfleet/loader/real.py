"""The kernel of this host.

Everything is asked of the kernel each time; this object remembers nothing of what it did, except what `prepare` loaded
and no step used yet. So an agent that starts anew finds all there is.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from bpfleet.errors import HostFailed, HostUnfit
from bpfleet.loader import cgroup, links, steps, syscall
from bpfleet.loader.capacity import CONNECTIONS
from bpfleet.loader.clsact import device_hooks
from bpfleet.loader.cpus import LRU_FREE, lru_room
from bpfleet.loader.devices import Devices, is_ours, read_devices
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.loader.grace import expedited
from bpfleet.loader.maps import Maps
from bpfleet.loader.objects import Objects
from bpfleet.loader.pins import DEFAULT, Pins, open_pin, require_bpffs, unpin
from bpfleet.loader.resize import Resizing
from bpfleet.loader.routes import Routes, read_routes
from bpfleet.loader.rows import Missing, device_index, salt
from bpfleet.loader.rtnl import ETHERNET, NAMESPACES, Link, Reader
from bpfleet.loader.xdp import Xdp
from bpfleet.model.state import Facts, NodeState, Program, Table

MINIMUM_KERNEL = (6, 1)
_SHOWS_CONTEXTS = (6, 2)  # has bpf_cast_to_kern_ctx
_OTHER_MAPS = " (other maps)"
_LINK_SCOPE = 253
_CLOCK_MONOTONIC_COARSE = 6  # time has no name for it
_SHORTEST_JIFFY_NS, _LONGEST_JIFFY_NS = 1_000_000, 10_000_000  # CONFIG_HZ is from 100 to 1000
INNER_MAPS = frozenset(described["inner"] for described in MAPS.values() if "inner" in described)


class RealKernel:
    """This host's kernel, in the network and mount namespaces of the calling thread."""

    def __init__(
        self,
        objects: Union[str, os.PathLike[str]],
        pins: str = DEFAULT,
        state: Union[str, os.PathLike[str]] = "/var/lib/bpfleet/logs",
        *,
        use_tcx: bool = True,
    ) -> None:
        """`objects`: directory of *.bpf.o.  `pins`: directory in a bpffs.  `state`: where verifier logs are kept.
        `use_tcx`: attach by tcx links where the kernel has them, by clsact filters otherwise."""
        self.writes = 0
        self._pins = Pins(pins)
        self._objects = Objects(Path(objects), self._pins, Path(state))
        self._maps = Maps(self._pins, self._wrote)
        self._xdp = Xdp(self._pins, self._wrote)
        self._hooks: links.Mechanism = links.ByHook(
            [
                device_hooks(self._pins, self._wrote, use_tcx=use_tcx),
                self._xdp,
                cgroup.Cgroup(self._pins, self._wrote),
            ]
        )
        self._resizing = Resizing(self._pins, self._maps, self._objects, self._hooks, self._wrote)
        self._use_tcx = use_tcx
        self._devices = Devices(self._wrote)
        self._routes = Routes(self._wrote)
        # By where they will be pinned: descriptors alone keep them, so that a process that dies leaves none behind.
        self._unused: Dict[Path, int] = {}

    def _wrote(self, count: int = 1) -> None:
        self.writes += count

    # -- fitness and facts -------------------------------------------------------------------------------------------

    def check_fitness(self) -> None:
        """As Kernel.check_fitness: root, kernel, BTF, bpffs, libbpf, in this order."""
        if os.geteuid() != 0:
            raise HostUnfit("not run as root", remedy="Connect as root.")
        if _kernel() < MINIMUM_KERNEL:
            raise HostUnfit(f"the kernel is {os.uname().release}", remedy="Use kernel 6.1 or later.")
        if not Path("/sys/kernel/btf/vmlinux").exists():
            raise HostUnfit(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux)", remedy="Use a kernel with CONFIG_DEBUG_INFO_BTF."
            )
        require_bpffs()
        self._objects.libbpf()

    def facts(self, node: str) -> Facts:
        """As Kernel.facts. Addresses are those of global and host scope, link-local ones left out."""
        with Reader() as reader:
            names = {link.index: link for link in reader.links() if not is_ours(link)}
            addresses: Dict[int, List[str]] = {}
            shared: Set[str] = set()
            for item in reader.addresses():
                if item.scope != _LINK_SCOPE:
                    addresses.setdefault(item.index, []).append(item.address)
                    shared.update(_shared(item.address, item.prefix) if item.index in names else ())
            gateways = {
                route.gateway for route in reader.routes() if route.gateway and route.destination.endswith("/0")
            }
        return Facts(
            node,
            {link.name: (link.mtu, tuple(sorted(addresses.get(index, ())))) for index, link in sorted(names.items())},
            _namespaces(),
            self._use_tcx and links.supported(),
            tuple(sorted(gateways)),
            cgroup=cgroup.root() is not None,
            jiffy_ns=jiffy_ns(),
            kernel_contexts=shows_contexts(),
            shared=tuple(sorted(shared)),
            link_types={link.name: link.type for link in names.values() if link.type != ETHERNET},
        )

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, want: NodeState) -> NodeState:
        """As Kernel.read."""
        with Reader() as reader:
            there = {link.name: link for link in reader.links()}
            devices = read_devices(there, want.devices, reader)
            routes = read_routes(reader, there)
        programs, names = self._read_programs(want)
        tables, nested = self._read_maps(want)
        return NodeState(
            programs=programs,
            attachments=self._read_hooks(want, there, names),
            tables=tables,
            nested=nested,
            devices=devices,
            routes=routes,
            sysctls=_read_sysctls(want),
            sizes=self._read_sizes(want),
        )

    def _read_programs(self, want: NodeState) -> Tuple[Dict[str, Program], Dict[int, str]]:
        """Loaded programs as Kernel.read names them, and those names by program id."""
        programs: Dict[str, Program] = {}
        names: Dict[int, str] = {}
        pinned = self._pins.list_programs()
        digests = {name: self._objects.digest(program) for name, program in want.programs.items()} if pinned else {}
        shared = self._map_ids() if pinned else set()
        for object_name, digest in pinned:
            info = _program(self._pins.program(object_name, digest))
            if info is None:
                continue
            name, program = f"{object_name}@{digest}", Program(object_name)
            if digests.get(object_name) == digest:
                if _own_maps_only(info, shared):
                    name, program = object_name, want.programs[object_name]
                else:
                    name += _OTHER_MAPS
            programs[name] = program
            names[info.id] = name
        return programs, names

    def _map_ids(self) -> set[int]:
        found = set()
        for name in self._pins.list_lasting_maps():
            fd = open_pin(self._pins.maps / name)
            if fd is not None:
                try:
                    found.add(syscall.map_info(fd).id)
                finally:
                    os.close(fd)
        return found

    def _read_hooks(
        self, want: NodeState, there: Mapping[str, Link], names: Mapping[int, str]
    ) -> Dict[Tuple[str, str], str]:
        hooks = set(want.attachments)
        hooks.update((name, hook) for name, link in there.items() if is_ours(link) for hook in ("ingress", "egress"))
        return self._hooks.read(sorted(hooks), lambda number: names.get(number, f"program {number}"))

    def _read_maps(self, want: NodeState) -> Tuple[Dict[str, Table], Dict[str, Dict[int, Table]]]:
        tables: Dict[str, Table] = {}
        nested: Dict[str, Dict[int, Table]] = {}
        for name, table in want.tables.items():
            found = self._maps.read_table(name, table, _salt(want) if name == "node" else 0)
            if found is not None:
                tables[name] = found
        for name, inners in want.nested.items():
            inner = self._maps.read_nested(name, inners)
            if inner is not None:
                nested[name] = inner
        for file_name in self._pins.list_maps():
            name = file_name.rpartition("_v")[0]
            today = name in MAPS and self._pins.map(name).name == file_name
            if not today:
                tables[file_name] = Table((), ())
            elif not want.programs and name not in want.tables and name not in want.nested:
                tables[name] = Table((), ())
        return tables, nested

    def _read_sizes(self, want: NodeState) -> Dict[str, int]:
        """Of the maps that are there. Inner maps are as large as they need to be: for them it is what is wanted."""
        sizes = {name: most if name in INNER_MAPS else self._maps.size(name) for name, most in want.sizes.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def obstacles(self, want: NodeState) -> List[HostFailed]:
        """As Kernel.obstacles."""
        return [*self._xdp.obstacles(want.attachments), *self._too_many_connections(want)]

    def _too_many_connections(self, want: NodeState) -> Iterator[HostFailed]:
        size, there = want.sizes.get(CONNECTIONS), self._maps.size(CONNECTIONS)
        if size is None or there is None or size >= there:
            return
        live = self._maps.live_connections()
        if live > lru_room(size, os.cpu_count() or 1):
            free = f", and each CPU keeps up to {LRU_FREE} places free for itself" if live <= size else ""
            yield HostFailed(
                f"the map {CONNECTIONS} is to have room for {size} entries, {live} connections are under way{free}",
                field=CONNECTIONS,
                remedy=f"Lower limits.{CONNECTIONS} to no fewer than are under way, and what the CPUs keep free.",
                details={"map": CONNECTIONS, "needed": live, "limit": size},
            )

    # -- staging -----------------------------------------------------------------------------------------------------

    def prepare(self, programs: Mapping[str, Program]) -> None:
        """As Kernel.prepare."""
        missing = [program for _, program in sorted(programs.items()) if not self._is_loaded(program)]
        if not missing:
            return
        self._wrote(self._pins.ensure())
        for program in missing:
            self._pin_maps_again(program)
        maps_before = set(self._pins.list_maps())
        try:
            for program in missing:
                if not self._is_loaded(program):
                    self._load(program)
            self._maps.begin_generations()
        except BaseException:
            for program in missing:
                self._forget(self._objects.pin(program))
            for name in set(self._pins.list_maps()) - maps_before:
                unpin(self._pins.maps / name)
            self._pins.remove_empty()
            raise

    def release(self) -> None:
        """As Kernel.release."""
        for path in list(self._unused):
            self._forget(path)
        if self._pins.list_programs() or self._pins.list_links():
            return
        for name in self._pins.list_maps():
            unpin(self._pins.maps / name)
            self._wrote()
        self._wrote(self._pins.remove_empty())

    def _is_loaded(self, program: Program) -> bool:
        path = self._objects.pin(program)
        held = self._unused.get(path)
        return self._is_current(syscall.program_info(held) if held is not None else _program(path))

    def _is_current(self, info: Optional[syscall.ProgramInfo]) -> bool:
        """Whether there is such a program, with the maps that are pinned now."""
        return info is not None and _own_maps_only(info, self._map_ids())

    def _pin_maps_again(self, program: Program) -> None:
        """A map whose pin somebody removed lives on in the programs that use it. It gets its pin back: with another one
        connections would be lost, and those that are not would name slots of another history. Only from this very
        program, which has today's layouts."""
        info = _program(self._objects.pin(program))
        shared = self._map_ids()
        for number in info.map_ids if info is not None else ():
            if number in shared:
                continue
            fd = syscall.map_by_id(number)
            try:
                name = syscall.map_info(fd).name
                if name in MAPS and self._pins.map(name).name not in self._pins.list_maps():
                    syscall.pin(fd, str(self._pins.map(name)))
                    self._wrote()
            finally:
                os.close(fd)

    def _load(self, program: Program) -> None:
        path = self._objects.pin(program)
        self._forget(path)
        self._unused[path] = self._objects.load(program)
        self._wrote()

    def _forget(self, path: Path) -> None:
        """Let go of what was loaded to be pinned there."""
        held = self._unused.pop(path, None)
        if held is not None:
            os.close(held)

    def _use(self, program: Program) -> None:
        """Pin a program, loaded before or now; nothing if that very one is pinned already."""
        self.prepare({program.object: program})
        path = self._objects.pin(program)
        held = self._unused.get(path)
        if held is None:
            return
        if not self._is_current(_program(path)):  # another process may have pinned it meanwhile
            self._wrote(self._pins.ensure())
            if unpin(path):  # its maps are no longer the pinned ones
                self._wrote()
            syscall.pin(held, str(path))
            self._wrote()
        self._forget(path)

    # -- steps -------------------------------------------------------------------------------------------------------

    def hurry(self, steps: Sequence[steps.Step]) -> ContextManager[None]:
        """As Kernel.hurry."""
        return expedited(steps)

    def do(self, step: steps.Step) -> None:
        """As Kernel.do. Raises HostFailed, HostUnfit, ObjectRejected, or OSError for what is not foreseen."""
        if isinstance(step, steps.EnsureDevice):
            self._devices.ensure(step.device)
        elif isinstance(step, steps.SetUp):
            self._devices.set_up(step.device, True)
        elif isinstance(step, steps.SetDown):
            self._devices.set_up(step.device, False)
        elif isinstance(step, steps.RemoveDevice):
            self._devices.remove(step.device)
        elif isinstance(step, steps.SetSysctl):
            self._set_sysctl(step)
        elif isinstance(step, steps.PutRoute):
            self._routes.put(step.route)
        elif isinstance(step, steps.RemoveRoute):
            self._routes.remove(step.route)
        else:
            self._do_bpf(step)

    def _do_bpf(self, step: steps.Step) -> None:
        if isinstance(step, steps.LoadProgram):
            self._use(step.program)
        elif isinstance(step, steps.DropProgram):
            self._drop(step.name)
        elif isinstance(step, steps.Attach):
            self._attach(step)
        elif isinstance(step, steps.Detach):
            self._hooks.detach(step.device, step.hook)
        elif isinstance(step, steps.PutRows):
            self._maps.put_rows(step.table, step.rows)
        elif isinstance(step, steps.DeleteRows):
            self._maps.delete_rows(step.table, step.key, step.keys)
        elif isinstance(step, steps.SwapInner):
            self._maps.swap_inner(step.table, step.inners)
        elif isinstance(step, steps.RemoveInner):
            self._maps.remove_inner(step.table, step.keys)
        elif isinstance(step, steps.SwitchPolicies):
            self._maps.switch_policies()
        elif isinstance(step, steps.SettlePolicies):
            self._maps.settle_policies()
        elif isinstance(step, steps.ResizeMaps):
            self._resizing.do(step)
        elif isinstance(step, steps.RemoveMap):
            path = self._pins.map(step.name) if step.name in MAPS else self._pins.maps / step.name
            if unpin(path):
                self._wrote()
            self._wrote(self._pins.remove_empty())
        else:
            raise TypeError(f"no such step: {step!r}")

    def _attach(self, step: steps.Attach) -> None:
        fd = open_pin(self._objects.pin(step.program))
        if fd is None:
            raise HostFailed(f"program {step.program.object} is not loaded", remedy="Apply again: it is loaded first.")
        try:
            self._hooks.attach(step.device, step.hook, fd)
        finally:
            os.close(fd)

    def _drop(self, name: str) -> None:
        broken = name.endswith(_OTHER_MAPS)
        object_name, _, digest = (name[: -len(_OTHER_MAPS)] if broken else name).partition("@")
        for other, version in self._pins.list_programs():
            if other != object_name or digest not in ("", version):
                continue
            path = self._pins.program(other, version)
            if broken:
                info = _program(path)
                if info is not None and _own_maps_only(info, self._map_ids()):
                    continue  # loaded anew under the same name meanwhile
            if unpin(path):
                self._wrote()
        self._wrote(self._pins.remove_empty())

    def _set_sysctl(self, step: steps.SetSysctl) -> None:
        path = _sysctl_path(step.name)
        try:
            path.write_text(step.value)
        except OSError as error:
            raise HostFailed(
                f"cannot set sysctl {step.name} to {step.value}: {error.strerror}",
                file=str(path),
                remedy="See whether the device in its name is there, and whether /proc/sys can be written.",
            ) from error
        self._wrote()


def _program(path: Path) -> Optional[syscall.ProgramInfo]:
    fd = open_pin(path)
    if fd is None:
        return None
    try:
        return syscall.program_info(fd)
    finally:
        os.close(fd)


def _kernel() -> Tuple[int, int]:
    """The kernel's version, (0, 0) if it says none."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def shows_contexts() -> bool:
    """Whether programs may look into the kernel's own structure of a packet."""
    return _kernel() >= _SHOWS_CONTEXTS


def jiffy_ns() -> int:
    """Nanoseconds of the kernel's tick: the resolution of its coarse clocks. 0 if that is nothing a tick can be."""
    try:
        found = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)
    except OSError:
        return 0
    return found if _SHORTEST_JIFFY_NS <= found <= _LONGEST_JIFFY_NS else 0


def _own_maps_only(info: syscall.ProgramInfo, shared: set[int]) -> bool:
    """Whether a program uses the pinned maps, and none that lost its pin; constants are a map of its own."""
    for number in info.map_ids:
        if number in shared:
            continue
        try:
            fd = syscall.map_by_id(number)
        except FileNotFoundError:
            return False
        try:
            if not syscall.map_info(fd).name.endswith(".rodata"):
                return False
        finally:
            os.close(fd)
    return True


def _salt(want: NodeState) -> int:
    """The salt (rows.salt) that the wanted endpoints have with the indexes of now; a device that is missing has 0."""
    table = want.tables.get("endpoints")
    if table is None:
        return salt(())
    position = table.key.index("ifindex")
    found = []
    for row in table.rows:
        try:
            found.append(device_index(row[position]))
        except Missing:
            found.append(0)
    return salt(found)


def _read_sysctls(want: NodeState) -> Dict[str, str]:
    found: Dict[str, Any] = {}
    for name in want.sysctls:
        try:
            found[name] = " ".join(_sysctl_path(name).read_text().split())
        except FileNotFoundError:
            continue
    return found


def _sysctl_path(name: str) -> Path:
    """Of the dot and the slash, the one that comes first separates, the other stands for a dot (sysctl(8))."""
    first = next((letter for letter in name if letter in "./"), "/")
    return Path("/proc/sys", name if first == "/" else name.translate(str.maketrans("./", "/.")))


def _namespaces() -> Tuple[str, ...]:
    """Names under /run/netns that hold a namespace; a name that lost its mount is on another file system."""
    kind = Path("/proc/self/ns/net").stat().st_dev
    try:
        return tuple(sorted(entry.name for entry in NAMESPACES.iterdir() if entry.stat().st_dev == kind))
    except FileNotFoundError:
        return ()


def _shared(address: str, prefix: int) -> Iterator[str]:
    """The broadcast address of an IPv4 network; of IPv6 the anycast address of its routers (RFC 4291 2.6.1)."""
    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    if network.num_addresses > 2:
        yield str(network[0] if network.version == 6 else network[-1])
