"""Programs at XDP: one for each device, by a pinned link whose program is replaced in place.

XDP runs in the driver ("native") or right behind it ("generic"); the kernel takes one of the two at a time, and one
program. So a device that somebody else's program has is named, and a change of the mode leaves it without for a moment.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import rtnl, syscall
from bpfleet.loader.links import Hook, device_index, pinned_link, program_name, require_device
from bpfleet.loader.objects import PROGRAM_PREFIX
from bpfleet.loader.pins import Pins, open_pin, unpin

_FLAGS = {"xdp-native": 1 << 2, "xdp-generic": 1 << 1}  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
_TRIES, _PAUSE_SECONDS = 100, 0.01
"""A link whose last holder let go of it, such as one who lists links, leaves its device a moment later."""
_NO_DRIVER = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE)


class Xdp:
    """XDP links. `wrote` is called once for each system call that changes something."""

    hooks: Tuple[str, ...] = tuple(_FLAGS)

    def __init__(self, pins: Pins, wrote: Callable[[], None]) -> None:
        self._pins = pins
        self._wrote = wrote

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read."""
        found: Dict[Hook, str] = {}
        pinned = [link for link in self._pins.list_links() if link[1] in self.hooks]
        for device, hook in sorted({*hooks, *pinned}):
            index = device_index(device)
            there = _attached(device).get(hook, 0)
            link = self._pinned(device, hook)
            if link is not None and (link.ifindex != index or link.program_id != there):
                found[(device, hook)] = f"{name(link.program_id)} (its device is gone)"
            elif link is not None:
                found[(device, hook)] = name(there)
            elif there and program_name(there).startswith(PROGRAM_PREFIX):
                found[(device, hook)] = f"{name(there)} (not pinned)"
        return found

    def obstacles(self, hooks: Iterable[Hook]) -> Iterator[HostFailed]:
        """What somebody else has where we want to be: known before anything is changed, named as `attach` would."""
        for device, hook in sorted(hooks):
            if hook in self.hooks:
                others = _others(device)
                if others:
                    yield _occupied(device, others)

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """Update our link, or make one and pin it; ours in the other mode goes first. Raises HostFailed."""
        index = require_device(device)
        program, path = syscall.program_info(program_fd).id, self._pins.link(device, hook)
        there = _attached(device).get(hook, 0)
        pinned = self._pinned(device, hook)
        if pinned is not None and pinned.ifindex == index:
            link = open_pin(path)
        else:
            if unpin(path):
                self._wrote()
            link, there = self._adopt_or_create(program_fd, index, device, hook)
            try:
                syscall.pin(link, str(path))
                self._wrote()
            except OSError:
                os.close(link)
                raise
        assert link is not None
        try:
            if there != program:
                syscall.link_update(link, program_fd)
                self._wrote()
        finally:
            os.close(link)

    def detach(self, device: str, hook: str) -> None:
        """Take ours off the device, and unpin its link."""
        index = device_index(device)
        there = _attached(device).get(hook, 0)
        link = _link_at(index, there) if index is not None and there else None
        if link is not None:
            try:
                syscall.link_detach(link)
                self._wrote()
            finally:
                os.close(link)
        if unpin(self._pins.link(device, hook)):
            self._wrote()

    def _adopt_or_create(self, program_fd: int, index: int, device: str, hook: str) -> Tuple[int, int]:
        """A link at the hook, and the id of the program that it runs."""
        for tries_left in reversed(range(_TRIES)):
            there = _attached(device).get(hook, 0)
            link = _link_at(index, there) if there else None
            if link is not None:
                return link, there
            for other in self.hooks:
                if other != hook:
                    self.detach(device, other)
            try:
                link = syscall.link_create(program_fd, index, syscall.XDP, _FLAGS[hook])
            except OSError as error:
                if error.errno != errno.EBUSY or not tries_left or _others(device):
                    raise _not_attached(device, hook, error) from error
                time.sleep(_PAUSE_SECONDS)
                continue
            self._wrote()
            return link, syscall.program_info(program_fd).id
        raise AssertionError("the last try returns or raises")

    def _pinned(self, device: str, hook: str) -> Optional[syscall.LinkInfo]:
        return pinned_link(self._pins.link(device, hook))


def _attached(device: str) -> Dict[str, int]:
    """Hook -> id of the program that a device runs there."""
    with rtnl.Reader() as reader:
        link = reader.link(device)
    return dict(link.xdp) if link is not None else {}


def _link_at(index: int, program_id: int) -> Optional[int]:
    """A descriptor of our XDP link that runs this program at a device, or None. Its pin may be lost or elsewhere."""
    if not program_name(program_id).startswith(PROGRAM_PREFIX):
        return None
    for fd in syscall.links():
        info = syscall.link_info(fd)
        if (info.type, info.ifindex, info.program_id) == (syscall.LINK_XDP, index, program_id):
            return fd
        os.close(fd)
    return None


def _others(device: str) -> List[str]:
    """Names of the programs at a device that are not ours; the kernel lets nobody else in beside them."""
    names = (program_name(number) or f"program {number}" for number in _attached(device).values())
    return sorted(name for name in names if not name.startswith(PROGRAM_PREFIX))


def _occupied(device: str, others: List[str]) -> HostFailed:
    return HostFailed(
        f"device {device} runs an XDP program of somebody else: {', '.join(others)}",
        field=f"devices {device} xdp",
        remedy=f"Remove it (ip link set dev {device} xdp off), or set xdp: off for this device; tc blocks there then.",
        details={"device": device, "programs": others},
    )


def _not_attached(device: str, hook: str, error: OSError) -> HostFailed:
    mode = hook.partition("-")[2]
    what, remedy = (
        f"cannot attach XDP ({mode}) to {device}: {error.strerror}",
        "See what is attached: bpftool net show.",
    )
    others = _others(device)
    if others:
        return _occupied(device, others)
    if mode == "native" and error.errno in _NO_DRIVER:
        what = f"the driver of {device} cannot run XDP natively: {error.strerror}"
        remedy = f"Set xdp: generic for {device} (or lower its MTU, if the driver is one that wants that)."
    elif error.errno in (errno.ENODEV, errno.ENXIO):
        what, remedy = f"device {device} is not there", f"Create {device}, or remove what is declared for it."
    return HostFailed(what, field=f"devices {device} xdp", remedy=remedy, details={"errno": error.errno})
