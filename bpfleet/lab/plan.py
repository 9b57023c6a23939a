"""Names, numbers and addresses of a lab, computed from its shape. Pure.

A lab's number (1-254) makes everything that must differ between labs on one machine:

    192.168.<number>.0/24      underlay; host i has .<i>, the world .253, the controller's end .254
    fd00:bf:<number>::/64      the same for IPv6: ::<i>, ::fd, ::fe
    10.<number>.<i>.0/24       suggested workload CIDR of host i
    fd00:bf:<number>:<i>::/64  the same for IPv6
    bpfleet-lab<number>        the one device that the lab has in the machine's own network namespace
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from bpfleet.errors import InvalidInput

DEFAULT_NAME = "default"
MAX_NODES = 200
MAX_WORKLOADS = 200
UNDERLAY_DEVICE = "eth0"
WORLD_ADDRESSES = ("198.51.100.1", "2001:db8:100::1")  # documentation ranges (RFC 5737, RFC 3849)
_PREFERRED_NUMBERS: tuple[int, ...] = (
    *range(77, 255),
    *range(1, 77),
)  # low 192.168 and 10 nets are the ones people use
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_RESERVED_NAMES = frozenset({"scratch"})  # a folder of the default lab


@dataclass(frozen=True)
class Shape:
    """What the user asks for: hosts, workload namespaces in each, and the underlay's MTU in bytes."""

    nodes: int
    workloads: int
    mtu: int

    def check(self) -> None:
        """Raise InvalidInput for a shape that cannot be built."""
        if not 1 <= self.nodes <= MAX_NODES:
            raise InvalidInput(f"{self.nodes} hosts", field="nodes", remedy=f"Choose 1 to {MAX_NODES}")
        if not 0 <= self.workloads <= MAX_WORKLOADS:
            raise InvalidInput(
                f"{self.workloads} workloads a host",
                field="workloads",
                remedy=f"Choose 0 to {MAX_WORKLOADS}",
            )
        if not 1280 <= self.mtu <= 65535:  # IPv6 needs 1280 (RFC 8200, section 5)
            raise InvalidInput(f"an underlay MTU of {self.mtu}", field="mtu", remedy="Choose 1280 to 65535")

    def __str__(self) -> str:
        hosts = "1 host" if self.nodes == 1 else f"{self.nodes} hosts"
        workloads = "1 workload" if self.workloads == 1 else f"{self.workloads} workloads"
        return f"{hosts}, {workloads} each, underlay MTU {self.mtu}"


@dataclass(frozen=True)
class HostPlan:
    """One host: everything about it that follows from the lab's number and the host's index (from 1)."""

    name: str
    index: int
    number: int
    workloads: tuple[str, ...]

    @property
    def address(self) -> str:
        return f"192.168.{self.number}.{self.index}"

    @property
    def address6(self) -> str:
        return f"fd00:bf:{self.number}::{self.index:x}"

    @property
    def mac(self) -> str:
        """Locally administered and stable, so that a reboot does not strand the others' neighbour tables."""
        return f"02:bf:{self.number:02x}:00:00:{self.index:02x}"

    @property
    def workload_cidrs(self) -> tuple[str, str]:
        return f"10.{self.number}.{self.index}.0/24", f"fd00:bf:{self.number}:{self.index:x}::/64"


@dataclass(frozen=True)
class LabPlan:
    """A lab's name, number, shape, and the folder its files are written to."""

    name: str
    number: int
    shape: Shape
    directory: Path
    share: tuple[str, ...] = ()

    @property
    def link(self) -> str:
        """The controller's end of the link to the lab's switch, in the machine's own network namespace."""
        return f"bpfleet-lab{self.number}"

    @property
    def alias(self) -> str:
        """The link's alias, by which it is known as this lab's even without any record."""
        return link_alias(self.name)

    @property
    def controller_addresses(self) -> tuple[str, str]:
        return f"192.168.{self.number}.254", f"fd00:bf:{self.number}::fe"

    @property
    def gateway_addresses(self) -> tuple[str, str]:
        """The world's addresses on the underlay: the hosts' default gateway."""
        return f"192.168.{self.number}.253", f"fd00:bf:{self.number}::fd"

    @property
    def hosts(self) -> tuple[HostPlan, ...]:
        workloads = tuple(f"w{k}" for k in range(1, self.shape.workloads + 1))
        return tuple(HostPlan(f"h{i}", i, self.number, workloads) for i in range(1, self.shape.nodes + 1))


def link_alias(name: str) -> str:
    """The alias that marks a device as belonging to the lab `name`."""
    return f"bpfleet lab {name}"


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can be a lab's name (it becomes part of paths and cgroups)."""
    if not _NAME.fullmatch(name) or name in _RESERVED_NAMES:
        raise InvalidInput(
            f"{name!r} cannot be a lab's name",
            field="name",
            remedy="Use up to 40 lower-case letters, digits and inner hyphens; 'scratch' is taken",
        )


def choose_number(taken: set[int], routes: list[str]) -> int:
    """The first number whose underlay is neither another lab's nor inside or around one of `routes` (CIDRs)."""
    networks = [ipaddress.ip_network(route, strict=False) for route in routes]
    for number in _PREFERRED_NUMBERS:
        if number in taken:
            continue
        ours = (
            ipaddress.ip_network(f"192.168.{number}.0/24"),
            ipaddress.ip_network(f"fd00:bf:{number}::/64"),
        )
        if not any(_overlap(net, own) for net in networks for own in ours):
            return number
    raise InvalidInput(
        "no private underlay range is free for another lab",
        remedy="Take a lab down (bpfleet lab down --name NAME); `ip route` shows what holds 192.168.0.0/16",
    )


def _overlap(
    one: ipaddress.IPv4Network | ipaddress.IPv6Network, other: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return one.overlaps(other)
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return one.overlaps(other)
    return False
