"""Frames by dice: mostly of few conversations, so that packets meet; in parts, with what may stand before ports, about
one another, cut off, damaged. A number names a frame, so that long lists of them are drawn cheaply.

Names of addresses: a and a2 are of one endpoint here, b and t of others; c and node2 are behind the tunnel; host,
gateway, link (on each link) and late (nobody told of it) are this node's; world; u is not attached; front is a
frontend's.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Tuple

from tests.packet import frames as f

PORTS = (80, 80, 81, 443, 22, 8080, 40000)
BACKENDS = ("b", "t", "c", "world", "host")
"""Who may answer for the frontend, from BACKEND_PORT."""
BACKEND_PORT = 8080
FLAGS = (*(f.SYN, f.SYN | f.ACK, f.ACK, f.ACK | f.FIN) * 3, *(f.ACK,) * 6, *(f.RST, f.RST | f.ACK) * 2)
ODD_FLAGS = (f.SYN | f.FIN, f.SYN | f.RST, f.FIN, 0, 0x28, 0x3F)
ODD_SIZES = (-8, -1, 0, 9, 1472)
"""What a UDP header says of its data, of which there are 8 bytes."""
OPTIONS = (b"\x01" * 4, b"\x01" * 40, b"\x07\x27" + bytes(38), b"\x94\x04\x00\x00", b"\x00\x07\x00\x00")
ODD_OPTIONS = (b"\x07\x00\x04\x00", b"\x01\x07\x01\x00", b"\x07\x05\x04\x00", b"\x01" * 39 + b"\x07")
PAD = b"\x00\x01\x04\x00\x00\x00\x00"
AUTHENTICATION = b"\x01" + bytes(10)
EXTENSIONS = ((0, PAD), (43, PAD), (60, PAD), (51, AUTHENTICATION))
HERE = {"a": "a", "a2": "a", "b": "b", "t": "t"}
"""Addresses of endpoints here, and whose they are."""
VIA = {
    "c": "vxlan",
    "node2": "vxlan",
    "world": "eth0",
    "host": "",
    "gateway": "",
    "link": "",
    "late": "",
    "front": "eth0",
    "u": "eth0",
}
"""Where the stack got what a peer that is not here sends."""
INITIATORS = ("a", "a", "a2", "b", "t", "host", "host", "world", "world", "link", "late", "c", "node2")
RESPONDERS = (
    "a",
    "a2",
    "b",
    "b",
    "t",
    "c",
    "host",
    "host",
    "gateway",
    "link",
    "late",
    "world",
    "node2",
    *("front",) * 5,
)


@dataclass(frozen=True)
class Sent:
    """A frame that comes to a program at a device; the stack got it by the device `via`, or nowhere ("")."""

    program: str
    at: str
    frame: bytes
    via: str = ""


@dataclass(frozen=True)
class Talk:
    """Two ends, how they talk, and by which ports (identifiers, of echoes)."""

    v6: bool
    ends: Tuple[str, str]
    kind: str
    ports: Tuple[int, int]

    def turned(self) -> Talk:
        """The other end's view."""
        return Talk(self.v6, self.ends[::-1], self.kind, self.ports[::-1])


def talk(number: int) -> Talk:
    """A conversation, of not very many."""
    dice = random.Random(number)
    ends = dice.choice(INITIATORS), dice.choice(RESPONDERS)
    if ends[1] == "front":
        ends = dice.choice(tuple(HERE)), "front"
    kind = dice.choice(("tcp", "tcp", "tcp", "udp", "udp", "udp", "sctp", "echo", "icmp", "other"))
    port = 80 if ends[1] == "front" else dice.choice(PORTS)
    return Talk(dice.random() < 0.5, ends, kind, (40000, port))


def sent(number: int, talks: Tuple[Talk, ...], addresses: Mapping[int, Mapping[str, str]]) -> Sent:
    """A frame. addresses: by family and name."""
    dice = random.Random(number)
    one, frame = of_talks(dice, talks, addresses)
    program, at, via = _hook(dice, *one.ends)
    return Sent(program, at, frame, via)


def of_talks(
    dice: random.Random,
    talks: Tuple[Talk, ...],
    addresses: Mapping[int, Mapping[str, str]],
    other: Callable[[int], Talk] = talk,
    backends: Tuple[str, ...] = BACKENDS,
) -> Tuple[Talk, bytes]:
    """A frame of one of the conversations, or of another one, and that as its sender sees it."""
    one = dice.choice(talks) if dice.random() < 0.85 else other(dice.getrandbits(32))
    is_answer = dice.random() < 0.4
    one = one.turned() if is_answer else one
    if is_answer and one.ends[0] == "front":  # a backend answers
        one = Talk(one.v6, (dice.choice(backends), one.ends[1]), one.kind, (BACKEND_PORT, one.ports[1]))
    elif one.ends[1] == "front" and dice.random() < 0.2:  # past the service
        one = Talk(one.v6, (one.ends[0], dice.choice(backends)), one.kind, (one.ports[0], BACKEND_PORT))
    x = addresses[6 if one.v6 else 4]
    sender, receiver = one.ends
    source, destination = x[sender], x[receiver]
    if dice.random() < 0.04:
        source = x[dice.choice(("a", "b", "c", "host", "world"))]
    if dice.random() < 0.04:
        destination = dice.choice((x["u"], x["world"], "ff02::1" if one.v6 else "224.0.0.1"))
    if dice.random() < 0.15:
        packet = _error(dice, one, source, destination, x)
    else:
        packet = _packet(dice, one, source, destination, is_answer)
    return one, _spoilt(dice, f.ether(packet), 14 + (40 if one.v6 else 20))


def _hook(dice: random.Random, sender: str, receiver: str) -> Tuple[str, str, str]:
    """(program, device, via) where a packet of those ends comes by, mostly."""
    if dice.random() < 0.06:
        via = dice.choice(("", "eth0", "vxlan", "a", "b"))
        return dice.choice(
            (
                ("from_endpoint", dice.choice("abt"), ""),
                ("to_endpoint", dice.choice("abt"), via),
                ("from_underlay", "eth0", ""),
                ("to_underlay", "eth0", via),
                ("to_tunnel", "vxlan", via),
            )
        )
    if sender in HERE:
        if receiver in HERE and dice.random() < 0.1:
            return "to_endpoint", HERE[receiver], HERE[sender]
        return "from_endpoint", HERE[sender], ""
    if receiver in HERE and (VIA[sender] != "eth0" or dice.random() < 0.7):
        return "to_endpoint", HERE[receiver], VIA[sender] if dice.random() < 0.9 else dice.choice(("", "eth0", "vxlan"))
    if sender in ("host", "gateway", "late") or (sender == "link" and dice.random() < 0.5):
        if receiver == "c" or (receiver == "node2" and dice.random() < 0.5):
            return "to_tunnel", "vxlan", ""
        return "to_underlay", "eth0", "a" if dice.random() < 0.2 else ""
    return "from_underlay", "eth0", ""


def _transport(dice: random.Random, one: Talk, is_answer: bool) -> Tuple[int, bytes]:
    """(protocol, header and data)."""
    ports = one.ports
    if dice.random() >= 0.95:
        ports = (68, 67) if dice.random() < 0.5 else (dice.choice((f.TUNNEL_SOURCE, 40000)), 8472)
    if one.kind == "tcp":
        return f.TCP, f.tcp_header(*ports, dice.choice(FLAGS if dice.random() < 0.95 else ODD_FLAGS)) + b"hi"
    if one.kind == "udp":
        return f.UDP, f.udp_header(*ports, 8 if dice.random() < 0.9 else dice.choice(ODD_SIZES)) + b"12345678"
    if one.kind == "sctp":
        return f.SCTP, struct.pack("!HHII", *ports, 1, 0)
    if one.kind == "other":
        return dice.choice((47, 47, 50, 59, 4)), b"x" * 12
    number = (129 if is_answer else 128) if one.v6 else (0 if is_answer else 8)
    code = 0
    if one.kind == "icmp":
        number, code = dice.choice((3, 1, 5, 13, 133, 135, 143, 255)), dice.choice((0, 0, 1, 255))
    return f.ICMP6 if one.v6 else f.ICMP, struct.pack("!BBHHH", number, code, 0, dice.choice((7, 7, 8)), 1) + b"ping"


def _packet(dice: random.Random, one: Talk, source: str, destination: str, is_answer: bool) -> bytes:
    """Whole, or a part."""
    protocol, body = _transport(dice, one, is_answer)
    more: Dict[str, object] = {"hops": dice.choice((64, 64, 64, 64, 255, 1, 0))}
    part = dice.choice(("whole", "whole", "whole", "first", "later"))
    if part != "whole":
        more["number"] = dice.choice((7, 7, 7, 8))
    if part == "later":
        more["fragment"] = dice.choice((8, 16, 24, 1480, 1480, 65512, 65520))
        body = b"x" * 16
    more["more"] = part == "first" or (part == "later" and dice.random() < 0.5)
    if one.v6 and dice.random() < 0.3:
        more["extensions"] = [dice.choice(EXTENSIONS) for _ in range(dice.choice((1, 2, 7)))]
    if not one.v6 and dice.random() < 0.2:
        more["options"] = dice.choice(OPTIONS if dice.random() < 0.8 else ODD_OPTIONS)
    return f.ip(source, destination, protocol, body, **more)  # type: ignore[arg-type]


def _error(dice: random.Random, one: Talk, source: str, destination: str, x: Mapping[str, str]) -> bytes:
    """About a packet that its receiver, or somebody else, may have sent to its sender, or to somebody else."""
    others = tuple(x[name] for name in ("a", "b", "c", "world"))
    about_from = destination if dice.random() < 0.8 else dice.choice(others)
    about_to = source if dice.random() < 0.8 else dice.choice(others)
    about = _packet(dice, one.turned(), about_from, about_to, dice.random() < 0.3)
    reporter = source if dice.random() < 0.8 else x[dice.choice(("world", "gateway"))]
    if dice.random() < 0.5:
        return dice.choice((f.unreachable, f.too_big))(reporter, destination, about)
    kind, code = dice.choice((1, 2, 3, 4, 5, 11, 12)), dice.choice((0, 1, 4, 255))  # of both families
    return f.icmp(reporter, destination, kind, bytes(4) + about[:64], code)


def _spoilt(dice: random.Random, frame: bytes, least: int) -> bytes:
    """Perhaps. `least`: what BPF_PROG_TEST_RUN takes."""
    chance = dice.random()
    if chance < 0.06:
        return frame[: dice.randint(min(least, len(frame)), len(frame))]
    if chance < 0.12:
        spoilt = bytearray(frame)
        for _ in range(dice.randint(1, 3)):
            spoilt[dice.randrange(14, len(frame))] = dice.randrange(256)
        # mostly as one who means it, or no more than a checksum would be looked at
        return bytes(spoilt) if dice.random() < 0.2 else bytes(spoilt[:14]) + f.with_ip_checksum(bytes(spoilt[14:]))
    if chance < 0.14:
        return frame[:12] + dice.choice((b"\x08\x06", b"\x81\x00", b"\x88\xcc")) + frame[14:]
    if chance < 0.15:  # tagged as of a VLAN, or with a priority only
        return frame[:12] + b"\x81\x00" + dice.choice((b"\x00\x05", b"\x20\x00")) + frame[12:]
    return frame
