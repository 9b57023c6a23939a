"""The steps a plan is made of. Plain data; `describe()` is one line for people.

A step names devices and maps by name. `kind` groups steps for a summary ("PutRows": 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple, Union

from bpfleet.model.state import Program, Route, Row, Table, Tap, Veth, Vxlan

_SHOWN = 3


@dataclass(frozen=True)
class Step:
    """One change of one thing on the host. Doing it again does no harm."""

    @property
    def kind(self) -> str:
        """The step's name, for summaries."""
        return type(self).__name__

    def describe(self) -> str:
        """One line for people."""
        raise NotImplementedError


@dataclass(frozen=True)
class EnsureDevice(Step):
    """Create a device, or bring one that is there to its description. A new veth's host side, and a new tap, stay down
    (see SetUp).

    `lacks` says what was found wrong, for people; empty: the device is not there.
    """

    device: Union[Vxlan, Veth, Tap]
    lacks: Tuple[str, ...] = ()

    def describe(self) -> str:
        device = self.device
        if self.lacks:
            return f"repair device {device.name}: {', '.join(self.lacks)}"
        if isinstance(device, Vxlan):
            return f"create tunnel device {device.name}: VXLAN, UDP port {device.port}, MTU {device.mtu}"
        if isinstance(device, Tap):
            return f"create device {device.name}: tap, MTU {device.mtu}"
        inside = f"{device.peer_name} in {device.netns} with {', '.join(device.peer_addresses)}"
        return f"create device {device.name}: veth to {inside}, MTU {device.mtu}"


@dataclass(frozen=True)
class SetUp(Step):
    """Let a device of ours carry packets; comes after its programs are attached."""

    device: str

    def describe(self) -> str:
        return f"set device {self.device} up"


@dataclass(frozen=True)
class SetDown(Step):
    """Stop a device of ours before its programs are taken away."""

    device: str

    def describe(self) -> str:
        return f"set device {self.device} down"


@dataclass(frozen=True)
class RemoveDevice(Step):
    """Remove a device of ours; a veth takes its other end along."""

    device: str

    def describe(self) -> str:
        return f"remove device {self.device}"


@dataclass(frozen=True)
class SetSysctl(Step):
    """Set a kernel parameter; `before` is for people."""

    name: str
    value: str
    before: Optional[str] = None

    def describe(self) -> str:
        was = "" if self.before is None else f" (is {self.before})"
        return f"set sysctl {self.name} = {self.value}{was}"


@dataclass(frozen=True)
class LoadProgram(Step):
    """Load and verify one object with its constants, unless that very one is loaded."""

    program: Program

    def describe(self) -> str:
        constants = ", ".join(f"{name}={value}" for name, value in sorted(self.program.constants.items()))
        return f"load program {self.program.object}" + (f" ({constants})" if constants else "")


@dataclass(frozen=True)
class DropProgram(Step):
    """Forget a loaded program; `name` is its key in the state that was read."""

    name: str

    def describe(self) -> str:
        return f"drop program {self.name}"


@dataclass(frozen=True)
class Attach(Step):
    """Have `program` judge packets at a device's hook; what was there of ours is replaced in place.

    `before` is what was found at the hook, for people.
    """

    device: str
    hook: str
    program: Program
    before: Optional[str] = None

    def describe(self) -> str:
        place = f"{self.device} {self.hook}"
        if self.before is None:
            return f"attach {self.program.object} to {place}"
        return f"replace {self.before} by {self.program.object} at {place}"


@dataclass(frozen=True)
class Detach(Step):
    """Take our program off a device's hook."""

    device: str
    hook: str

    def describe(self) -> str:
        return f"detach our program from {self.device} {self.hook}"


@dataclass(frozen=True)
class PutRows(Step):
    """Create or overwrite rows of a map."""

    table: str
    rows: Table

    def describe(self) -> str:
        return f"put {_count(len(self.rows.rows), 'row')} into {self.table}: {_some(self.rows.rows)}"


@dataclass(frozen=True)
class DeleteRows(Step):
    """Remove rows of a map by key; `keys` are in the order of the fields `key`."""

    table: str
    key: Tuple[str, ...]
    keys: Tuple[Row, ...]

    def describe(self) -> str:
        return f"delete {_count(len(self.keys), 'row')} from {self.table}: {_some(dict.fromkeys(self.keys))}"


@dataclass(frozen=True)
class SwapInner(Step):
    """Build whole inner maps and put each in its place at once."""

    table: str
    inners: Mapping[int, Table]

    def describe(self) -> str:
        rows = sum(len(inner.rows) for inner in self.inners.values())
        return (
            f"swap {_count(len(self.inners), 'map')} of {self.table} ({_count(rows, 'row')}) in: "
            f"{_some({(key,): None for key in sorted(self.inners)})}"
        )


@dataclass(frozen=True)
class RemoveInner(Step):
    """Remove inner maps by their key."""

    table: str
    keys: Tuple[int, ...]

    def describe(self) -> str:
        return f"remove {_count(len(self.keys), 'map')} of {self.table}: {_some({(key,): None for key in self.keys})}"


@dataclass(frozen=True)
class SwitchPolicies(Step):
    """Have every policy map that is staged in force, all at once."""

    def describe(self) -> str:
        return "switch to the policies that are staged"


@dataclass(frozen=True)
class SettlePolicies(Step):
    """Put what was switched to in its lasting place, and let go of all that is staged, switched to or not."""

    def describe(self) -> str:
        return "settle the policies"


@dataclass(frozen=True)
class ResizeMaps(Step):
    """Make maps anew in another size, with what they hold, and the programs at these hooks anew on them (resize.py).

    `sizes`: entries by map; `before`: those of now, for people.
    """

    sizes: Mapping[str, int]
    hooks: Tuple[Tuple[str, str], ...]
    before: Mapping[str, int]

    def describe(self) -> str:
        changes = ", ".join(f"{name} from {self.before[name]} to {size}" for name, size in sorted(self.sizes.items()))
        return f"resize {_count(len(self.sizes), 'map')}, with all they hold: {changes} entries"


@dataclass(frozen=True)
class RemoveMap(Step):
    """Forget a map and all it holds; `name` is its key in the state that was read."""

    name: str

    def describe(self) -> str:
        return f"remove map {self.name}"


@dataclass(frozen=True)
class PutRoute(Step):
    """Create or change a route of ours."""

    route: Route

    def describe(self) -> str:
        source = f", source {self.route.source}" if self.route.source else ""
        return f"route {self.route.destination} through {self.route.device}{source}"


@dataclass(frozen=True)
class RemoveRoute(Step):
    """Remove a route of ours."""

    route: Route

    def describe(self) -> str:
        return f"remove route {self.route.destination} through {self.route.device}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _some(rows: Mapping[Row, object]) -> str:
    shown = [" ".join(str(value) for value in key) for key in list(rows)[:_SHOWN]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
