"""Frames by dice: mostly of few conversations, so that packets meet; in parts, with what may stand before ports, about
one another, cut off, damaged. A number names a frame, so that long lists of them are drawn cheaply.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Dict, Mapping, Tuple

from tests.packet import frames as f

PORTS = (80, 81, 443, 40000)
FLAGS = (f.SYN, f.SYN | f.ACK, f.ACK, f.ACK, f.ACK, f.ACK | f.FIN, f.RST, f.SYN | f.FIN, 0)
PAD = b"\x00\x01\x04\x00\x00\x00\x00"
AUTHENTICATION = b"\x01" + bytes(10)
EXTENSIONS = ((0, PAD), (43, PAD), (60, PAD), (51, AUTHENTICATION))
VIA = {"c": "vxlan", "node2": "vxlan", "world": "eth0", "host": ""}
"""Where the stack got what a peer that is not here sends."""
HERE = ("a", "b")


@dataclass(frozen=True)
class Sent:
    """A frame at the device of an endpoint: from its workload, or to it by the stack, where it came in by `via`."""

    name: str
    frame: bytes
    is_to: bool = False
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
    ends = dice.choice(HERE), dice.choice(("a", "b", "b", "c", "host", "world", "node2"))
    kind = dice.choice(("tcp", "tcp", "udp", "udp", "sctp", "echo", "icmp", "other"))
    return Talk(dice.random() < 0.5, ends, kind, (40000, dice.choice(PORTS)))


def sent(number: int, talks: Tuple[Talk, ...], addresses: Mapping[int, Mapping[str, str]]) -> Sent:
    """A frame. addresses: by family, of a and b, which are here, c and node2 behind the tunnel, host, world, and u,
    which is not attached.
    """
    dice = random.Random(number)
    one = dice.choice(talks) if dice.random() < 0.8 else talk(dice.getrandbits(32))
    is_answer = dice.random() < 0.4
    one = one.turned() if is_answer else one
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
    frame = _spoilt(dice, f.ether(packet), 14 + (40 if one.v6 else 20))
    if sender in HERE and not (receiver in HERE and dice.random() < 0.1):
        return Sent(sender, frame)
    via = VIA.get(sender, sender) if dice.random() < 0.9 else dice.choice(("", "eth0", "vxlan", "b"))
    return Sent(receiver, frame, True, via)


def _transport(dice: random.Random, one: Talk, is_answer: bool) -> Tuple[int, bytes]:
    """(protocol, header and data)."""
    ports = one.ports if dice.random() < 0.95 else (68, 67) if dice.random() < 0.5 else (40000, 8472)
    if one.kind == "tcp":
        return f.TCP, f.tcp_header(*ports, dice.choice(FLAGS)) + b"hi"
    if one.kind == "udp":
        return f.UDP, f.udp_header(*ports, 8) + b"12345678"
    if one.kind == "sctp":
        return f.SCTP, struct.pack("!HHII", *ports, 1, 0)
    if one.kind == "other":
        return dice.choice((47, 47, 50, 59, 4)), b"x" * 12
    number = (129 if is_answer else 128) if one.v6 else (0 if is_answer else 8)
    code = 0
    if one.kind == "icmp":
        number, code = dice.choice((3, 1, 5, 13, 133, 135, 143)), dice.choice((0, 0, 1))
    return f.ICMP6 if one.v6 else f.ICMP, struct.pack("!BBHHH", number, code, 0, dice.choice((7, 7, 8)), 1) + b"ping"


def _packet(dice: random.Random, one: Talk, source: str, destination: str, is_answer: bool) -> bytes:
    """Whole, or a part."""
    protocol, body = _transport(dice, one, is_answer)
    more: Dict[str, object] = {"hops": dice.choice((64, 64, 64, 64, 255, 1, 0))}
    part = dice.choice(("whole", "whole", "whole", "first", "later"))
    if part != "whole":
        more["number"] = dice.choice((7, 7, 7, 8))
    if part == "later":
        more["fragment"] = dice.choice((8, 16, 24, 1480, 1480))
        body = b"x" * 16
    more["more"] = part == "first" or (part == "later" and dice.random() < 0.5)
    if one.v6 and dice.random() < 0.3:
        more["extensions"] = [dice.choice(EXTENSIONS) for _ in range(dice.choice((1, 2, 7)))]
    if not one.v6 and dice.random() < 0.2:
        more["options"] = b"\x01" * dice.choice((4, 40))
    return f.ip(source, destination, protocol, body, **more)  # type: ignore[arg-type]


def _error(dice: random.Random, one: Talk, source: str, destination: str, x: Mapping[str, str]) -> bytes:
    """About a packet that its receiver, or somebody else, may have sent to its sender, or to somebody else."""
    others = tuple(x[name] for name in ("a", "b", "c", "world"))
    about_from = destination if dice.random() < 0.8 else dice.choice(others)
    about_to = source if dice.random() < 0.8 else dice.choice(others)
    about = _packet(dice, one.turned(), about_from, about_to, dice.random() < 0.3)
    return dice.choice((f.unreachable, f.too_big))(source, destination, about)


def _spoilt(dice: random.Random, frame: bytes, least: int) -> bytes:
    """Perhaps. `least`: what BPF_PROG_TEST_RUN takes."""
    chance = dice.random()
    if chance < 0.06:
        return frame[: dice.randint(min(least, len(frame)), len(frame))]
    if chance < 0.12:
        spoilt = bytearray(frame)
        for _ in range(dice.randint(1, 3)):
            spoilt[dice.randrange(14, len(frame))] = dice.randrange(256)
        return bytes(spoilt)
    if chance < 0.14:
        return frame[:12] + dice.choice((b"\x08\x06", b"\x81\x00", b"\x88\xcc")) + frame[14:]
    return frame
