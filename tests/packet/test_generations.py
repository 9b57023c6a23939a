"""However policies change, both ends of a packet, and the host, are judged by one generation.

Two sets of policies, OLD and NEW, take turns by the real plan and apply. By both of them nothing passes between two
endpoints of one node, nor from one to the host: OLD lets the sender send and the receiver not receive, NEW the other
way round. So whatever passes was judged by a mixture. What goes to the world tells which of the two is in force.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest

from bpfleet.loader.apply import apply
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.model.document import Document
from bpfleet.model.identity import HOST
from bpfleet.model.state import NodeState, Table
from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import BUILD, TC_ACT_SHOT, run_program
from tests.packet.place import NUMBERS, Place, context_of, hammered, pinned_program, state_of, two_ends

pytestmark = pytest.mark.root

A, B, ME, WORLD = "10.77.1.1", "10.77.1.2", "192.168.77.1", "198.51.100.7"
PORT = 7000
OTHERS = 300
"""More identities than are put into a map of maps by one call: between two calls, some are there and some are not."""
FLIPS = 60

NOBODY: List[Dict[str, Any]] = [{"peers": []}]
NEAR: List[Dict[str, Any]] = [{"peers": [{"labels": {}}]}]
ALL: List[Dict[str, Any]] = [{"peers": [{"entity": "all"}]}]


def documents(egress: List[Dict[str, Any]], ingress: List[Dict[str, Any]]) -> List[Document]:
    found = two_ends()
    found.append(fleet.policy("out", {"app": "a"}, egress=egress))
    found.append(fleet.policy("in", {"app": "b"}, ingress=ingress))
    found.append(fleet.node_policy("host", {}, ingress=ingress))
    return found


OLD, NEW = state_of(documents(ALL, NOBODY)), state_of(documents(NOBODY, NEAR))
BARE = replace(NEW, nested={**NEW.nested, "policies": {NUMBERS["a"]: NEW.nested["policies"][NUMBERS["a"]]}})
"""Another end of the change: of the three subjects only the sender keeps a policy, which lets nothing out."""


def crowded(state: NodeState) -> NodeState:
    """The same among many identities whose policies change as well."""
    first, last = sorted(NUMBERS.values())
    assert last - first > OTHERS
    policies = dict(state.nested["policies"])
    endpoints = state.tables["endpoints"]
    rows = dict(endpoints.rows)
    for number in range(1, OTHERS + 1):
        policies[first + number] = state.nested["policies"][NUMBERS["a"]]
        rows[(1 << 20) + number,] = (first + number, *next(iter(endpoints.rows.values()))[1:])
    return replace(
        state,
        nested={**state.nested, "policies": dict(sorted(policies.items()))},
        tables={**state.tables, "endpoints": Table(endpoints.key, endpoints.value, rows)},
    )


@dataclass
class Probe:
    """Sends packets of the endpoint a through its program, of new connections and of one that goes on."""

    program: int
    context: bytes
    number: int = 0

    def passes(self, to: str, source_port: Optional[int] = None) -> bool:
        """Whether a packet of a new connection, or of that one, passes."""
        self.number += 1
        ports = (source_port or 1024 + self.number % 60000, PORT)
        frame = f.ether(f.tcp(A, to, ports, f.ACK if source_port else f.SYN))
        return run_program(self.program, frame, self.context)[0] != TC_ACT_SHOT

    def mixtures(self) -> List[str]:
        """Where a packet passes that neither OLD nor NEW lets pass."""
        return [to for to in (B, ME) if self.passes(to) or self.passes(to, 1000)]

    def is_old(self) -> bool:
        """Whether OLD is in force, for what is new and for what goes on."""
        fresh, going_on = self.passes(WORLD), self.passes(WORLD, 1000)
        assert fresh == going_on
        return fresh


@pytest.fixture
def probe(place: Place) -> Iterator[Probe]:
    place.bring(OLD)
    made = Probe(pinned_program(place.pins), context_of(place.ifindex))
    yield made
    os.close(made.program)


class Watched(RealKernel):
    """Calls back after each system call that changes something."""

    def __init__(self, place: Place, path: Any) -> None:
        super().__init__(BUILD, place.pins, path)
        self.calls = 0
        self.ends_at: Optional[int] = None
        self.seen: List[bool] = []
        self.probe: Optional[Probe] = None

    def _wrote(self, count: int = 1) -> None:
        super()._wrote(count)
        self.calls += 1
        if self.probe is not None:
            assert self.probe.mixtures() == []
            self.seen.append(self.probe.is_old())
        if self.calls == self.ends_at:
            raise Ended


class Ended(Exception):
    """In place of a process that dies."""


@pytest.mark.parametrize("crowd", [False, True])
def test_a_change_is_seen_at_once_by_both_ends_and_the_host(
    place: Place, probe: Probe, tmp_path: Any, crowd: bool
) -> None:
    """Packets after each system call of a change, to and fro: all by the old, then all by the new."""
    states = [crowded(state) if crowd else state for state in (OLD, NEW)]
    place.bring(states[0])
    for is_old, want in ((False, states[1]), (True, states[0])):
        kernel = Watched(place, tmp_path)
        kernel.prepare(want.programs)
        steps = plan(want, kernel.read(want))
        kernel.probe = probe
        apply(kernel, steps)
        assert kernel.seen == sorted(kernel.seen, reverse=not is_old)
        assert {*kernel.seen} == {True, False} and kernel.calls > 8 + 300 * crowd
        assert probe.mixtures() == [] and probe.is_old() == is_old
        assert plan(want, kernel.read(want)) == []


@pytest.mark.parametrize("then", ["the old", "the new", "something else"])
def test_a_change_that_ends_anywhere_is_whole_and_gone_on_from(
    place: Place, probe: Probe, tmp_path: Any, then: str
) -> None:
    """After each system call of a change: one of both in force, for packets and for who reads; then another change."""
    want = {"the old": OLD, "the new": NEW, "something else": BARE}[then]
    ends: List[bool] = []
    while True:
        kernel = Watched(place, tmp_path)
        kernel.prepare(NEW.programs)
        kernel.ends_at = len(ends) + 1
        try:
            apply(kernel, plan(NEW, kernel.read(NEW)))
        except Ended:
            pass
        else:
            break
        assert probe.mixtures() == []
        ends.append(probe.is_old())
        other = Watched(place, tmp_path)
        there = other.read(OLD)
        assert there.nested["policies"] == (OLD if ends[-1] else NEW).nested["policies"]
        other.probe = probe
        apply(other, plan(want, there))
        assert plan(want, other.read(want)) == []
        assert probe.mixtures() == [] and probe.is_old() == (want is OLD)
        place.bring(OLD)
    assert ends == sorted(ends, reverse=True) and len(ends) > 8 and {*ends} == {True, False}


Seen = Tuple[int, List[str], Dict[bool, int]]


def hammer(pins: str, ifindex: int, talk: Connection) -> None:
    """Packets between both ends and to the host, until it is told to stop."""
    found = Probe(pinned_program(pins), context_of(ifindex))
    mixtures: List[str] = []
    seen = {True: 0, False: 0}
    talk.send("ready")
    while not talk.poll():
        for _ in range(50):
            mixtures += found.mixtures()
            seen[found.passes(WORLD)] += 1
    talk.send((found.number, mixtures, seen))


def flip_between(place: Place, states: Sequence[NodeState], times: int) -> Seen:
    place.bring(states[0])
    report: Seen = hammered(place, hammer, lambda number: place.bring(states[1 - number % 2]) and None, times)
    return report


def test_no_packet_passes_that_neither_generation_allows(place: Place) -> None:
    packets, mixtures, seen = flip_between(place, (OLD, NEW), FLIPS)
    assert mixtures == []
    assert packets > 5000 and min(seen.values()) * 20 > sum(seen.values()), (packets, seen)


def test_many_identities_change_at_once(place: Place) -> None:
    packets, mixtures, seen = flip_between(place, (crowded(OLD), crowded(NEW)), 6)
    assert mixtures == []
    assert packets > 1000 and min(seen.values()), (packets, seen)


def test_the_host_is_one_of_the_subjects() -> None:
    """Or the cases above would say less than they seem to."""
    assert {HOST, *NUMBERS.values()} == set(OLD.nested["policies"]) == set(NEW.nested["policies"])
    assert OLD.programs["from_endpoint"].constants["host_policy"] == 1
