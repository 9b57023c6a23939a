"""Programs at socket hooks of the host's root cgroup: asked of the cgroup itself, kept by pinned links.

As with devices (links.py), the truth is what the kernel says: a link of ours whose pin is lost is found by its cgroup,
hook and program, and adopted; programs of others at the same hook are left alone.

"The root" is what this host sees as that: its cgroup namespace's. cgroup2 lies at /sys/fs/cgroup, or beside the
controllers of version 1 at /sys/fs/cgroup/unified.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional

from bpfleet.errors import HostFailed, HostUnfit
from bpfleet.loader import syscall
from bpfleet.loader.links import Hook, Occupant, evict, pinned_link, program_name
from bpfleet.loader.objects import PROGRAM_PREFIX
from bpfleet.loader.pins import Pins, unpin
from bpfleet.model.state import CGROUP_ROOT

# enum bpf_attach_type of linux/bpf.h
ATTACH_TYPES: Dict[str, int] = {
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
    "getpeername4": 29,
    "getpeername6": 30,
}
NO_CGROUP = "the host has no cgroup2 hierarchy"
_USUAL = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_MAGIC = 0x63677270
_libc = ctypes.CDLL(None, use_errno=True)


def root() -> Optional[Path]:
    """Where the host's cgroup2 hierarchy is mounted, or None."""
    for path in _USUAL:
        if _is_cgroup2(path):
            return path
    for line in Path("/proc/self/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            path = Path(words[1].replace("\\040", " "))
            if _is_cgroup2(path):
                return path
    return None


def _is_cgroup2(path: Path) -> bool:
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type, a long where we run
    return _libc.statfs(os.fsencode(path), ctypes.byref(buffer)) == 0 and int(buffer[0]) & 0xFFFFFFFF == _MAGIC


class Cgroup:
    """Links to the root cgroup. `wrote` is called once for each system call that changes something."""

    hooks = tuple(ATTACH_TYPES)

    def __init__(self, pins: Pins, wrote: Callable[[], None]) -> None:
        self._pins = pins
        self._wrote = wrote

    def read(self, hooks: Iterable[Hook], name: Callable[[int], str]) -> Dict[Hook, str]:
        """As Mechanism.read. A name with an addition in brackets is something to be put right.

        Every hook is looked at, wanted or not: what of ours sits there must go when no service is left.
        """
        found: Dict[Hook, str] = {}
        pinned = {hook for place, hook in self._pins.list_links() if place == CGROUP_ROOT}
        with _opened() as place:
            for hook in self.hooks:
                occupants = self._ours(place, hook) if place is not None else []
                link = self._pinned(hook) if hook in pinned else None
                here = [one for one in occupants if link is not None and one.link_id == link.id]
                if link is not None and not here:
                    text = f"{name(link.program_id)} (its cgroup is gone)"
                elif len(occupants) > 1:
                    text = f"{name((here or occupants)[0].program_id)} ({len(occupants)} times)"
                elif here:
                    text = name(here[0].program_id)
                elif occupants:
                    text = f"{name(occupants[0].program_id)} (not pinned)"
                else:
                    continue
                found[(CGROUP_ROOT, hook)] = text
        return found

    def attach(self, device: str, hook: str, program_fd: int) -> None:
        """Update our link at the hook, or make one, and pin it. Raises HostFailed, HostUnfit."""
        program = syscall.program_info(program_fd).id
        path = self._pins.link(device, hook)
        with _opened() as place:
            if place is None:
                raise HostUnfit(NO_CGROUP, remedy="Mount it: mount -t cgroup2 none /sys/fs/cgroup")
            occupants = self._ours(place, hook)
            pinned = self._pinned(hook)
            keep = next((one for one in occupants if pinned is not None and one.link_id == pinned.id), None)
            is_pinned = keep is not None
            keep = keep or next((one for one in occupants if one.link_id), None)
            link = syscall.link_by_id(keep.link_id) if keep else self._create(program_fd, place, hook)
            try:
                if not is_pinned:
                    if unpin(path):
                        self._wrote()
                    syscall.pin(link, str(path))
                    self._wrote()
                if keep is not None and keep.program_id != program:
                    syscall.link_update(link, program_fd)
                    self._wrote()
            finally:
                os.close(link)
            self._evict([one for one in occupants if one != keep], place, hook)

    def detach(self, device: str, hook: str) -> None:
        """Take ours off the hook, and unpin our link. In this order: a link that only loses its name ends later."""
        with _opened() as place:
            if place is not None:
                self._evict(self._ours(place, hook), place, hook)
        if unpin(self._pins.link(device, hook)):
            self._wrote()

    def _create(self, program_fd: int, place: int, hook: str) -> int:
        try:
            link = syscall.cgroup_attach(program_fd, place, ATTACH_TYPES[hook])
        except OSError as error:
            if error.errno == errno.EPERM:
                raise HostFailed(
                    f"a program of others at {hook} of the root cgroup was attached so that no second one may be",
                    remedy="See which: bpftool cgroup show /sys/fs/cgroup. It must be attached by a link, or with "
                    "BPF_F_ALLOW_MULTI.",
                ) from error
            raise HostFailed(
                f"cannot attach to {hook} of the root cgroup: {error.strerror}",
                remedy="See what else is attached there: bpftool cgroup show /sys/fs/cgroup.",
            ) from error
        self._wrote()
        return link

    def _evict(self, ours: Iterable[Occupant], place: int, hook: str) -> None:
        for one in ours:
            if evict(one, lambda fd: syscall.cgroup_detach_program(fd, place, ATTACH_TYPES[hook])):
                self._wrote()

    def _pinned(self, hook: str) -> Optional[syscall.LinkInfo]:
        return pinned_link(self._pins.link(CGROUP_ROOT, hook))

    @staticmethod
    def _ours(place: int, hook: str) -> List[Occupant]:
        """Our programs at a hook. The cgroup names programs; which link holds one, only the links know."""
        attach_type = ATTACH_TYPES[hook]
        there = syscall.cgroup_query(place, attach_type)
        programs = [number for number in there if program_name(number).startswith(PROGRAM_PREFIX)]
        if not programs:
            return []
        links = _links_at(os.fstat(place).st_ino, attach_type)
        found = []
        for number in programs:
            held = [link for link in links if link.program_id == number]
            if held:
                links.remove(held[0])
            found.append(Occupant(number, held[0].id if held else 0))
        return found


def _links_at(cgroup: int, attach_type: int) -> List[syscall.LinkInfo]:
    found = []
    for fd in syscall.links():
        try:
            link = syscall.link_info(fd)
        finally:
            os.close(fd)
        if (link.type, link.cgroup, link.attach_type) == (syscall.LINK_CGROUP, cgroup, attach_type):
            found.append(link)
    return found


@contextmanager
def _opened() -> Iterator[Optional[int]]:
    """A descriptor of the root cgroup, or None."""
    path = root()
    if path is None:
        yield None
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
