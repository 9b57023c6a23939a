"""Packets by hand: building frames to forge with, and reading frames that were sniffed. Pure.

Formats: Ethernet II, RFC 791, RFC 8200, RFC 768, RFC 9293, RFC 792, RFC 4443, RFC 7348 (VXLAN).
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from tests.e2e.traffic.probing import checksum

IPV4, IPV6 = 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, ACK = 0x02, 0x10
INNER_MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(payload: bytes, source: str, destination: str) -> bytes:
    """A frame around an IP packet; the version in its first byte tells the type."""
    kind = IPV6 if payload[0] >> 4 == 6 else IPV4
    return _mac(destination) + _mac(source) + struct.pack("!H", kind) + payload


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if len(ends) == 32:
        return ends + struct.pack("!I3xB", length, protocol)
    return ends + struct.pack("!xBH", protocol, length)


def ip(source: str, destination: str, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    """An IP packet of the addresses' family."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ends + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, hops, protocol, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(source: str, destination: str, source_port: int, port: int, payload: bytes = b"forged") -> bytes:
    """A whole IP packet with UDP in it."""
    length = 8 + len(payload)
    bare = struct.pack("!HHHH", source_port, port, length, 0) + payload
    total = checksum(_pseudo(source, destination, UDP, length) + bare) or 0xFFFF
    return ip(source, destination, UDP, bare[:6] + struct.pack("!H", total) + payload)


def tcp(source: str, destination: str, source_port: int, port: int, flags: int, payload: bytes = b"") -> bytes:
    """A whole IP packet with a TCP segment in it."""
    bare = struct.pack("!HHIIBBHHH", source_port, port, 1000, 2000, 5 << 4, flags, 65535, 0, 0) + payload
    total = checksum(_pseudo(source, destination, TCP, len(bare)) + bare)
    return ip(source, destination, TCP, bare[:16] + struct.pack("!H", total) + bare[18:])


def echo(source: str, destination: str, *, reply: bool = False, identifier: int = 77) -> bytes:
    """A whole IP packet with an ICMP echo request, or a reply."""
    is_v6 = ":" in source
    kind = (129 if reply else 128) if is_v6 else (0 if reply else 8)
    bare = struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + b"forged"
    protocol = ICMPV6 if is_v6 else ICMP
    total = checksum((_pseudo(source, destination, protocol, len(bare)) if is_v6 else b"") + bare)
    return ip(source, destination, protocol, bare[:2] + struct.pack("!H", total) + bare[4:])


def unreachable(source: str, destination: str, about: bytes) -> bytes:
    """A whole IP packet with the ICMP error "port unreachable" about an IP packet."""
    is_v6 = ":" in source
    bare = (struct.pack("!BBHI", 1, 4, 0, 0) if is_v6 else struct.pack("!BBHI", 3, 3, 0, 0)) + about
    protocol = ICMPV6 if is_v6 else ICMP
    total = checksum((_pseudo(source, destination, protocol, len(bare)) if is_v6 else b"") + bare)
    return ip(source, destination, protocol, bare[:2] + struct.pack("!H", total) + bare[4:])


def vxlan(inner: bytes, vni: int) -> bytes:
    """UDP payload: VXLAN header and an Ethernet frame around an IP packet."""
    return struct.pack("!II", 0x08 << 24, vni << 8) + ethernet(inner, *INNER_MACS)


@dataclass(frozen=True)
class Seen:
    """A packet as it was read: addresses as text, ports 0 where there are none."""

    source: str
    destination: str
    protocol: int
    source_port: int = 0
    port: int = 0
    payload: bytes = b""
    fragment: bool = False
    source_mac: str = ""
    destination_mac: str = ""


@dataclass(frozen=True)
class Tunnelled:
    """A VXLAN packet: what is outside, its VNI, what is inside."""

    outer: Seen
    vni: int
    inner: Seen


def read(frame: bytes) -> Seen | None:
    """An Ethernet frame with IPv4 or IPv6, cut off or not; None for anything else."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    macs = (frame[6:12].hex(":"), frame[:6].hex(":"))
    packet = frame[14:]
    if kind == IPV4:
        length, protocol = (packet[0] & 15) * 4, packet[9]
        source, destination = packet[12:16], packet[16:20]
        fragment = bool(struct.unpack_from("!H", packet, 6)[0] & 0x3FFF)
    elif kind == IPV6:
        length, protocol = 40, packet[6]
        source, destination = packet[8:24], packet[24:40]
        fragment = protocol == 44
    else:
        return None
    ends = (str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)))
    body = packet[length:]
    ports = (0, 0)
    if protocol in (TCP, UDP) and len(body) >= 8 and not fragment:
        ports = struct.unpack_from("!HH", body)
        body = body[(body[12] >> 4) * 4 :] if protocol == TCP and len(body) > 12 else body[8:]
    return Seen(*ends, protocol, *ports, body, fragment, *macs)


def read_tunnelled(frame: bytes, port: int) -> Tunnelled | None:
    """A frame with VXLAN to UDP `port`; None for anything else."""
    outer = read(frame)
    if outer is None or outer.protocol != UDP or outer.port != port or len(outer.payload) < 8 + 14:
        return None
    vni = struct.unpack_from("!I", outer.payload, 4)[0] >> 8
    inner = read(outer.payload[8:])
    return None if inner is None else Tunnelled(outer, vni, inner)
