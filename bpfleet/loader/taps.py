"""Taps: made persistent, so that they are there, and judged, before the process that opens them.

A tap is gone with the process that made it until it is made persistent: by then it has its owner and our mark. It is
down, and refuses what is written to it, until its programs are attached.
Source: linux/if_tun.h, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import struct
from contextlib import contextmanager
from typing import Iterator, List, Optional

from bpfleet.errors import HostFailed
from bpfleet.loader import requests
from bpfleet.loader.requests import Requests
from bpfleet.loader.rtnl import Link
from bpfleet.model.state import Tap

MARK = "made by bpfleet"
"""The alias of a tap of ours: its name is the user's."""
KIND = "tun"

_CLONE = "/dev/net/tun"
_SETIFF, _SETPERSIST, _SETOWNER, _SETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_TAP, _MULTI_QUEUE, _NO_PI, _VNET_HDR, _EXCLUSIVE = 0x0002, 0x0100, 0x1000, 0x4000, 0x8000
_OWNER_OF, _GROUP_OF, _TYPE, _HAS_VNET_HDR, _PERSISTENT, _QUEUES = 1, 2, 3, 5, 6, 7  # IFLA_TUN_*
_NOBODY = 0xFFFFFFFF


def is_ours(link: Link) -> bool:
    """Whether a device is a tap that bpfleet made."""
    return link.kind == KIND and link.alias == MARK


def differences(link: Link, wanted: Tap, lacks: List[str]) -> bool:
    """Add to `lacks` what is wrong with a tap of ours; True if it must be made anew."""
    rebuild = False
    if link.data.get(_TYPE) != bytes([_TAP]):
        rebuild = True
        lacks.append("is no tap")
    if bool(_flag(link, _QUEUES)) != wanted.multi_queue:
        rebuild = True
        lacks.append(f"multi_queue {not wanted.multi_queue}")
    if not _flag(link, _PERSISTENT):
        lacks.append("not persistent")
    for name, have, want in (
        ("owner", _number(link, _OWNER_OF), _user(wanted, strict=False)),
        ("group", _number(link, _GROUP_OF), _group(wanted, strict=False)),
    ):
        if have != want:
            rebuild = rebuild or want is None  # which cannot be said of a tap that has one
            lacks.append(f"{name} {'nobody' if have is None else have}")
    return rebuild


def create(host: Requests, tap: Tap) -> int:
    """Make the tap, down; how many changes that were. Raises HostFailed, OSError."""
    user, group = _user(tap), _group(tap)
    with _opened(tap, _EXCLUSIVE) as fd:
        _belong(fd, user, group)
        link = host.link(tap.name)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        changes = host.do(requests.set_alias(link.index, MARK))
        fcntl.ioctl(fd, _SETPERSIST, 1)
    return changes + 2


def adjust(tap: Tap, link: Link) -> int:
    """Put owner, group and persistence right; how many changes that were. Raises HostFailed, OSError."""
    if not is_ours(link):
        raise _taken(tap)
    lacks: List[str] = []
    differences(link, tap, lacks)
    if not lacks:
        return 0
    # A process that has it open has said whether its packets carry a virtio header, which opening says for all.
    with _opened(tap, _VNET_HDR if _flag(link, _HAS_VNET_HDR) else 0) as fd:
        _belong(fd, _user(tap), _group(tap))
        fcntl.ioctl(fd, _SETPERSIST, 1)
    return 2


@contextmanager
def _opened(tap: Tap, flags: int) -> Iterator[int]:
    try:
        fd = os.open(_CLONE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostFailed(
            f"cannot open {_CLONE}: {error.strerror}", file=_CLONE, remedy="Load the kernel's module tun: modprobe tun."
        ) from error
    try:
        kind = _TAP | _NO_PI | flags | (_MULTI_QUEUE if tap.multi_queue else 0)
        try:
            fcntl.ioctl(fd, _SETIFF, struct.pack("16sH22x", tap.name.encode(), kind))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if flags & _EXCLUSIVE:
                raise _taken(tap) from error
            raise HostFailed(
                f"owner and group of tap {tap.name} cannot be changed while a process has it open",
                remedy="Stop that process (the virtual machine) and apply again.",
            ) from error
        yield fd
    finally:
        os.close(fd)


def _taken(tap: Tap) -> HostFailed:
    return HostFailed(
        f"cannot make tap {tap.name}: the host has a device of that name already",
        remedy="Remove it, choose another name, or attach the endpoint to it by interface.",
    )


def _belong(fd: int, user: Optional[int], group: Optional[int]) -> None:
    for request, number in ((_SETOWNER, user), (_SETGROUP, group)):
        if number is not None:
            fcntl.ioctl(fd, request, number)


def _flag(link: Link, kind: int) -> bool:
    return link.data.get(kind, b"\0") != b"\0"


def _number(link: Link, kind: int) -> Optional[int]:
    number = int.from_bytes(link.data.get(kind, b"\xff\xff\xff\xff"), "little")
    return None if number == _NOBODY else number


def _user(tap: Tap, *, strict: bool = True) -> Optional[int]:
    """The owner's number. One that has neither owner nor group is root's: the kernel would let anybody open it."""
    if not tap.owner:
        return None if tap.group else 0
    if tap.owner.isdigit():
        return int(tap.owner)
    try:
        return pwd.getpwnam(tap.owner).pw_uid
    except KeyError:
        return _unknown(tap, "owner", tap.owner, "user", strict=strict)


def _group(tap: Tap, *, strict: bool = True) -> Optional[int]:
    if not tap.group or tap.group.isdigit():
        return int(tap.group) if tap.group else None
    try:
        return grp.getgrnam(tap.group).gr_gid
    except KeyError:
        return _unknown(tap, "group", tap.group, "group", strict=strict)


def _unknown(tap: Tap, field: str, name: str, what: str, *, strict: bool) -> int:
    if not strict:
        return -1  # differs from whatever is there
    raise HostFailed(
        f"the host has no {what} {name}, who shall open tap {tap.name}",
        field=f"attach.{field}",
        remedy=f"Create the {what}, or give a number.",
    )
