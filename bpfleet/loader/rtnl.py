"""Reading links, addresses, neighbours and routes over rtnetlink, with the standard library alone.

requests.py is for what is changed. Message layouts: linux/rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from bpfleet.errors import HostFailed

NAMESPACES = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, _NLMSG_DONE = 2, 3
_GETLINK, _GETADDR, _GETROUTE, _GETNEIGH = 18, 22, 26, 30
HEADER = struct.Struct("=IHHII")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_IFF_UP, _IFF_NOARP = 1, 0x80
NUD_PERMANENT = 0x80
_XDP_PROGRAM = {"xdp-native": 5, "xdp-generic": 6}  # IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID
MAIN_TABLE = 254

_libc = ctypes.CDLL(None, use_errno=True)


ETHERNET = 1


@dataclass(frozen=True)
class Link:
    """A network device. `peer` is the index of a veth's other end, in whichever namespace that is; `data` holds the
    attributes of its kind by number. `type`: its number of linux/if_arp.h.
    `xdp`: hook ("xdp-native", "xdp-generic") -> id of the program there. `alias`: a
    note that somebody left on it."""

    index: int
    name: str
    mtu: int
    mac: str
    up: bool
    noarp: bool
    kind: str
    peer: int
    data: Dict[int, bytes]
    xdp: Dict[str, int]
    alias: str = ""
    type: int = ETHERNET


@dataclass(frozen=True)
class Address:
    """An address of a device."""

    index: int
    address: str
    prefix: int
    scope: int


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour entry."""

    index: int
    address: str
    mac: str


@dataclass(frozen=True)
class RouteEntry:
    """A unicast route of the main table. `destination` in CIDR form, the default route with prefix length 0."""

    destination: str
    index: int
    gateway: Optional[str]
    source: Optional[str]
    protocol: int
    metric: int


@contextmanager
def inside(namespace: Optional[str]) -> Iterator[None]:
    """Be in a named network namespace with this thread for a while; None: stay. Raises HostFailed if there is none.

    Sockets made inside stay there.
    """
    if namespace is None:
        yield
        return
    with namespace_of(namespace) as target:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(target)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)


@contextmanager
def namespace_of(namespace: str) -> Iterator[int]:
    """A descriptor of a named network namespace. Raises HostFailed if there is none."""
    path = NAMESPACES / namespace
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HostFailed(
            f"network namespace {namespace} is not there",
            file=str(path),
            remedy=f"Create it (ip netns add {namespace}), or remove the endpoint that is attached to it.",
        ) from error
    try:
        yield target
    finally:
        os.close(target)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise HostFailed(f"cannot enter a network namespace: {os.strerror(code)}", remedy="Run as root.")


def exists(namespace: str) -> bool:
    """Whether /run/netns has a namespace of this name (not merely a stale file)."""
    try:
        with inside(namespace):
            return True
    except HostFailed:
        return False


class Reader:
    """Dumps of one network namespace: that which the thread is in when it is made, or a named one."""

    def __init__(self, namespace: Optional[str] = None) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def links(self) -> List[Link]:
        """All devices."""
        return [_link(body) for body in self._dump(_GETLINK, LINK.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Optional[Link]:
        """One device by name, or None; costs the same however many there are."""
        text = name.encode() + b"\0"
        body = LINK.pack(0, 0, 0, 0, 0) + _ATTRIBUTE.pack(4 + len(text), 3) + text
        try:
            return next((_link(answer) for answer in self._ask(_GETLINK, body, dump=False)), None)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses(self) -> List[Address]:
        """All addresses of both families."""
        return [_address(body) for body in self._dump(_GETADDR, ADDRESS.pack(0, 0, 0, 0, 0))]

    def neighbours(self) -> List[Neighbour]:
        """Permanent neighbour entries of both families."""
        found = []
        for body in self._dump(_GETNEIGH, NEIGHBOUR.pack(0, 0, 0, 0, 0)):
            family, index, state, _, _ = NEIGHBOUR.unpack_from(body)
            values = attributes(body, NEIGHBOUR.size)
            if state & NUD_PERMANENT and family in (socket.AF_INET, socket.AF_INET6) and 1 in values:
                found.append(Neighbour(index, socket.inet_ntop(family, values[1]), values.get(2, b"").hex(":")))
        return found

    def routes(self) -> List[RouteEntry]:
        """Unicast routes of the main table, of both families."""
        found = []
        for body in self._dump(_GETROUTE, ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, length, _, _, table, protocol, _, kind, _ = ROUTE.unpack_from(body)
            values = attributes(body, ROUTE.size)
            if 15 in values:
                table = int.from_bytes(values[15], "little")
            if kind == 1 and table == MAIN_TABLE and family in (socket.AF_INET, socket.AF_INET6):
                found.append(_route(family, length, protocol, values))
        return found

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Bodies of the answers. A dump that the kernel calls interrupted is asked for again, a few times."""
        for _ in range(5):
            try:
                return iter(list(self._ask(kind, body)))
            except InterruptedError:
                continue
        raise HostFailed("the network devices change faster than they can be read", remedy="Try again.")

    def _ask(self, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
        self._sequence += 1
        flags = NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
        header = HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at < len(data):
                length, answer, flags, sequence, _ = HEADER.unpack_from(data, at)
                if sequence == self._sequence:  # not what is left of a dump that was given up
                    if flags & 0x10:  # NLM_F_DUMP_INTR
                        raise InterruptedError
                    if answer == _NLMSG_DONE:
                        return
                    if answer == NLMSG_ERROR:
                        code = -struct.unpack_from("=i", data, at + HEADER.size)[0]
                        if code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                            return  # a host without IPv6
                        raise OSError(code, os.strerror(code), "rtnetlink")
                    yield data[at + HEADER.size : at + length]
                    if not dump:
                        return
                at += (length + 3) & ~3


def attributes(data: bytes, at: int) -> Dict[int, bytes]:
    """The attributes of a message from an offset on, by number."""
    found = {}
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _link(body: bytes) -> Link:
    _, link_type, index, flags, _ = LINK.unpack_from(body)
    values = attributes(body, LINK.size)
    info = attributes(values.get(18, b""), 0)
    xdp = attributes(values.get(43, b""), 0)
    return Link(
        index=index,
        name=values.get(3, b"").rstrip(b"\0").decode(),
        mtu=int.from_bytes(values.get(4, b""), "little"),
        mac=values.get(1, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        noarp=bool(flags & _IFF_NOARP),
        kind=info.get(1, b"").rstrip(b"\0").decode(),
        peer=int.from_bytes(values.get(5, b""), "little"),
        data=attributes(info.get(2, b""), 0),
        alias=values.get(20, b"").rstrip(b"\0").decode(errors="replace"),
        type=link_type,
        xdp={hook: int.from_bytes(xdp[kind], "little") for hook, kind in _XDP_PROGRAM.items() if kind in xdp},
    )


def _address(body: bytes) -> Address:
    family, prefix, _, scope, index = ADDRESS.unpack_from(body)
    values = attributes(body, ADDRESS.size)
    return Address(index, socket.inet_ntop(family, values.get(2) or values[1]), prefix, scope)


def _route(family: int, length: int, protocol: int, values: Dict[int, bytes]) -> RouteEntry:
    size = 4 if family == socket.AF_INET else 16

    def text(kind: int) -> Optional[str]:
        return socket.inet_ntop(family, values[kind]) if kind in values else None

    return RouteEntry(
        destination=f"{socket.inet_ntop(family, values.get(1, bytes(size)))}/{length}",
        index=int.from_bytes(values.get(4, b""), "little"),
        gateway=text(5),
        source=text(7),
        protocol=protocol,
        metric=int.from_bytes(values.get(6, b""), "little"),
    )


def family_of(address: str) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def split_cidr(cidr: str) -> Tuple[str, int]:
    """Address and prefix length; a bare address is a host of its own."""
    address, _, length = cidr.partition("/")
    return address, int(length) if length else (128 if ":" in address else 32)
