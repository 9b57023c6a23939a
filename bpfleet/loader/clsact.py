"""Programs as clsact filters: for kernels without tcx (before 6.6), and where tcx is not to be used.

Ours is the first filter at its hook (preference 1, before all others), replaced in place. The truth is the hook: ours
is a filter whose program's name begins as ours do. The filter keeps the program alive; it has no pin. On a device that
had no clsact qdisc we make one, together with the first filter, whose name says so (the mark): the qdisc goes with the
last filter of ours if it is so marked and nobody else uses it.

A device may instead have a qdisc called `ingress`, of somebody else: it has ingress filters only.
"""

from __future__ import annotations

import errno
import os
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import syscall, tc
from bpfleet.loader.links import Hook, Mechanism, Tcx, device_index, device_name, program_name, require_device
from bpfleet.loader.objects import PROGRAM_PREFIX
from bpfleet.loader.pins import Pins
from bpfleet.loader.requests import Message

PREFERENCE = 1
"""The kernel's lowest; a new filter comes before those that have the same."""
_MARK = "+clsact"

_Filters = Dict[str, List[tc.Filter]]


def device_hooks(pins: Pins, wrote: Callable[[], None], *, use_tcx: bool) -> Mechanism:
    """The mechanism for devices' ingress and egress. What hangs there in the other way is taken over."""
    from bpfleet.loader.links import supported

    clsact = Clsact(wrote)
    if not supported():
        return clsact
    tcx = Tcx(pins, wrote)
    return Instead(tcx, clsact, "as a clsact filter") if use_tcx else Instead(clsact, tcx, "by a tcx link")


class Clsact:
    """clsact filters. `wrote` is called once for each request that changes something."""

    hooks: Tuple[str, ...] = ("ingress", "egress")

    def __init__(self, wrote: Callable[[], None]) -> None:
        self._wrote = wrote

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read: wherever ours are, as they need no pin to be found."""
        found: Dict[Hook, str] = {}
        known: Dict[int, bool] = {}
        with tc.TrafficControl() as control:
            for index, kind in sorted(control.qdiscs().items()):
                device = device_name(index)
                for hook, filters in _filters(control, index, kind).items():
                    ours = _ours(filters, known)
                    if not ours or device is None:
                        continue
                    found[(device, hook)] = name(ours[0].program_id)
                    if len(ours) > 1:
                        found[(device, hook)] += f" ({len(ours)} times)"
                    elif filters[0] != ours[0]:
                        found[(device, hook)] += " (behind another filter)"
        return found

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """Replace the program of our filter, or make one. Raises HostFailed."""
        index = require_device(device)
        program = syscall.program_info(program_fd)
        known: Dict[int, bool] = {}
        with tc.TrafficControl() as control:
            kind = control.qdisc(index)
            filters = _filters(control, index, kind)
            _require_room(device, hook, filters)
            there = filters.get(hook, [])
            ours = _ours(there, known)
            first = there[0] if there and there[:1] == ours[:1] else None
            if first is None or first.program_id != program.id:
                marked = kind is None or any(_is_marked(one) for some in filters.values() for one in _ours(some, known))
                label = program.name + (_MARK if marked else "")
                handle = first.handle if first else 0
                put = tc.put_program(index, hook, PREFERENCE, handle, program_fd, label)
                try:
                    control.do(*([tc.new_clsact(index)] if kind is None else []), put)
                except OSError as error:
                    raise _not_attached(device, hook, error) from error
                self._wrote()
            for one in ours:
                if one != first:
                    self._remove(control, tc.delete_filter(index, hook, one))

    def detach(self, device: str, hook: str) -> None:
        """Take our filters away, and the qdisc if it was made for us and nobody else uses it."""
        index = device_index(device)
        if index is None:
            return
        known: Dict[int, bool] = {}
        with tc.TrafficControl() as control:
            kind = control.qdisc(index)
            filters = _filters(control, index, kind)
            ours = _ours(filters.get(hook, []), known)
            if not ours:
                return
            others = [one for some in filters.values() for one in some if one not in ours]
            messages = [tc.delete_filter(index, hook, one) for one in ours]
            if kind == tc.CLSACT and not others and any(_is_marked(one) for one in ours):
                messages.append(tc.delete_clsact(index))
            self._remove(control, *messages)

    def _remove(self, control: tc.TrafficControl, *messages: Message) -> None:
        for code in control.exchange(*messages)[1]:
            if code not in (0, errno.ENOENT, errno.ENODEV, errno.EINVAL):  # gone since we asked
                raise OSError(code, os.strerror(code), "rtnetlink")
        self._wrote()


class Instead:
    """Attaches in one way, and takes ours that was attached in another way off the hook only afterwards.

    In between both judge, which is the same as one: there is no gap.
    """

    def __init__(self, chosen: Mechanism, other: Mechanism, how: str) -> None:
        """`how`: of the other way, for people."""
        self.hooks = chosen.hooks
        self._chosen = chosen
        self._other = other
        self._how = how
        # Where the last reading found nothing in the other way. Asking a thousand new devices one by one costs more
        # than attaching to them.
        self._free: Set[Hook] = set()

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read. What is attached in the other way is something to be put right."""
        asked = list(hooks)
        found = self._chosen.read(asked, name)
        others = self._other.read(asked, name)
        found.update({hook: f"{text} ({self._how})" for hook, text in others.items()})
        self._free = set(asked).difference(others)
        return found

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """As Mechanism.attach."""
        self._chosen.attach(device, hook, program_fd)
        if (device, hook) not in self._free:
            self._other.detach(device, hook)

    def detach(self, device: str, hook: str) -> None:
        """As Mechanism.detach."""
        self._chosen.detach(device, hook)
        self._other.detach(device, hook)


def _filters(control: tc.TrafficControl, index: int, kind: Optional[str]) -> _Filters:
    """The filters at each hook that the device's qdisc offers; those that a missing clsact would offer are empty."""
    hooks = ("ingress",) if kind == tc.INGRESS else ("ingress", "egress")
    return {hook: control.filters(index, hook) if kind else [] for hook in hooks}


def _ours(filters: Iterable[tc.Filter], known: Dict[int, bool]) -> List[tc.Filter]:
    found = []
    for one in filters:
        if one.program_id and one.program_id not in known:
            known[one.program_id] = program_name(one.program_id).startswith(PROGRAM_PREFIX)
        if known.get(one.program_id):
            found.append(one)
    return found


def _is_marked(one: tc.Filter) -> bool:
    return one.name.endswith(_MARK)


def _require_room(device: str, hook: str, filters: _Filters) -> None:
    if hook not in filters:
        raise HostFailed(
            f"device {device} has a qdisc called ingress, which has no egress",
            remedy=f"Let whoever made it use clsact instead: tc qdisc show dev {device}.",
        )
    for one in filters[hook]:
        if one.preference == PREFERENCE and not one.takes_programs:
            raise HostFailed(
                f"somebody's {one.kind} filter has preference {PREFERENCE} at {device} {hook}, where ours must be",
                remedy=f"Give that filter a higher preference: tc filter show dev {device} {hook}.",
            )


def _not_attached(device: str, hook: str, error: OSError) -> HostFailed:
    remedy = f"See what else is attached there: tc filter show dev {device} {hook}."
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        remedy = "Use a kernel that has, or can load, sch_ingress and cls_bpf."
    return HostFailed(f"cannot attach to {device} {hook}: {error.strerror}", remedy=remedy)
