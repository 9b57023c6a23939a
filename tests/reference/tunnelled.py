"""Frames between what is here and what is beyond the tunnel, by dice: those of traffic.py, sent there, or come from
there by the outer address and the number that they should have, or by others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Mapping, Tuple, Union

from tests.reference.traffic import PORTS, Sent, Talk, of_talks

ENDPOINTS = ("a", "b", "t", "q")
BACKENDS = ("c", "c", "c", "c", "b", "world")
THERE = ("c", "d", "node2")


@dataclass(frozen=True)
class Arrived:
    """A frame in a tunnel packet from that outer address, as that number."""

    outer: str
    number: int
    frame: bytes


@dataclass(frozen=True)
class Nodes:
    """members: the outer address of who is beyond the tunnel; numbers: who they are; others: more outer addresses."""

    members: Mapping[str, str]
    numbers: Mapping[str, int]
    others: Tuple[str, ...]


def talk(number: int) -> Talk:
    """A conversation through the tunnel, or of somebody who has no business there."""
    dice = random.Random(number)
    near = dice.choice("q" if dice.random() < 0.04 else ("a", "a", "b", "b", "t", "t", "host", "host"))
    if near in "abt" and dice.random() < 0.3:  # a client of a service
        return Talk(dice.random() < 0.5, (near, "front"), dice.choice(("tcp", "udp")), (40000, 80))
    ends = near, dice.choice(("c", "c", "c", "c", "d", "d", "d", "node2", "node2", "world"))
    kind = dice.choice(("tcp", "tcp", "udp", "udp", "sctp", "echo", "icmp", "other"))
    one = Talk(dice.random() < 0.5, ends, kind, (40000, dice.choice(PORTS)))
    return one if dice.random() < 0.5 else one.turned()


def sent(
    number: int, talks: Tuple[Talk, ...], addresses: Mapping[int, Mapping[str, str]], nodes: Nodes
) -> Union[Sent, Arrived]:
    """A frame; whoever is not here sends through the tunnel."""
    dice = random.Random(number)
    one, frame = of_talks(dice, talks, addresses, talk, BACKENDS)
    sender = one.ends[0]
    if sender == "host":
        return Sent("to_tunnel", "vxlan", frame)
    if sender in ENDPOINTS:
        return Sent("from_endpoint", sender, frame)
    outers = (*nodes.members.values(), *nodes.others)
    outer = nodes.members[sender] if sender in THERE and dice.random() < 0.92 else dice.choice(outers)
    numbers = (0, 1, 2, 5, 6, 2**24 - 1, *nodes.numbers.values())
    is_itself = sender in THERE and dice.random() < 0.92
    return Arrived(outer, nodes.numbers[sender] if is_itself else dice.choice(numbers), frame)
