"""Qdiscs and filters of traffic control over rtnetlink: what clsact.py needs of them.

Message layouts: linux/rtnetlink.h (tcmsg), linux/pkt_cls.h. The classifier `bpf` with "direct action" runs a program
and takes its answer for the verdict; "unspecified" goes on to the next filter.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Dict, List, Optional

from bpfleet.loader import rtnl
from bpfleet.loader.requests import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Requests,
    attribute,
    check,
)

CLSACT, INGRESS = "clsact", "ingress"

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWFILTER, _DELFILTER, _GETFILTER = 44, 45, 46
_MESSAGE = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_HANDLE, _QDISC_PARENT = 0xFFFF0000, 0xFFFFFFF1
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ALL_PROTOCOLS = socket.htons(0x0003)  # ETH_P_ALL


@dataclass(frozen=True)
class Filter:
    """A filter at a device's hook. `preference`: the lower, the earlier. `program_id`: 0 for what is no bpf filter."""

    kind: str
    preference: int
    protocol: int
    handle: int
    name: str
    program_id: int

    @property
    def takes_programs(self) -> bool:
        """Whether other programs may be put at its preference: the kernel wants one kind and protocol there."""
        return self.kind == "bpf" and self.protocol == _ALL_PROTOCOLS


class TrafficControl(Requests):
    """Traffic control of the network namespace that the thread is in."""

    def __enter__(self) -> TrafficControl:
        return self

    def qdiscs(self) -> Dict[int, str]:
        """Device index -> "clsact" or "ingress", of devices that have either."""
        found = {}
        for body in self._dump(_GETQDISC, _MESSAGE.pack(0, 0, 0, 0, 0)):
            kind = _text(rtnl.attributes(body, _MESSAGE.size).get(_KIND))
            if kind in (CLSACT, INGRESS):
                found[_MESSAGE.unpack_from(body)[1]] = kind
        return found

    def qdisc(self, index: int) -> Optional[str]:
        """As `qdiscs`, of one device, which may be gone; costs the same however many there are."""
        body = _MESSAGE.pack(0, index, _HANDLE, _QDISC_PARENT, 0)
        bodies, (code,) = self.exchange(Message(_GETQDISC, NLM_F_ECHO, body))
        if code in (errno.ENOENT, errno.EINVAL, errno.ENODEV):  # never had one; had one; is gone
            return None
        check(code)
        return next((_text(rtnl.attributes(body, _MESSAGE.size).get(_KIND)) for body in bodies), None)

    def filters(self, index: int, hook: str) -> List[Filter]:
        """The filters at a hook, in the order in which they run."""
        found = []
        for body in self._dump(_GETFILTER, _MESSAGE.pack(0, index, 0, _PARENTS[hook], 0)):
            values = rtnl.attributes(body, _MESSAGE.size)
            _, _, handle, _, info = _MESSAGE.unpack_from(body)
            chain = int.from_bytes(values.get(_CHAIN, b""), "little")
            if not handle or chain:  # the head of a preference; a chain that only others lead to
                continue
            options = rtnl.attributes(values.get(_OPTIONS, b""), 0)
            kind = _text(values.get(_KIND))
            program = int.from_bytes(options.get(_BPF_ID, b""), "little") if kind == "bpf" else 0
            name = _text(options.get(_BPF_NAME)) if kind == "bpf" else ""
            found.append(Filter(kind, info >> 16, info & 0xFFFF, handle, name, program))
        return found


def new_clsact(index: int) -> Message:
    """Give a device a clsact qdisc: the place for filters at its ingress and egress. It holds up no packet."""
    body = _MESSAGE.pack(0, index, _HANDLE, _QDISC_PARENT, 0) + attribute(_KIND, CLSACT.encode() + b"\0")
    return Message(_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_clsact(index: int) -> Message:
    """Take a device's clsact qdisc away, and with it all filters."""
    return Message(_DELQDISC, 0, _MESSAGE.pack(0, index, _HANDLE, _QDISC_PARENT, 0))


def put_program(index: int, hook: str, preference: int, handle: int, program_fd: int, name: str) -> Message:
    """Replace the program of the filter with this handle; 0: a new filter, before all others of its preference."""
    options = attribute(_BPF_FD, struct.pack("=I", program_fd)) + attribute(_BPF_NAME, name.encode() + b"\0")
    options += attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    body = _MESSAGE.pack(0, index, handle, _PARENTS[hook], preference << 16 | _ALL_PROTOCOLS)
    body += attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
    return Message(_NEWFILTER, NLM_F_CREATE | (NLM_F_REPLACE if handle else NLM_F_EXCL), body)


def delete_filter(index: int, hook: str, one: Filter) -> Message:
    """Take one filter away."""
    body = _MESSAGE.pack(0, index, one.handle, _PARENTS[hook], one.preference << 16 | one.protocol)
    return Message(_DELFILTER, 0, body + attribute(_KIND, one.kind.encode() + b"\0"))


def _text(value: Optional[bytes]) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
