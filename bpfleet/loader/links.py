"""Programs at hooks, by links: asked of the hook itself, kept by pinned links, replaced in place.

The truth is what the kernel says sits at the hook; the pin only keeps the link alive. So a link of ours whose pin is
lost, or is under a name that its device no longer has, is adopted, and a pin whose device is gone is replaced. Programs
of others at the same hook are left alone.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Protocol, Set, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import syscall
from bpfleet.loader.objects import PROGRAM_PREFIX
from bpfleet.loader.pins import Pins, open_pin, unpin

Hook = Tuple[str, str]  # (device, "ingress" | "egress"), or (CGROUP_ROOT, a socket hook)


@dataclass(frozen=True)
class Occupant:
    """A program of ours at a hook; link id 0: attached without a link."""

    program_id: int
    link_id: int


class Mechanism(Protocol):
    """A way to have programs run at some hooks."""

    hooks: Tuple[str, ...]
    """The hooks it serves."""

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """What of ours sits at these hooks and at any other that we pinned; `name` names a program by its id."""

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """Have the program run at the hook, in place of whatever of ours is there."""

    def detach(self, device: str, hook: str) -> None:
        """Take whatever of ours is there away."""


class ByHook:
    """Hands each hook to the mechanism that serves it."""

    def __init__(self, mechanisms: Iterable[Mechanism]) -> None:
        self._by_hook = {hook: mechanism for mechanism in mechanisms for hook in mechanism.hooks}
        self.hooks = tuple(self._by_hook)

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read."""
        found: Dict[Hook, str] = {}
        asked = list(hooks)
        for mechanism in dict.fromkeys(self._by_hook.values()):
            found.update(mechanism.read([hook for hook in asked if hook[1] in mechanism.hooks], name))
        return found

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """As Mechanism.attach."""
        self._by_hook[hook].attach(device, hook, program_fd)

    def detach(self, device: str, hook: str) -> None:
        """As Mechanism.detach."""
        self._by_hook[hook].detach(device, hook)


class Tcx:
    """tcx links. `wrote` is called once for each system call that changes something."""

    hooks = tuple(syscall.ATTACH_TYPES)

    def __init__(self, pins: Pins, wrote: Callable[[], None]) -> None:
        self._pins = pins
        self._wrote = wrote
        # By link id where it is pinned, as of the last reading, with which every change begins. Looking through all
        # pins for each hook takes minutes with a thousand endpoints.
        self._places: Optional[Dict[int, Set[Hook]]] = None

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read. A name with an addition in brackets is something to be put right."""
        found: Dict[Hook, str] = {}
        self._places = {}
        pinned = [link for link in self._pins.list_links() if link[1] in self.hooks]
        ours: Dict[int, bool] = {}
        for device, hook in sorted({*hooks, *pinned}):
            index = device_index(device)
            occupants = self._ours(index, hook, ours) if index is not None else []
            link = self._pinned(device, hook) if (device, hook) in pinned else None
            if link is not None:
                self._places.setdefault(link.id, set()).add((device, hook))
            renamed = self._holder(link, hook, ours) if link is not None and link.ifindex != index else None
            if link is not None and renamed is not None:
                found[(renamed, hook)] = f"{name(link.program_id)} (pinned as {device})"
            elif link is not None and link.ifindex != index:
                found[(device, hook)] = f"{name(link.program_id)} (its device is gone)"
            elif link is not None and len(occupants) > 1:
                found[(device, hook)] = f"{name(link.program_id)} ({len(occupants)} times)"
            elif link is not None:
                found[(device, hook)] = name(link.program_id)
            elif occupants:
                found[(device, hook)] = f"{name(occupants[0].program_id)} (not pinned)"
        return found

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """Update our link at the hook, or make one, and pin it. Raises HostFailed, HostUnfit."""
        index = require_device(device)
        program = syscall.program_info(program_fd).id
        occupants = self._ours(index, hook, {})
        path = self._pins.link(device, hook)
        pinned = self._pinned(device, hook)
        keep = next((one for one in occupants if pinned is not None and one.link_id == pinned.id), None)
        if keep is None:
            keep = next((one for one in occupants if one.link_id), None)
            if unpin(path):
                self._wrote()
            link = syscall.link_by_id(keep.link_id) if keep else self._create(program_fd, index, hook, device)
            try:
                syscall.pin(link, str(path))
                self._wrote()
                if keep is not None and self._places is not None:
                    self._places.setdefault(keep.link_id, set()).add((device, hook))
                if keep is not None and keep.program_id != program:
                    syscall.link_update(link, program_fd)
                    self._wrote()
            finally:
                os.close(link)
        elif keep.program_id != program:
            link = syscall.link_by_id(keep.link_id)
            try:
                syscall.link_update(link, program_fd)
                self._wrote()
            finally:
                os.close(link)
        if keep is not None:
            self._unpin_others(keep.link_id, path)
        for one in occupants:
            if one != keep:
                self._evict(one, index, hook)

    def detach(self, device: str, hook: str) -> None:
        """Take ours off the hook, and unpin our link. In this order: a link that only loses its name ends later."""
        index = device_index(device)
        if index is not None:
            for one in self._ours(index, hook, {}):
                self._evict(one, index, hook)
                self._unpin_others(one.link_id, None)
        if unpin(self._pins.link(device, hook)):
            self._wrote()

    def _create(self, program_fd: int, index: int, hook: str, device: str) -> int:
        try:
            link = syscall.tcx_attach(program_fd, index, syscall.ATTACH_TYPES[hook])
        except OSError as error:
            raise HostFailed(
                f"cannot attach to {device} {hook}: {error.strerror}",
                remedy="See what else is attached there: bpftool net show.",
            ) from error
        self._wrote()
        return link

    def _evict(self, one: Occupant, index: int, hook: str) -> None:
        if evict(one, lambda fd: syscall.tcx_detach_program(fd, index, syscall.ATTACH_TYPES[hook])):
            self._wrote()

    def _ours(self, index: int, hook: str, known: Dict[int, bool]) -> List[Occupant]:
        try:
            there = syscall.tcx_query(index, syscall.ATTACH_TYPES[hook])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):  # no tcx, nothing attached, device gone
                return []
            raise
        found = []
        for program_id, link_id in there:
            if program_id not in known:
                known[program_id] = program_name(program_id).startswith(PROGRAM_PREFIX)
            if known[program_id]:
                found.append(Occupant(program_id, link_id))
        return found

    def _pinned(self, device: str, hook: str) -> Optional[syscall.LinkInfo]:
        return pinned_link(self._pins.link(device, hook))

    def _holder(self, link: syscall.LinkInfo, hook: str, known: Dict[int, bool]) -> Optional[str]:
        """Name of the device here at whose hook the link is; the index alone may be another namespace's."""
        name = device_name(link.ifindex)
        here = name is not None and any(one.link_id == link.id for one in self._ours(link.ifindex, hook, known))
        return name if here else None

    def _unpin_others(self, link_id: int, but: Optional[Path]) -> None:
        """Remove other pins of a link: of a device that was renamed since."""
        for other in self._pins.list_links() if self._places is None else self._places.get(link_id, ()):
            link, path = self._pinned(*other), self._pins.link(*other)
            if link is not None and link.id == link_id and path != but and unpin(path):
                self._wrote()


def supported() -> bool:
    """Whether this kernel has tcx: asked of the loopback device, which is always there."""
    try:
        syscall.tcx_query(1, syscall.TCX_INGRESS)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True


def program_name(program_id: int) -> str:
    """Name of a program, by its id; empty if it is gone."""
    try:
        fd = syscall.program_by_id(program_id)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return ""
        raise
    try:
        return syscall.program_info(fd).name
    finally:
        os.close(fd)


def pinned_link(path: Path) -> Optional[syscall.LinkInfo]:
    """The link that is pinned there, or None."""
    fd = open_pin(path)
    if fd is None:
        return None
    try:
        return syscall.link_info(fd)
    finally:
        os.close(fd)


def evict(one: Occupant, detach_program: Callable[[int], None]) -> bool:
    """Take a program of ours off its hook; `detach_program` does it by descriptor where no link holds it.

    False if it was gone since it was found: a link ends a moment after its last name, and everything with its device.
    """
    fd = -1
    try:
        if one.link_id:
            fd = syscall.link_by_id(one.link_id)
            syscall.link_detach(fd)
        else:
            fd = syscall.program_by_id(one.program_id)
            detach_program(fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def require_device(device: str) -> int:
    """A device's index. Raises HostFailed."""
    index = device_index(device)
    if index is None:
        raise HostFailed(f"device {device} is not there", remedy=f"Create {device}, or remove what is declared for it.")
    return index


def device_index(device: str) -> Optional[int]:
    """Index of a device, None if there is none."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return None


def device_name(index: int) -> Optional[str]:
    """Name of a device, None if there is none."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return None
