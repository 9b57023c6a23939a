"""NodeState: what a node should hold in its kernel, as plain typed data with named fields.

The compiler makes it, the loader realises it and reads it back. It names devices by name, never by index, and holds
records, never bytes; the field names of tables are those of the C structs, which the loader encodes by generated
layouts. In a table a field called `ifindex` (or ending so) holds a device's name, or 0 for none: the index is bound
when the record is written.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from bpfleet.model.document import canonical_json

TUNNEL_DEVICE = "bpfleet_vxlan"
CGROUP_ROOT = "/"
"""The place of socket hooks: the root of the host's own cgroups."""
SOCKET_HOOKS = tuple(f"{does}{family}" for does in ("connect", "sendmsg", "recvmsg", "getpeername") for family in "46")
DEVICE_PREFIX = "bpf-"
"""Host-side devices made for workloads are called this and ten hex digits of their endpoint's name's hash."""

Value = Any  # int or str: what a field of a record holds
Row = Tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """The contents of one map: rows of values, in the order of the named fields.

    `key` and `value` name fields of the C structs; fields that are not named are zero.
    """

    key: Tuple[str, ...]
    value: Tuple[str, ...]
    rows: Mapping[Row, Row] = field(default_factory=dict)

    def records(self) -> Dict[Row, Dict[str, Value]]:
        """Each row's value as a mapping from field name."""
        return {key: dict(zip(self.value, value)) for key, value in self.rows.items()}

    @functools.cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the contents. Kept: a change of one document leaves the largest tables as they are."""
        rows = sorted(map(repr, self.rows.items()))  # rows may differ in type: a device's name, or 0
        return hashlib.sha256("\n".join([repr((self.key, self.value)), *rows]).encode()).hexdigest()


@dataclass(frozen=True)
class Program:
    """One object to load: its name (file bpf/<name>.bpf.c) and its load-time constants.

    sizes: entries of the maps that it brings, of those that are not there yet; no part of what the program is.
    """

    object: str
    constants: Mapping[str, Value] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Vxlan:
    """The tunnel device, in external (collect-metadata) mode: NOARP, up, its MTU that of the workloads."""

    name: str
    port: int
    mtu: int
    mac: str


@dataclass(frozen=True)
class Veth:
    """A veth pair for a workload: `name` stays on the host, `peer_name` is in network namespace `netns`, both up.

    Inside, each gateway is an on-link neighbour with the fixed MAC of the host side, and the default route of its
    family: nothing ever needs to be resolved. `peer_addresses` are without prefix length: hosts of their own, /32 and
    /128.
    """

    name: str
    mac: str
    mtu: int
    netns: str
    peer_name: str
    peer_mac: str
    peer_addresses: Tuple[str, ...]
    gateways: Tuple[str, ...]


@dataclass(frozen=True)
class Tap:
    """A persistent tap for a virtual machine, up. `owner`, `group`: who may open it, by name or number; "": nobody in
    particular, and root alone if neither is given. `gateways`: addresses of the host on it, which answer the machine.
    """

    name: str
    mac: str
    mtu: int
    owner: str
    group: str
    multi_queue: bool
    gateways: Tuple[str, ...]


@dataclass(frozen=True)
class Adopted:
    """An existing device that leads to a workload; bpfleet attaches programs to it and changes nothing else."""

    name: str


@dataclass(frozen=True)
class Route:
    """A route on the host, on link: `source` is the preferred source address, or None."""

    destination: str
    device: str
    source: Optional[str] = None


@dataclass(frozen=True)
class NodeState:
    """Everything of ours on a node.

    programs: object name -> Program.      attachments: (device, hook) -> object name; hooks of a
    device are "ingress", "egress", "xdp-native" and "xdp-generic", of CGROUP_ROOT SOCKET_HOOKS.
    tables: map name -> Table.             nested: outer map name -> {outer key: Table of the inner map}.
    devices: device name -> its kind.      routes: (destination, device) -> Route.      sysctls: dotted name -> value.
    sizes: map name -> the entries it has room for; of an inner map the most that one may have.
    """

    programs: Mapping[str, Program] = field(default_factory=dict)
    attachments: Mapping[Tuple[str, str], str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    nested: Mapping[str, Mapping[int, Table]] = field(default_factory=dict)
    devices: Mapping[str, Any] = field(default_factory=dict)  # Vxlan | Veth | Tap | Adopted
    routes: Mapping[Tuple[str, str], Route] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> Dict[str, Any]:
        """Plain, deterministic JSON data: for goldens and for people."""
        return self._json(_table_json)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the whole state."""
        return hashlib.sha256(canonical_json(self._json(lambda table: table.digest)).encode()).hexdigest()

    def _json(self, of_table: Callable[[Table], Any]) -> Dict[str, Any]:
        return {
            "programs": {
                name: dict(sorted(program.constants.items())) for name, program in sorted(self.programs.items())
            },
            "attachments": {f"{device} {hook}": name for (device, hook), name in sorted(self.attachments.items())},
            "tables": {name: of_table(table) for name, table in sorted(self.tables.items())},
            "nested": {
                name: {str(key): of_table(table) for key, table in sorted(inner.items())}
                for name, inner in sorted(self.nested.items())
            },
            "devices": {
                name: {"kind": type(device).__name__.lower(), **vars(device)}
                for name, device in sorted(self.devices.items())
            },
            "routes": [vars(route) for _, route in sorted(self.routes.items())],
            "sysctls": dict(sorted(self.sysctls.items())),
            "sizes": dict(sorted(self.sizes.items())),
        }


def _table_json(table: Table) -> Any:
    return [
        {**dict(zip(table.key, key)), "=": dict(zip(table.value, value))}
        for key, value in sorted(table.rows.items(), key=repr)
    ]


@dataclass(frozen=True)
class Facts:
    """What the compiler must know of the node itself. Measured by the agent, data here.

    devices: name -> (MTU in bytes, addresses) of the host's own devices (not those bpfleet makes).
    namespaces: names under /run/netns.    tcx: whether programs are attached by tcx links
    (kernel 6.6 and later) rather than by clsact filters.
    gateways: next hops of default routes.    controller: whence the change under way comes, empty if from here.
    cgroup: whether the host has a cgroup2 hierarchy, whose root socket hooks are attached to.
    jiffy_ns: nanoseconds of the kernel's tick, 0 if they are not known.
    kernel_contexts: whether programs may look into the kernel's own structure of a packet (kernel 6.2 and later).
    shared: broadcast and anycast addresses of its networks, which its stack takes in besides its own.
    link_types: device -> its number of linux/if_arp.h, of those devices that are not Ethernet.
    """

    node: str
    devices: Mapping[str, Tuple[int, Tuple[str, ...]]] = field(default_factory=dict)
    namespaces: Tuple[str, ...] = ()
    tcx: bool = True
    gateways: Tuple[str, ...] = ()
    controller: str = ""
    cgroup: bool = True
    jiffy_ns: int = 0
    kernel_contexts: bool = False
    shared: Tuple[str, ...] = ()
    link_types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleName:
    """What a rule id stands for.

    For a default deny, `policy` lists all policies that close the direction and `rule` is "default deny".
    """

    policy: str
    direction: str
    rule: str
    action: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """A document that has no effect yet, and what it waits for."""

    document: str
    reason: str


@dataclass(frozen=True)
class ServiceSummary:
    """A service in short: each frontend as people write it, and how many backends it has."""

    name: str
    frontends: Tuple[Tuple[str, int], ...]


@dataclass(frozen=True)
class Compiled:
    """What the compiler answers: the state, the names of its rule ids, what waits, and warnings for people."""

    state: NodeState
    rules: Mapping[int, RuleName] = field(default_factory=dict)
    identities: Mapping[int, str] = field(default_factory=dict)
    waiting: Tuple[Waiting, ...] = ()
    warnings: Tuple[str, ...] = ()
    services: Tuple[ServiceSummary, ...] = ()
