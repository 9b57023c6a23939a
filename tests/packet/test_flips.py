"""No packet is judged by a mixture of two policies, however often they change while it passes.

Two sets of policies, A and B, take turns by the real plan and apply. Meanwhile another process, on a CPU of its own,
feeds packets of new connections to the program that is pinned, and reads what was decided from its events. For every
flow the reference judge says what A decides and what B does, by which rule; a third answer is a mixture. A and B use
every part of a policy map (peers, CIDR classes, intervals, audit), with class and interval numbers that mean something
else in the other.

Here each event is held to its own end; that both ends are judged by the same of the two is for test_generations.py.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Dict, List, Set, Tuple

import pytest

from bpfleet.loader import layout, syscall
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.document import Document
from bpfleet.model.state import Table
from bpfleet.observe.reader import Reader, open_slots
from tests import fleet
from tests.packet import frames as f
from tests.packet.kernel import run_program
from tests.packet.place import NUMBERS, Place, context_of, hammered, inner_of, pinned_program, state_of, two_ends
from tests.reference.judge import Flow, Verdict, judge

pytestmark = pytest.mark.root

ADDRESSES = {"identity/b": "10.77.1.2"}
OUTSIDE = ("198.51.100.7", "198.51.100.200", "203.0.113.9", "192.0.2.200", "8.8.8.8")
PORTS = (1, 55, 80, 150, 443, 8080)
FLIPS = 40
BATCH = 60


def tcp(first: int, last: int) -> List[Dict[str, Any]]:
    return [{"protocol": "tcp", "port": first, "end_port": last}]


def cidr(network: str, *parts: str) -> Dict[str, Any]:
    return {"cidr": network, **({"except": list(parts)} if parts else {})}


FIRST = {
    "egress": [
        {"peers": [cidr("198.51.100.0/24", "198.51.100.128/25")], "ports": tcp(1, 100)},
        {"action": "deny", "peers": [cidr("203.0.113.0/24")]},
        {"peers": [{"entity": "all"}], "ports": tcp(443, 443)},
        {"peers": [{"labels": {}}]},
    ],
    "ingress": [
        {"peers": [{"labels": {"app": "a"}}], "ports": tcp(1, 100)},
        {"action": "deny", "peers": [{"labels": {}}], "ports": tcp(55, 55)},
    ],
}
SECOND = {
    "egress": [
        {"peers": [cidr("192.0.2.128/25"), cidr("203.0.113.0/24")], "ports": tcp(50, 200)},
        {"action": "deny", "peers": [cidr("198.51.100.0/25")], "ports": tcp(1, 60)},
        {"peers": [cidr("198.51.100.0/24")]},
        {"action": "deny", "ports": tcp(443, 500)},
        {"peers": [{"labels": {"app": "b"}}]},
    ],
    "ingress": [
        {"peers": [{"entity": "cluster"}], "ports": tcp(50, 9000)},
        {"action": "deny", "peers": [{"labels": {"app": "a"}}], "ports": tcp(80, 80)},
    ],
}
# What is enforced differs already; an audit policy on top makes one judgement two look-ups of the same map.
TRIAL = ({"egress": [{"peers": [cidr("8.0.0.0/8")]}]}, {"egress": [{"ports": tcp(100, 500)}]})


def documents(policies: Dict[str, Any], trial: Dict[str, Any]) -> List[Document]:
    found = two_ends()
    found.append(fleet.policy("out", {"app": "a"}, egress=policies["egress"]))
    found.append(fleet.policy("in", {"app": "b"}, ingress=policies["ingress"]))
    found.append(fleet.document("policy", "trial", selector={"app": "a"}, mode="audit", **trial))
    return found


A, B = documents(FIRST, TRIAL[0]), documents(SECOND, TRIAL[1])


def question(direction: str, peer: str, port: int) -> Flow:
    return Flow(direction, "a" if direction == "egress" else "b", peer, "tcp", port)


Asked = Tuple[str, str, int]
"""(direction, the address the packet goes to, port): what an event is recognised by."""


def expected() -> Dict[Asked, Set[Verdict]]:
    """For every end of every flow, what A says of it and what B says."""
    found: Dict[Asked, Set[Verdict]] = {}
    for port in PORTS:
        for peer in (*OUTSIDE, "identity/b"):
            flow = question("egress", peer, port)
            found["egress", ADDRESSES.get(peer, peer), port] = {judge(A, flow), judge(B, flow)}
        flow = question("ingress", "identity/a", port)
        found["ingress", ADDRESSES["identity/b"], port] = {judge(A, flow), judge(B, flow)}
    return found


@dataclass
class Report:
    """What a hammer saw: how often each verdict was given, and those that neither A nor B gives."""

    packets: int
    seen: Counter[Tuple[Asked, Verdict]]
    mixtures: List[Tuple[Asked, Verdict]]
    lost: int


def hammer(pins: str, ifindex: int, talk: Connection) -> None:
    """Packets of new connections, one after the other, until it is told to stop."""
    program = pinned_program(pins)
    slots = open_slots(pins)
    assert slots is not None
    reader = Reader(slots)
    context = context_of(ifindex)
    allowed = expected()
    targets = sorted({(address, port) for _, address, port in allowed})
    report = Report(0, Counter(), [], 0)
    talk.send("ready")
    while not talk.poll():
        for number in range(report.packets, report.packets + BATCH):
            address, port = targets[number % len(targets)]
            frame = f.ether(f.tcp("10.77.1.1", address, (1024 + number % 60000, port)))
            run_program(program, frame, context)
        report.packets += BATCH
        batch = reader.read()
        report.lost += batch.lost
        for event in batch.events:
            direction = layout.name_of("direction", event["direction"])
            asked = (direction, str(event["destination"]), event["destination_port"])
            verdict = Verdict(layout.name_of("verdict", event["verdict"]), event["rule_id"])
            report.seen[asked, verdict] += 1
            if verdict not in allowed[asked]:
                report.mixtures.append((asked, verdict))
    talk.send(report)
    slots.close()


def test_no_packet_is_judged_by_a_mixture(place: Place) -> None:
    states = (state_of(A), state_of(B))
    place.bring(states[0])
    kinds: Counter[str] = Counter()

    def flip(number: int) -> None:
        steps = place.bring(states[1 - number % 2])
        kinds.update(step.describe().partition(":")[0].partition("(")[0].strip() for step in steps)

    report: Report = hammered(place, hammer, flip, FLIPS)
    # Identities, and the sets that only one of the two uses, change in every round.
    assert kinds["swap 2 maps of policies_staged"] == FLIPS and len(kinds) > 4, kinds
    assert report.mixtures == []
    # The case is worth its name: of each flow that A and B differ about, both answers were given, many times.
    for asked, verdicts in expected().items():
        judged = sum(report.seen[asked, verdict] for verdict in verdicts)
        for verdict in verdicts:
            assert report.seen[asked, verdict] * 20 > judged or asked[0] == "ingress", (asked, verdict, report.packets)
    assert len([one for one in expected().values() if len(one) == 2]) > 25
    assert report.packets > 2000 and report.lost == 0


def test_a_mixture_would_be_seen(place: Place) -> None:
    """The same hammer over a change that writes into the map in use, entry by entry: why maps are swapped whole."""
    states = (state_of(A), state_of(B))
    place.bring(states[0])
    both = {name: {**states[0].nested[name], **states[1].nested[name]} for name in ("prefix_sets", "port_sets")}
    subject = NUMBERS["a"]
    room = max(len(one.nested["policies"][subject].rows) for one in states) * 2
    rows = {(peer, 7, 99, 9): (1, 1, 0, 0, 0) for peer in range(room)}  # a direction that nobody asks for
    wide = states[0].nested["policies"][subject]
    wide = Table(wide.key, wide.value, {**wide.rows, **rows})
    policies = {**states[0].nested["policies"], subject: wide}
    place.bring(replace(states[0], nested={**states[0].nested, **both, "policies": policies}))
    inner = inner_of(place.pins, subject)

    def flip(number: int) -> None:
        for gone in rows:
            syscall.map_delete(inner, _key(gone))
        old, new = (states[(number + n) % 2].nested["policies"][subject].rows for n in (0, 1))
        for key in old.keys() - new.keys():
            syscall.map_delete(inner, _key(key))
        time.sleep(0.005)
        for key, value in new.items():
            syscall.map_update(inner, _key(key), _value(value))

    try:
        assert hammered(place, hammer, flip, FLIPS).mixtures != []
    finally:
        os.close(inner)


def _key(row: Tuple[Any, ...]) -> bytes:
    names = [field["name"] for field in MAPS["policy_entries"]["key"]["fields"]]
    return layout.encode("policy_entries", "key", dict(zip(names, row)))


def _value(row: Tuple[Any, ...]) -> bytes:
    names = [field["name"] for field in MAPS["policy_entries"]["value"]["fields"]]
    return layout.encode("policy_entries", "value", dict(zip(names, row)))
