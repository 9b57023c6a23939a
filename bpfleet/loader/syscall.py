"""bpf(2) itself: the commands bpfleet needs, one function each, over ctypes structures.

libbpf loads objects (libbpf.py); everything that libbpf 1.1 has no name for, such as tcx links, or that is cheaper
without it, such as batches, is asked of the kernel here. Layouts are those of `union bpf_attr` in linux/bpf.h; the
kernel accepts a shorter attribute than its own and takes the rest as zero.

Every function raises OSError with the kernel's errno; callers turn that into the error tree, where they know what the
call was for. File descriptors are plain ints owned by the caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

from bpfleet.errors import HostUnfit

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

TCX_INGRESS = 46
TCX_EGRESS = 47
ATTACH_TYPES = {"ingress": TCX_INGRESS, "egress": TCX_EGRESS}

_BEFORE = 1 << 3  # BPF_F_BEFORE, with nothing named: before all

MAP_HASH, MAP_ARRAY, MAP_LRU_HASH, MAP_LPM_TRIE, MAP_HASH_OF_MAPS = 1, 2, 9, 11, 13
LINK_CGROUP, LINK_XDP, LINK_TCX = 3, 6, 11
XDP = 37  # attach type BPF_XDP

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PIN, _GET = 0, 1, 2, 3, 4, 6, 7
_DETACH, _PROG_FD, _MAP_FD, _INFO, _QUERY = 9, 13, 14, 15, 16
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 24, 26, 27
_LINK_CREATE, _LINK_UPDATE, _LINK_FD, _LINK_NEXT, _LINK_DETACH = 28, 29, 30, 31, 34

_NOEXIST = 1

_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64


class _MapCreate(ctypes.Structure):
    _fields_ = [
        ("map_type", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("map_flags", _u32),
        ("inner_map_fd", _u32),
        ("numa_node", _u32),
        ("map_name", ctypes.c_char * 16),
    ]


class _Element(ctypes.Structure):
    _fields_ = [("map_fd", _u32), ("key", _u64), ("value", _u64), ("flags", _u64)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("in_batch", _u64),
        ("out_batch", _u64),
        ("keys", _u64),
        ("values", _u64),
        ("count", _u32),
        ("map_fd", _u32),
        ("elem_flags", _u64),
        ("flags", _u64),
    ]


class _Object(ctypes.Structure):
    _fields_ = [("pathname", _u64), ("bpf_fd", _u32), ("file_flags", _u32)]


class _ById(ctypes.Structure):
    _fields_ = [("id", _u32), ("next_id", _u32), ("open_flags", _u32)]


class _Info(ctypes.Structure):
    _fields_ = [("bpf_fd", _u32), ("info_len", _u32), ("info", _u64)]


class _Detach(ctypes.Structure):
    _fields_ = [("target", _u32), ("attach_bpf_fd", _u32), ("attach_type", _u32), ("attach_flags", _u32)]


class _Query(ctypes.Structure):
    _fields_ = [
        ("target", _u32),
        ("attach_type", _u32),
        ("query_flags", _u32),
        ("attach_flags", _u32),
        ("prog_ids", _u64),
        ("count", _u32),
        ("pad", _u32),
        ("prog_attach_flags", _u64),
        ("link_ids", _u64),
        ("link_attach_flags", _u64),
        ("revision", _u64),
    ]


class _LinkCreate(ctypes.Structure):
    _fields_ = [
        ("prog_fd", _u32),
        ("target", _u32),
        ("attach_type", _u32),
        ("flags", _u32),
        ("relative_fd", _u32),
        ("pad", _u32),
        ("expected_revision", _u64),
    ]


class _LinkUpdate(ctypes.Structure):
    _fields_ = [("link_fd", _u32), ("new_prog_fd", _u32), ("flags", _u32), ("old_prog_fd", _u32)]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", _u32),
        ("id", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("map_flags", _u32),
        ("name", ctypes.c_char * 16),
    ]


class _ProgramInfo(ctypes.Structure):
    _fields_ = [
        ("type", _u32),
        ("id", _u32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_len", _u32),
        ("xlated_len", _u32),
        ("jited_insns", _u64),
        ("xlated_insns", _u64),
        ("load_time", _u64),
        ("created_by_uid", _u32),
        ("nr_map_ids", _u32),
        ("map_ids", _u64),
        ("name", ctypes.c_char * 16),
    ]


class _DeviceOfLink(ctypes.Structure):
    _fields_ = [("ifindex", _u32), ("attach_type", _u32)]


class _CgroupOfLink(ctypes.Structure):
    _fields_ = [("id", _u64), ("attach_type", _u32), ("pad", _u32)]


class _PlaceOfLink(ctypes.Union):
    _fields_ = [("device", _DeviceOfLink), ("cgroup", _CgroupOfLink)]


class _LinkInfo(ctypes.Structure):
    _fields_ = [("type", _u32), ("id", _u32), ("prog_id", _u32), ("pad", _u32), ("at", _PlaceOfLink)]


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map; sizes in bytes."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel says of a program. `tag`: a hash of its instructions, whatever its maps and constants are."""

    id: int
    name: str
    map_ids: Tuple[int, ...]
    tag: bytes


@dataclass(frozen=True)
class LinkInfo:
    """What the kernel says of a link. Where its device is gone, `ifindex` is 0; where its cgroup is, `cgroup`."""

    id: int
    type: int
    program_id: int
    ifindex: int
    attach_type: int
    cgroup: int = 0


_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, attr: ctypes.Structure) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise HostUnfit(
            f"bpf(2) has no known number on {platform.machine()}", remedy=f"Use one of {', '.join(sorted(_NUMBERS))}."
        )
    result: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), ctypes.byref(attr), ctypes.c_long(ctypes.sizeof(attr))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _address(buffer: object) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0  # type: ignore[arg-type]


def _bytes(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * max(len(data), 1)).from_buffer_copy(data or b"\0")


def pin(fd: int, path: str) -> None:
    """Give the object behind `fd` a name in bpffs; the name keeps it alive."""
    name = ctypes.create_string_buffer(path.encode())
    _call(_PIN, _Object(pathname=_address(name), bpf_fd=fd))


def get(path: str) -> int:
    """A descriptor of the object pinned at `path`."""
    name = ctypes.create_string_buffer(path.encode())
    return _call(_GET, _Object(pathname=_address(name)))


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    name: str = "",
    inner_fd: int = 0,
) -> int:
    """A new map. `inner_fd`: of a map of maps, a map that is like those it will hold."""
    return _call(
        _MAP_CREATE,
        _MapCreate(
            map_type=map_type,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            map_flags=flags,
            inner_map_fd=inner_fd,
            map_name=name.encode()[:15],
        ),
    )


def map_lookup(fd: int, key: bytes, value_size: int) -> Optional[bytes]:
    """The value under `key`, or None. `value_size` counts all CPUs' values for per-CPU maps."""
    name, value = _bytes(key), ctypes.create_string_buffer(value_size)
    try:
        _call(_LOOKUP, _Element(map_fd=fd, key=_address(name), value=_address(value)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Create or overwrite one element."""
    name, data = _bytes(key), _bytes(value)
    _call(_UPDATE, _Element(map_fd=fd, key=_address(name), value=_address(data)))


def map_delete(fd: int, key: bytes) -> bool:
    """Remove one element; False if it was not there."""
    name = _bytes(key)
    try:
        _call(_DELETE, _Element(map_fd=fd, key=_address(name)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: Optional[bytes], key_size: int) -> Optional[bytes]:
    """The key after `key` (None: the first), or None at the end."""
    name, following = (None if key is None else _bytes(key)), ctypes.create_string_buffer(key_size)
    try:
        _call(_NEXT_KEY, _Element(map_fd=fd, key=_address(name), value=_address(following)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def update_batch(fd: int, keys: bytes, values: bytes, count: int) -> int:
    """Create or overwrite `count` elements. Returns how many the kernel took before an error, or all."""
    names, data = _bytes(keys), _bytes(values)
    attr = _Batch(keys=_address(names), values=_address(data), count=count, map_fd=fd)
    _call(_UPDATE_BATCH, attr)
    return int(attr.count)


def map_add(fd: int, key: bytes, value: bytes) -> bool:
    """Create one element; False if it was there."""
    name, data = _bytes(key), _bytes(value)
    try:
        _call(_UPDATE, _Element(map_fd=fd, key=_address(name), value=_address(data), flags=_NOEXIST))
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def delete_batch(fd: int, keys: bytes, count: int) -> int:
    """Remove `count` elements. The kernel stops with ENOENT at the first that is not there."""
    names = _bytes(keys)
    attr = _Batch(keys=_address(names), count=count, map_fd=fd)
    _call(_DELETE_BATCH, attr)
    return int(attr.count)


def lookup_batch(fd: int, key_size: int, value_size: int, expected: int) -> Tuple[bytes, bytes, int]:
    """All elements of a map: keys and values, each joined, and their number. `expected` sizes the first buffer.

    A hash gives whole buckets and answers ENOSPC when one does not fit, so the buffer grows then.
    """
    capacity = max(expected, 64)
    token_size = max(key_size, 8)
    token: Optional[ctypes.Array[ctypes.c_char]] = None
    all_keys: List[bytes] = []
    all_values: List[bytes] = []
    total = 0
    while True:
        keys = ctypes.create_string_buffer(capacity * key_size)
        values = ctypes.create_string_buffer(capacity * value_size)
        following = ctypes.create_string_buffer(token_size)
        attr = _Batch(
            in_batch=_address(token),
            out_batch=_address(following),
            keys=_address(keys),
            values=_address(values),
            count=capacity,
            map_fd=fd,
        )
        done = False
        try:
            _call(_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                capacity *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            done = True
        count = int(attr.count)
        all_keys.append(ctypes.string_at(keys, count * key_size))
        all_values.append(ctypes.string_at(values, count * value_size))
        total += count
        if done:
            return b"".join(all_keys), b"".join(all_values), total
        token = following


def _info(fd: int, info: ctypes.Structure) -> None:
    _call(_INFO, _Info(bpf_fd=fd, info_len=ctypes.sizeof(info), info=_address(info)))


def map_info(fd: int) -> MapInfo:
    """The kernel's description of a map."""
    info = _MapInfo()
    _info(fd, info)
    return MapInfo(
        info.id, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags, info.name.decode()
    )


def program_info(fd: int) -> ProgramInfo:
    """The kernel's description of a program, the ids of its maps included."""
    info = _ProgramInfo()
    _info(fd, info)
    count = info.nr_map_ids
    ids = (_u32 * max(count, 1))()
    if count:
        info = _ProgramInfo(nr_map_ids=count, map_ids=_address(ids))
        _info(fd, info)
    return ProgramInfo(info.id, info.name.decode(), tuple(ids[: min(count, info.nr_map_ids)]), bytes(info.tag))


def link_info(fd: int) -> LinkInfo:
    """The kernel's description of a link."""
    info = _LinkInfo()
    _info(fd, info)
    if info.type == LINK_CGROUP:
        return LinkInfo(info.id, info.type, info.prog_id, 0, info.at.cgroup.attach_type, info.at.cgroup.id)
    return LinkInfo(info.id, info.type, info.prog_id, info.at.device.ifindex, info.at.device.attach_type)


def _by_id(command: int, number: int) -> int:
    return _call(command, _ById(id=number))


def program_by_id(number: int) -> int:
    """A descriptor of the program with this id."""
    return _by_id(_PROG_FD, number)


def map_by_id(number: int) -> int:
    """A descriptor of the map with this id."""
    return _by_id(_MAP_FD, number)


def link_by_id(number: int) -> int:
    """A descriptor of the link with this id."""
    return _by_id(_LINK_FD, number)


def links() -> Iterator[int]:
    """A descriptor of every link of the kernel, one after the other, for the caller to close."""
    number = 0
    while True:
        attr = _ById(id=number)
        try:
            _call(_LINK_NEXT, attr)
            number = int(attr.next_id)
            fd = link_by_id(number)
        except OSError as error:
            # EAGAIN: somebody is just making that one. ENOENT: it was the last one, or this one ended since.
            if error.errno not in (errno.ENOENT, errno.EAGAIN):
                raise
            if attr.next_id == 0:
                return
            continue
        yield fd


def cgroup_query(cgroup_fd: int, attach_type: int) -> List[int]:
    """Ids of the programs attached to a cgroup itself, in the order they run."""
    room = 64  # the kernel allows BPF_CGROUP_MAX_PROGS = 64 programs a hook
    programs = (_u32 * room)()
    attr = _Query(target=cgroup_fd, attach_type=attach_type, prog_ids=_address(programs), count=room)
    _call(_QUERY, attr)
    return list(programs[: attr.count])


def cgroup_attach(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """A new link of a program to a cgroup; programs of others there run as well."""
    return _call(_LINK_CREATE, _LinkCreate(prog_fd=program_fd, target=cgroup_fd, attach_type=attach_type))


def cgroup_detach_program(program_fd: int, cgroup_fd: int, attach_type: int) -> None:
    """Take away a program that was attached to a cgroup without a link."""
    _call(_DETACH, _Detach(target=cgroup_fd, attach_bpf_fd=program_fd, attach_type=attach_type))


def tcx_query(ifindex: int, attach_type: int) -> List[Tuple[int, int]]:
    """(program id, link id) of what sits at a device's tcx hook, in the order it runs; link id 0: no link."""
    room = 64  # the kernel allows BPF_MPROG_MAX = 64 programs a hook
    programs, links = (_u32 * room)(), (_u32 * room)()
    attr = _Query(
        target=ifindex, attach_type=attach_type, prog_ids=_address(programs), count=room, link_ids=_address(links)
    )
    _call(_QUERY, attr)
    return [(programs[n], links[n]) for n in range(attr.count)]


def tcx_attach(program_fd: int, ifindex: int, attach_type: int) -> int:
    """A new tcx link, first in the hook's order: behind another program, that one's "pass" would be the last word."""
    return link_create(program_fd, ifindex, attach_type, _BEFORE)


def link_create(program_fd: int, ifindex: int, attach_type: int, flags: int) -> int:
    """A new link of a program to a device; what `flags` mean depends on the attach type."""
    return _call(_LINK_CREATE, _LinkCreate(prog_fd=program_fd, target=ifindex, attach_type=attach_type, flags=flags))


def tcx_detach_program(program_fd: int, ifindex: int, attach_type: int) -> None:
    """Take away a program that was attached to tcx without a link."""
    _call(_DETACH, _Detach(target=ifindex, attach_bpf_fd=program_fd, attach_type=attach_type))


def link_update(link_fd: int, program_fd: int) -> None:
    """Put another program in place of the link's; no packet runs without one."""
    _call(_LINK_UPDATE, _LinkUpdate(link_fd=link_fd, new_prog_fd=program_fd))


def link_detach(link_fd: int) -> None:
    """Take the link off its hook, whoever else holds it."""
    _call(_LINK_DETACH, _ById(id=link_fd))
