"""Connections while their map is made anew in another size: what a program at one hook records, that at another finds.

b may be reached by a, and nothing else passes between the two. So the answer of b passes two policies that deny it, by
the records that the program at a's hook made of the question.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional

import pytest

from bpfleet.loader import syscall
from bpfleet.loader.apply import apply
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.layout import decode
from bpfleet.loader.maps import dump
from bpfleet.loader.pins import Pins
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.loader.steps import ResizeMaps
from bpfleet.model.state import NodeState
from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import BUILD, TC_ACT_SHOT, run_program
from tests.packet.place import Place, context_of, state_of, two_ends

pytestmark = pytest.mark.root

A, B, PORT = "10.77.1.1", "10.77.1.2", 7000
HOOKS = {A: "dev-a", B: "dev-b"}


def sized(connections: int) -> NodeState:
    """Both ends with a program each, and room for so many connections."""
    nobody: List[Any] = [{"peers": []}]
    policies = [
        fleet.policy("a", {"app": "a"}, egress=[{"peers": [{"labels": {"app": "b"}}]}], ingress=nobody),
        fleet.policy("b", {"app": "b"}, ingress=[{"peers": [{"labels": {"app": "a"}}]}], egress=nobody),
    ]
    made = state_of([*two_ends(), *policies])
    sizes = {**made.sizes, "connections": connections}
    return replace(
        made,
        programs={name: replace(program, sizes=sizes) for name, program in made.programs.items()},
        attachments={(device, "ingress"): "from_endpoint" for device in HOOKS.values()},
        sizes=sizes,
    )


SMALL, LARGE = sized(4096), sized(16384)


class Talk:
    """Speaks for both ends, by the programs that are at their hooks."""

    def __init__(self, place: Place) -> None:
        self._pins = Pins(place.pins)
        indexes = {name: socket.if_nametoindex(name) for name in HOOKS.values()}
        self._contexts = {end: context_of(indexes[device]) for end, device in HOOKS.items()}
        self.ports = 1024

    def passes(self, sender: str, ports: tuple[int, int], flags: int) -> bool:
        link = syscall.get(str(self._pins.link(HOOKS[sender], "ingress")))
        program = syscall.program_by_id(syscall.link_info(link).program_id)
        try:
            frame = f.ether(f.tcp(sender, B if sender == A else A, ports, flags))
            return run_program(program, frame, self._contexts[sender])[0] != TC_ACT_SHOT
        finally:
            os.close(program)
            os.close(link)

    def opens(self) -> None:
        """A new connection, and what is none."""
        self.ports += 1
        assert not self.passes(B, (PORT, self.ports), f.SYN | f.ACK), "nobody asked"
        assert not self.passes(B, (self.ports, PORT), f.SYN)
        assert self.passes(A, (self.ports, PORT), f.SYN)
        self.goes_on()

    def goes_on(self) -> None:
        """Answers to the first and to the latest connections; each needs its records."""
        for port in {1025, *range(max(1025, self.ports - 5), self.ports + 1)}:
            assert self.passes(B, (PORT, port), f.SYN | f.ACK), f"connection {port - 1024} of {self.ports - 1024}"


@pytest.fixture
def talk(place: Place) -> Iterator[Talk]:
    place.bring(SMALL)
    made = Talk(place)
    made.opens()
    yield made


class Talking(RealKernel):
    """Has both ends talk after each system call that changes something, and ends after so many."""

    def __init__(self, place: Place, scratch: Path, talk: Talk, ends_at: Optional[int] = None) -> None:
        super().__init__(BUILD, place.pins, scratch)
        self._talk = talk
        self._ends_at = ends_at

    def _wrote(self, count: int = 1) -> None:
        super()._wrote(count)
        self._talk.opens()
        if self.writes == self._ends_at:
            raise Ended


class Ended(Exception):
    """In place of a process that dies."""


def test_each_program_finds_what_another_recorded(place: Place, talk: Talk, tmp_path: Path) -> None:
    for want in (LARGE, SMALL):
        kernel = Talking(place, tmp_path, talk)
        (step,) = plan(want, kernel.read(want))
        assert isinstance(step, ResizeMaps) and set(step.sizes) == {"connections"}
        apply(kernel, [step])
        assert kernel.read(want).sizes["connections"] == want.sizes["connections"]
        assert plan(want, kernel.read(want)) == []
    assert talk.ports > 1024 + 20


def test_an_answer_counts_whichever_program_saw_it(place: Place, talk: Talk, tmp_path: Path) -> None:
    """A connection that was answered once, at any moment of the move, has been answered: it counts for hours."""
    opened = []

    class Once(Talking):
        def _wrote(self, count: int = 1) -> None:
            RealKernel._wrote(self, count)
            port = 20000 + len(opened)
            opened.append(port)
            assert talk.passes(A, (port, PORT), f.SYN) and talk.passes(B, (PORT, port), f.SYN | f.ACK)

    kernel = Once(place, tmp_path, talk)
    apply(kernel, plan(LARGE, kernel.read(LARGE)))
    fd = syscall.get(str(Pins(place.pins).map("connections")))
    found = [(decode("connections", "key", key), decode("connections", "value", value)["state"])
             for key, value in dump(fd, "connections").items()]  # fmt: skip
    os.close(fd)
    states = {(key["source_port"], key["direction"]): state for key, state in found if key["source_port"] in opened}
    assert len(opened) > 10 and len(states) == 2 * len(opened)
    assert set(states.values()) == {ENUMS["connection_state"]["replied"]}, states


@pytest.mark.parametrize("then", [SMALL, LARGE], ids=["back", "forth"])
def test_wherever_it_ends_no_connection_is_lost(place: Place, talk: Talk, tmp_path: Path, then: NodeState) -> None:
    at = 0
    while True:
        at += 1
        kernel = Talking(place, tmp_path, talk, at)
        try:
            apply(kernel, plan(LARGE, kernel.read(LARGE)))
        except Ended:
            pass
        else:
            break
        talk.opens()
        other = Talking(place, tmp_path, talk)
        apply(other, plan(then, other.read(then)))
        assert plan(then, other.read(then)) == []
        talk.opens()
        place.bring(SMALL)
        talk.goes_on()
    assert at > 10
