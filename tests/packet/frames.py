"""Ethernet frames from plain arguments. An address with a colon makes IPv6, one without IPv4."""

from __future__ import annotations

import ipaddress
import struct
from typing import Sequence, Tuple

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
TUNNEL_SOURCE = 700
"""A port that a tunnel device may send from."""
HOST_MAC, WORKLOAD_MAC = "02:00:00:00:00:fe", "02:00:00:00:00:01"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def is_v6(address: str) -> bool:
    """By its notation."""
    return ":" in address


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    hops: int = 64,
    fragment: int = 0,
    more: bool = False,
    number: int = 7,
    options: bytes = b"",
    extensions: Sequence[Tuple[int, bytes]] = (),
) -> bytes:
    """A packet. `fragment` is the offset in bytes, `number` names the datagram; `extensions` are (type, header but its
    first byte) of IPv6."""
    first, last = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    if not is_v6(source):
        words = 5 + len(options) // 4
        total = words * 4 + len(payload)
        flags = fragment // 8 | (0x2000 if more else 0)
        head = (
            struct.pack("!BBHHHBBH", 0x40 | words, 0, total, number, flags, hops, protocol, 0) + first + last + options
        )
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
    chain = list(extensions)
    if fragment or more:
        chain.append((44, struct.pack("!BHI", 0, fragment | more, number)))
    types = [number for number, _ in chain] + [protocol]
    body = b"".join(bytes([following]) + data for following, (_, data) in zip(types[1:], chain)) + payload
    return struct.pack("!IHBB", 6 << 28, len(body), types[0], hops) + first + last + body


def with_ip_checksum(packet: bytes) -> bytes:
    """The same IPv4 packet, of which the header was changed, with its header's checksum; anything else as it is."""
    size = (packet[0] & 15) * 4 if packet and packet[0] >> 4 == 4 else 0
    if not 20 <= size <= len(packet):
        return packet
    head = packet[:10] + bytes(2) + packet[12:size]
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[size:]


def vxlan(source: str, destination: str, port: int, vni: int, frame: bytes) -> bytes:
    """A packet with a frame in VXLAN (RFC 7348), with a UDP checksum where there must be one."""
    payload = struct.pack("!II", 0x08 << 24, vni << 8) + frame
    datagram = struct.pack("!HHHH", TUNNEL_SOURCE, port, 8 + len(payload), 0) + payload
    packet = ip(source, destination, UDP, datagram)
    return summed(packet) if is_v6(source) else packet


def ether(packet: bytes, source: str = WORKLOAD_MAC, destination: str = HOST_MAC, kind: int = 0) -> bytes:
    """A frame around a packet; its type is the packet's unless given."""
    number = kind or (0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800)
    return bytes.fromhex((destination + source).replace(":", "")) + struct.pack("!H", number) + packet


def tcp_header(source_port: int, destination_port: int, flags: int) -> bytes:
    """A TCP header without options and checksum, which nothing here looks at."""
    return struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 0x50, flags, 1024, 0, 0)


def udp_header(source_port: int, destination_port: int, length: int = 0) -> bytes:
    """A UDP header."""
    return struct.pack("!HHHH", source_port, destination_port, 8 + length, 0)


def tcp(source: str, destination: str, ports: Tuple[int, int], flags: int = SYN, **more: object) -> bytes:
    """A packet with a TCP header and two bytes."""
    return ip(source, destination, TCP, tcp_header(*ports, flags) + b"hi", **more)  # type: ignore[arg-type]


def udp(source: str, destination: str, ports: Tuple[int, int], **more: object) -> bytes:
    """A packet with a UDP header and two bytes."""
    return ip(source, destination, UDP, udp_header(*ports, 2) + b"hi", **more)  # type: ignore[arg-type]


def sctp(source: str, destination: str, ports: Tuple[int, int]) -> bytes:
    """A packet with an SCTP common header."""
    return ip(source, destination, SCTP, struct.pack("!HHII", *ports, 1, 0))


def icmp(source: str, destination: str, kind: int, rest: bytes = bytes(4), code: int = 0, **more: object) -> bytes:
    """An ICMP or ICMPv6 message by its own type number; `rest` follows the checksum."""
    protocol = ICMP6 if is_v6(source) else ICMP
    return ip(source, destination, protocol, struct.pack("!BBH", kind, code, 0) + rest, **more)  # type: ignore[arg-type]


def summed(packet: bytes) -> bytes:
    """The same TCP, UDP or ICMP packet, without options and extension headers, with its transport's checksum."""
    v6 = packet[0] >> 4 == 6
    start, protocol = (40, packet[6]) if v6 else (20, packet[9])
    at = start + {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}[protocol]
    body = packet[:at][start:] + bytes(2) + packet[at + 2 :]
    pseudo = packet[8:40] if v6 else packet[12:20]
    number = checksum((b"" if protocol == ICMP else pseudo + struct.pack("!II", len(body), protocol)) + body)
    return packet[:at] + struct.pack("!H", number or 0xFFFF) + packet[at + 2 :]


def echo(source: str, destination: str, identifier: int, reply: bool = False, **more: object) -> bytes:
    """An echo request or reply."""
    kind = (129 if reply else 128) if is_v6(source) else (0 if reply else 8)
    return icmp(source, destination, kind, struct.pack("!HH", identifier, 1) + b"ping", **more)


def unreachable(source: str, destination: str, about: bytes) -> bytes:
    """Destination unreachable, carrying the start of the packet it is about."""
    return icmp(source, destination, 1 if is_v6(source) else 3, bytes(4) + about[:64], code=1)


def too_big(source: str, destination: str, about: bytes) -> bytes:
    """Packet too big, or fragmentation needed: what path MTU discovery lives on."""
    if is_v6(source):
        return icmp(source, destination, 2, struct.pack("!I", 1400) + about[:64])
    return icmp(source, destination, 3, struct.pack("!HH", 0, 1400) + about[:64], code=4)
