"""Changing things over rtnetlink: many requests in one send, with the standard library alone.

A restore after a reboot makes each endpoint's veth anew, a dozen requests apiece. Sent one by one, each by a socket of
its own, they cost more than the kernel's work. Message layouts: linux/rtnetlink.h, linux/if_link.h, linux/veth.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Dict, List, NamedTuple, Optional, Tuple

from bpfleet.loader import rtnl
from bpfleet.loader.generated.layouts import ENUMS

NLM_F_ACK, NLM_F_ECHO, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x4, 0x8, 0x100, 0x200, 0x400

_NEWLINK, _DELLINK, _SETLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH = 16, 17, 19, 20, 21, 24, 25, 28
_ADDRESS_OF_LINK, _NAME, _MTU, _INFO, _ALIAS, _AF_SPEC, _NETNS_FD = 1, 3, 4, 18, 20, 26, 28  # IFLA_*
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_VXLAN_LEARNING, VXLAN_SOURCE_PORTS, VXLAN_PORT, VXLAN_COLLECT_METADATA = 7, 10, 15, 25
_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1
_LOCAL, _ADDRESS, _ADDRESS_FLAGS = 2, 1, 8  # IFA_*
_NO_DAD = 0x02
_TO, _MAC = 1, 2  # NDA_*
_ROUTE_TO, _OUTPUT, _GATEWAY, _PRIORITY, _PREFERRED = 1, 4, 5, 6, 7  # RTA_*
_ONLINK, _STATIC, _UNIVERSE, _UNICAST, _LINK_SCOPE = 4, 4, 0, 1, 253
_UP, _NOARP = 0x1, 0x80  # IFF_*

TUNNEL_SOURCES = struct.pack("!HH", ENUMS["tunnel_source"]["lowest"], ENUMS["tunnel_source"]["highest"])
"""The UDP ports that the tunnel device sends from, as its attribute has them (struct ifla_vxlan_port_range)."""


class Message(NamedTuple):
    """One request of rtnetlink."""

    kind: int
    flags: int
    body: bytes


class Requests(rtnl.Reader):
    """Reads and changes what is in the network namespace that the thread is in when this is made."""

    def __enter__(self) -> Requests:
        return self

    def exchange(self, *messages: Message) -> Tuple[List[bytes], List[int]]:
        """Send requests at once: the kernel does one after the other even if this process dies meanwhile.

        Returns the bodies of what it answered, and for each request its errno, or 0 when it is done.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        data = b""
        for number, one in enumerate(messages, first):
            flags = rtnl.NLM_F_REQUEST | NLM_F_ACK | one.flags
            whole = rtnl.HEADER.pack(rtnl.HEADER.size + len(one.body), one.kind, flags, number, 0) + one.body
            data += whole + bytes(-len(whole) % 4)
        self._socket.send(data)
        bodies: List[bytes] = []
        codes: Dict[int, int] = {}
        while len(codes) < len(messages):
            answers = self._socket.recv(1 << 18)
            at = 0
            while at < len(answers):
                length, kind, _, sequence, _ = rtnl.HEADER.unpack_from(answers, at)
                if kind == rtnl.NLMSG_ERROR:
                    codes[sequence] = -struct.unpack_from("=i", answers, at + rtnl.HEADER.size)[0]
                elif sequence >= first:
                    bodies.append(answers[at + rtnl.HEADER.size : at + length])
                at += (length + 3) & ~3
        return bodies, [codes[number] for number in sorted(codes)]

    def do(self, *messages: Message) -> int:
        """As `exchange`; raises OSError for the first that failed. One that makes what is there already is done.

        Returns how many requests that were.
        """
        if messages:
            for code in self.exchange(*messages)[1]:
                if code != errno.EEXIST:
                    check(code)
        return len(messages)


def check(code: int) -> None:
    """Raise OSError for an errno that is not 0."""
    if code:
        raise OSError(code, os.strerror(code), "rtnetlink")


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


# -- links -------------------------------------------------------------------------------------------------------------


def new_veth(name: str, mac: str, mtu: int, peer_name: str, peer_mac: str, peer_namespace: int) -> Message:
    """A pair, both ends down: `name` here, its peer in the namespace that the descriptor `peer_namespace` is of."""
    there = _link() + _named(peer_name, peer_mac, mtu) + attribute(_NETNS_FD, struct.pack("=I", peer_namespace))
    info = attribute(_INFO_KIND, b"veth\0") + attribute(_INFO_DATA, attribute(_VETH_PEER, there))
    return Message(_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _link() + _named(name, mac, mtu) + attribute(_INFO, info))


def new_vxlan(name: str, mac: str, mtu: int, port: int) -> Message:
    """A tunnel device, down, that is told with each packet where it goes, and tells where it came from."""
    data = attribute(_VXLAN_LEARNING, b"\0") + attribute(VXLAN_PORT, port.to_bytes(2, "big"))
    data += attribute(VXLAN_SOURCE_PORTS, TUNNEL_SOURCES) + attribute(VXLAN_COLLECT_METADATA, b"\1")
    info = attribute(_INFO_KIND, b"vxlan\0") + attribute(_INFO_DATA, data)
    return Message(_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _link() + _named(name, mac, mtu) + attribute(_INFO, info))


def delete_link(index: int) -> Message:
    """Remove a device; a veth takes its other end along."""
    return Message(_DELLINK, 0, _link(index))


def no_link_local(name: str) -> Message:
    """Keep IPv6 from making itself an address on a device, whose chatter no endpoint may send."""
    mode = attribute(_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    spec = attribute(_AF_SPEC, attribute(socket.AF_INET6, mode))
    return Message(_SETLINK, 0, _link() + attribute(_NAME, name.encode() + b"\0") + spec)


def set_up(index: int, up: bool) -> Message:
    """Let a device carry packets, or stop it."""
    return Message(_SETLINK, 0, _link(index, _UP if up else 0, _UP))


def set_alias(index: int, text: str) -> Message:
    """Note something on a device."""
    return Message(_SETLINK, 0, _link(index) + attribute(_ALIAS, text.encode()))


def set_noarp(index: int) -> Message:
    """Have a device resolve no neighbours."""
    return Message(_SETLINK, 0, _link(index, _NOARP, _NOARP))


def set_mac(index: int, mac: str) -> Message:
    """Give a device a MAC address."""
    return Message(_SETLINK, 0, _link(index) + attribute(_ADDRESS_OF_LINK, _mac(mac)))


def set_mtu(index: int, mtu: int) -> Message:
    """Give a device an MTU."""
    return Message(_SETLINK, 0, _link(index) + attribute(_MTU, struct.pack("=I", mtu)))


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return rtnl.LINK.pack(0, 0, index, flags, change)


def _named(name: str, mac: str, mtu: int) -> bytes:
    text, size = attribute(_NAME, name.encode() + b"\0"), attribute(_MTU, struct.pack("=I", mtu))
    return text + attribute(_ADDRESS_OF_LINK, _mac(mac)) + size


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# -- addresses, neighbours, routes -------------------------------------------------------------------------------------


def add_address(index: int, address: str) -> Message:
    """Give a device an address of full length, usable at once."""
    return Message(_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(index, address, None))


def add_gateway(index: int, address: str) -> Message:
    """Have the host answer to an address on one device, and never send from it of its own accord elsewhere."""
    return Message(_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(index, address, None, _LINK_SCOPE))


def delete_address(index: int, address: str, prefix: int) -> Message:
    """Take an address from a device."""
    return Message(_DELADDR, 0, _address(index, address, prefix))


def _address(index: int, address: str, prefix: Optional[int], scope: int = _UNIVERSE) -> bytes:
    family, packed = _packed(address)
    body = rtnl.ADDRESS.pack(family, 8 * len(packed) if prefix is None else prefix, 0, scope, index)
    body += attribute(_LOCAL, packed) + attribute(_ADDRESS, packed)
    if family == socket.AF_INET6:
        body += attribute(_ADDRESS_FLAGS, struct.pack("=I", _NO_DAD))
    return body


def put_neighbour(index: int, address: str, mac: str) -> Message:
    """A neighbour that is never asked for, nor forgotten."""
    family, packed = _packed(address)
    body = rtnl.NEIGHBOUR.pack(family, index, rtnl.NUD_PERMANENT, 0, 0)
    body += attribute(_TO, packed) + attribute(_MAC, _mac(mac))
    return Message(_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def put_default_route(index: int, gateway: str) -> Message:
    """The default route of its family, through a gateway that is reached by the device without being in its network."""
    family, packed = _packed(gateway)
    body = rtnl.ROUTE.pack(family, 0, 0, 0, rtnl.MAIN_TABLE, _STATIC, _UNIVERSE, _UNICAST, _ONLINK)
    body += attribute(_GATEWAY, packed) + attribute(_OUTPUT, struct.pack("=I", index))
    return Message(_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


ADD = (_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)
REPLACE = (_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
DELETE = (_DELROUTE, 0)


def link_route(
    verb: Tuple[int, int], index: int, destination: str, source: Optional[str], protocol: int, metric: Optional[int]
) -> Message:
    """ADD, REPLACE or DELETE a route to what is on the link itself; `source` is the preferred source address."""
    address, length = rtnl.split_cidr(destination)
    family, packed = _packed(address)
    scope = _LINK_SCOPE if family == socket.AF_INET else _UNIVERSE
    body = rtnl.ROUTE.pack(family, length, 0, 0, rtnl.MAIN_TABLE, protocol, scope, _UNICAST, 0)
    body += attribute(_ROUTE_TO, packed) + attribute(_OUTPUT, struct.pack("=I", index))
    if source is not None:
        body += attribute(_PREFERRED, _packed(source)[1])
    if metric is not None:
        body += attribute(_PRIORITY, struct.pack("=I", metric))
    return Message(verb[0], verb[1], body)


def _packed(address: str) -> Tuple[int, bytes]:
    family = rtnl.family_of(address)
    return family, socket.inet_pton(family, address)
