"""What is in a frame, read as the RFCs have it: a model of what the programs make of any bytes.

It shares no code with them.

IPv4: RFC 791. IPv6 and its extension headers: RFC 8200 4, RFC 4302 2.2. ICMP: RFC 792, RFC 4443. TCP: RFC 9293 3.1.
UDP: RFC 768. The checksum of IPv4's header: RFC 1071.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, replace
from typing import Any, Iterator, Optional, Tuple, Union

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
WITH_PORTS = {TCP: 20, UDP: 8, SCTP: 12}
"""Protocols with ports, and the least that a header of theirs has."""
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS)
EXTENSIONS_LIMIT = 6
FIN, SYN, RST, ACK = 1, 2, 4, 16

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Ports = Tuple[int, int]


class Unreadable(Exception):
    """A packet that is none; the text is the reason to drop it. ends: its addresses, if its IP header is one.
    udp_ports: of a UDP header that is wrong in what follows them."""

    ends: Optional[Tuple[Address, Address]] = None
    udp_ports: Ports = (0, 0)


@dataclass(frozen=True)
class Reading:
    """A packet. kind: what it may do for a connection (any, opens, reply_only, related, untracked, fragment).

    ends and ports, protocol: the tuple of its connection, as it travels. An echo has (identifier, 0), its reply
    (0, identifier). Of an error about a packet (related): the reverse of that packet's.
    message: type and code of ICMP. part: whole, first or later; datagram: what its fragments have in common besides
    addresses.
    """

    source: Address
    destination: Address
    protocol: int
    hops: int
    ends: Tuple[Address, Address]
    kind: str = "any"
    ports: Ports = (0, 0)
    connection_protocol: int = 0
    message: Tuple[int, int] = (0, 0)
    flags: int = 0
    part: str = "whole"
    offset: int = 0
    datagram: Tuple[Any, ...] = ()
    has_extensions: bool = False


def number(data: bytes) -> int:
    """Network byte order."""
    return int.from_bytes(data, "big")


def read(frame: bytes) -> Reading:
    """The packet in an Ethernet frame. Raises Unreadable."""
    kind, packet = number(frame[12:14]), frame[14:]
    if kind == 0x0800:
        return _v4(packet)
    if kind == 0x86DD:
        return _v6(packet)
    raise Unreadable("unsupported")


def _need(data: bytes, size: int) -> None:
    if len(data) < size:
        raise Unreadable("truncated")


def _v4(packet: bytes) -> Reading:
    _need(packet, 20)
    version, start, total = packet[0] >> 4, (packet[0] & 15) * 4, number(packet[2:4])
    if version != 4 or start < 20 or total < start:
        raise Unreadable("malformed")
    _need(packet, total)
    more, offset = bool(packet[6] & 0x20), (number(packet[6:8]) & 0x1FFF) * 8
    ends = ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20])
    found = Reading(*ends, protocol=packet[9], hops=packet[8], ends=ends)
    with _between(*ends):
        if header_sum(packet[:start]):
            raise Unreadable("malformed")
        _options(packet[20:start])
        return _transport(_parted(found, offset, more, packet[4:6], packet[9]), packet[start:total])


def header_sum(data: bytes) -> int:
    """The sum of an IPv4 header's words in ones' complement, nothing but ones as 0. So with its checksum."""
    return sum(number(data[at : at + 2]) for at in range(0, len(data), 2)) % 0xFFFF


def _options(data: bytes) -> None:
    """Options of IPv4, up to one of type 0. Only those of type 1 have no length."""
    while data and data[0]:
        size = 1 if data[0] == 1 else data[1] if len(data) > 1 else 0
        if not size or size > len(data) or (data[0] != 1 and size < 2):
            raise Unreadable("malformed")
        data = data[size:]


def _v6(packet: bytes) -> Reading:
    _need(packet, 40)
    if packet[0] >> 4 != 6:
        raise Unreadable("malformed")
    size = number(packet[4:6])
    _need(packet, 40 + size)
    ends = ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40])
    with _between(*ends):
        if any(end.ipv4_mapped for end in ends):
            raise Unreadable("malformed")
        protocol, rest, fragment = _past_extensions(packet[6], packet[40 : 40 + size])
        found = Reading(*ends, protocol, packet[7], ends, has_extensions=packet[6] in EXTENSIONS)
        if fragment:
            found = _parted(found, *fragment)
        return _transport(found, rest)


@contextlib.contextmanager
def _between(source: Address, destination: Address) -> Iterator[None]:
    """What cannot be read in here has those addresses."""
    try:
        yield
    except Unreadable as unreadable:
        unreadable.ends = source, destination
        raise


def _past_extensions(protocol: int, data: bytes) -> Tuple[int, bytes, Optional[Tuple[int, bool, bytes, int]]]:
    """(protocol, what follows the extension headers, the fragment: offset, more, number, its protocol)."""
    fragment = None
    for _ in range(EXTENSIONS_LIMIT):
        if protocol not in EXTENSIONS:
            return protocol, data, fragment
        _need(data, 4)
        size = 8 if protocol == FRAGMENT else (data[1] + 2) * 4 if protocol == AUTHENTICATION else (data[1] + 1) * 8
        _need(data, size)
        if protocol == FRAGMENT:
            fragment = (number(data[2:4]) & 0xFFF8, bool(data[3] & 1), data[4:8], data[0])
        protocol, data = data[0], data[size:]
        if fragment and fragment[0]:
            return protocol, data, fragment
    raise Unreadable("extension_headers")


def _parted(found: Reading, offset: int, more: bool, name: bytes, protocol: int) -> Reading:
    part = "later" if offset else "first" if more else "whole"
    if part == "whole":
        return found
    return replace(found, part=part, offset=offset, datagram=(name, protocol))


def _transport(found: Reading, data: bytes) -> Reading:
    protocol = found.protocol
    found = replace(found, connection_protocol=protocol)
    if found.part == "later":
        if found.offset + len(data) > 0xFFFF:
            raise Unreadable("malformed")
        return replace(found, kind="fragment")
    if protocol in WITH_PORTS:
        _need(data, WITH_PORTS[protocol])
        found = replace(found, ports=(number(data[0:2]), number(data[2:4])))
        if protocol == UDP:
            _udp(found, data)
        return _tcp(found, data) if protocol == TCP else found
    if protocol in (ICMP, ICMP6):
        if (protocol == ICMP6) != (found.source.version == 6):
            raise Unreadable("malformed")
        return _icmp(found, data)
    return found


def _udp(found: Reading, data: bytes) -> None:
    """Its length: at least its header's, and of what is not in parts no more than there is."""
    size = number(data[4:6])
    if size < 8 or (found.part == "whole" and size > len(data)):
        unreadable = Unreadable("malformed" if size < 8 else "truncated")
        unreadable.udp_ports = found.ports
        raise unreadable


def _tcp(found: Reading, data: bytes) -> Reading:
    size, flags = (data[12] >> 4) * 4, data[13]
    if size < 20:
        raise Unreadable("malformed")
    _need(data, size)
    if flags & (FIN | RST) if flags & SYN else not flags & (ACK | RST):
        raise Unreadable("malformed")
    kind = {0: "any", SYN: "opens", SYN | ACK: "reply_only", ACK: "any"}[flags & (SYN | ACK)]
    return replace(found, flags=flags, kind=kind)


def _echo(version: int, kind: int, identifier: int) -> Optional[Ports]:
    if kind == (8 if version == 4 else 128):
        return identifier, 0
    if kind == (0 if version == 4 else 129):
        return 0, identifier
    return None


def _icmp(found: Reading, data: bytes) -> Reading:
    _need(data, 8)
    kind, code, version = data[0], data[1], found.source.version
    found = replace(found, message=(kind, code), kind="untracked")
    ports = _echo(version, kind, number(data[4:6])) if code == 0 else None
    if ports:
        return replace(found, ports=ports, kind="any" if ports[1] == 0 and kind in (8, 128) else "reply_only")
    if kind in ((3, 11, 12) if version == 4 else (1, 2, 3, 4)):
        return _about(found, data[8:])
    return found


def _about(found: Reading, data: bytes) -> Reading:
    """An error, with the start of the packet that it is about. What cannot be read of that makes no difference."""
    if found.source.version == 4:
        start = (data[0] & 15) * 4 if data else 0
        if len(data) < 20 or start < 20 or len(data) < start or number(data[6:8]) & 0x1FFF:
            return found
        ends: Tuple[Address, Address] = ipaddress.IPv4Address(data[12:16]), ipaddress.IPv4Address(data[16:20])
        protocol, rest = data[9], data[start:]
    else:
        if len(data) < 40:
            return found
        ends = ipaddress.IPv6Address(data[8:24]), ipaddress.IPv6Address(data[24:40])
        try:
            protocol, rest, fragment = _past_extensions(data[6], data[40:])
        except Unreadable:
            return found
        if fragment and fragment[0]:
            return found
    if ends[0] != found.destination:
        return found
    ports: Optional[Ports] = (0, 0)
    if protocol in WITH_PORTS:
        ports = (number(rest[0:2]), number(rest[2:4])) if len(rest) >= 4 else None
    elif protocol == (ICMP if found.source.version == 4 else ICMP6):
        ports = _echo(found.source.version, rest[0], number(rest[4:6])) if len(rest) >= 8 else None
    if ports is None:
        return found
    turned = (ends[1], ends[0])
    return replace(found, kind="related", ends=turned, ports=(ports[1], ports[0]), connection_protocol=protocol)
