"""What a workload is told whose packet has no hop left: RFC 792, RFC 4443 3.3."""

from __future__ import annotations

from typing import Optional

from tests.reference.reading import EXTENSIONS, ICMP, ICMP6, Address, Reading, header_sum, read

TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
PROTOCOLS = {4: ICMP, 6: ICMP6}
QUOTED = 8
"""Bytes behind the IP header."""
HOPS = 64


def time_exceeded(frame: bytes, gateway: Address) -> Optional[Reading]:
    """The answer of a gateway to a frame as it was sent; None: there is none to make."""
    packet, quoted = read(frame), frame[14:]
    version = packet.source.version
    size = ((quoted[0] & 15) * 4 if version == 4 else 40) + QUOTED
    is_of_group = bool(frame[0] & 1)
    if is_of_group or packet.part == "later" or _is_report(packet) or len(quoted) < size:
        return None
    if version == 6 and quoted[6] in EXTENSIONS:
        return None
    message = bytes((*TIME_EXCEEDED[version], *bytes(6))) + quoted[:size]
    ends = gateway.packed + packet.source.packed
    protocol = PROTOCOLS[version]
    if version == 4:
        head = b"\x45\0" + (20 + len(message)).to_bytes(2, "big") + bytes(4) + bytes((HOPS, protocol, 0, 0)) + ends
        checksum = 0xFFFF - header_sum(head)
        return read(frame[:14] + head[:10] + checksum.to_bytes(2, "big") + head[12:] + message)
    head = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes((protocol, HOPS)) + ends
    return read(frame[:14] + head + message)


def is_expiry(packet: Reading) -> bool:
    """Whether a packet may be such an answer."""
    version = packet.source.version
    return packet.protocol == PROTOCOLS[version] and packet.message == TIME_EXCEEDED[version]


def _is_report(packet: Reading) -> bool:
    """What no error is sent about: other errors, and redirects. RFC 1122 3.2.2, RFC 4443 2.4 (e)."""
    if packet.protocol != PROTOCOLS[packet.source.version]:
        return False
    kind = packet.message[0]
    return kind in (3, 4, 5, 11, 12) if packet.source.version == 4 else kind < 128 or kind == 137
