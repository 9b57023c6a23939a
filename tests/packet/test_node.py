"""The programs do with packet after packet what the model of a node says: fate, counters, verdicts and rules of each,
and how it goes on.

`make fuzz` does it for longer: BPFLEET_FUZZ_EXAMPLES conversations with a node, and as many with one that is judged.
"""

from __future__ import annotations

import ipaddress
import os
import random
import time
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Sequence, Tuple, Union

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.loader.staging import settled, switched
from bpfleet.model.document import Document, DocumentSet
from tests import fleet
from tests.packet import frames as f
from tests.packet import world
from tests.packet.kernel import Datapath, Result
from tests.packet.modelled import HELD, LATE, Modelled, readable
from tests.packet.test_reference import NUMBERS, rows
from tests.packet.world import DEVICES, Forget, Frontend, Wait
from tests.reference import fleets, traffic
from tests.reference.ends import EGRESS, HOST, INGRESS, key_of, reverse
from tests.reference.judge import Declared
from tests.reference.traffic import BACKEND_PORT, BACKENDS, Sent

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_cpu")]

EXAMPLES = int(os.environ.get("BPFLEET_FUZZ_EXAMPLES", "40"))
NAMES = ("a", "b", "t", "c", "u", "host", "gateway", "node2", "world")
MORE = {
    4: {"a2": "10.1.0.11", "front": "10.96.0.1", "link": "169.254.0.1", "late": LATE[4]},
    6: {"a2": "fd00:1::11", "front": "fd96::1", "link": "fe80::1", "late": LATE[6]},
}
ADDRESSES = {
    number: {**{name: family[name] for name in NAMES}, **MORE[number]} for number, family in world.ADDRESSES.items()
}
FAILSAFE = [{"protocol": "tcp", "port": 22, "direction": "ingress"}]
"""Of a cluster that says nothing of them."""


BACKENDS_AND_CLIENT = (*BACKENDS, "a")


UNATTACHED = "b"
"""The identity of u."""


class NewAddresses:
    """Some address changed: every connection is judged once more."""


class Settle:
    """What a change of policies staged goes where it stays."""


Step = Union[List[Document], Sent, Frontend, Forget, Wait, NewAddresses, Settle]


@dataclass(frozen=True)
class Story:
    """What happens, in this order. identity: of the endpoint t, a name."""

    identity: str
    steps: Tuple[Step, ...]


class Played:
    """A node in the kernel and in the model, to which the same happens."""

    def __init__(self, datapath: Datapath, is_judged: bool, of_tap: str) -> None:
        self.datapath = datapath
        self.identities = {"a": "a", "b": "b", "t": of_tap}
        self.addresses_revision = 1
        self.in_force: Dict[int, Any] = {}
        self.settled: Dict[int, Any] = {}
        self.staged: List[int] = []
        """Rows of policy maps by subject: of those in force, of those in `policies`; and whose are staged."""
        datapath.reset()
        places = {}
        for family in ADDRESSES.values():
            for name, address in family.items():
                owner = "gateway" if name == "link" else traffic.HERE.get(name, name)
                if owner not in HELD:
                    continue
                record = world.address_record(owner)
                identity = UNATTACHED if owner == "u" else self.identities.get(owner)
                if identity:
                    record["identity"] = NUMBERS[identity]
                datapath.maps["addresses"].update({"address": address}, record)
                places[ipaddress.ip_address(address)] = f"unattached/{identity}" if owner == "u" else HELD[owner]
        self.model = Modelled(is_judged, places, self.identities)
        self.since, self.stood = _tick(), 0
        for name in self.identities:
            record = {**world.endpoint_record(name), "identity": NUMBERS[self.identities[name]]}
            datapath.maps["endpoints"].update({"ifindex": DEVICES[name]}, record)
        datapath.maps["node"].update({"index": 0}, world.node_record())

    def stand_still(self) -> None:
        """No time passes but what a step says: what did is taken back."""
        passed = _tick() - self.since
        if passed > self.stood:
            world.grow_older(self.datapath, self.stood - passed)
            self.stood = passed

    def change(self, documents: List[Document]) -> None:
        """The policies of this node's ends as the compiler makes them: sets, maps, then the generation. What differs is
        staged and stays there until the next change or Settle (bpf/include/bpfleet/generation.h)."""
        self.settle()
        state = Compiler().compile(DocumentSet(documents), fleet.facts(1)).state
        here = {world.IDENTITIES[HOST], *(NUMBERS[identity] for identity in self.identities.values())}
        for name in ("prefix_sets", "port_sets"):
            key = MAPS[name]["key"]["fields"][0]["name"]
            for number, table in state.nested[name].items():
                self.datapath.set_inner(name, {key: number}, rows(table))
        tables = state.nested["policies"]
        wanted = {number: rows(tables[number]) for number in here if number in tables}
        for number in here:
            if wanted.get(number) != self.in_force.get(number):
                self.staged.append(number)
                self.datapath.set_inner("policies_staged", {"identity": number}, wanted.get(number, ()))
        self.in_force = wanted
        self.datapath.maps["failsafe"].clear()
        for record in rows(state.tables["failsafe"]):
            self.datapath.maps["failsafe"].update(*record)
        generation = self.datapath.maps["generation"]
        generation.update({"index": 0}, {"word": switched(generation.lookup({"index": 0})["word"])})
        self.model.node.change(Declared(tuple(documents)), _failsafe(documents))

    def settle(self) -> None:
        """What is in force goes where it stays. Nobody can tell."""
        policies, generation = self.datapath.maps["policies"], self.datapath.maps["generation"]
        for number in self.staged:
            if number in self.in_force:
                self.datapath.set_policy(number, self.in_force[number])
            elif number in self.settled:
                policies.delete({"identity": number})
        generation.update({"index": 0}, {"word": settled(generation.lookup({"index": 0})["word"])})
        self.datapath.maps["policies_staged"].clear()
        self.staged, self.settled = [], self.in_force

    def apply(self, step: Step) -> None:
        """Anything but a frame."""
        if isinstance(step, list):
            self.change(step)
        elif isinstance(step, Settle):
            self.settle()
        elif isinstance(step, NewAddresses):
            self.addresses_revision += 1
            node = world.node_record(addresses_revision=self.addresses_revision)
            self.datapath.maps["node"].update({"index": 0}, node)
            self.model.node.ends.addresses_revision += 1
        else:
            assert not isinstance(step, Sent)
            world.apply(self.datapath, step)
            self.model.apply(step)

    def _open_against(self, step: Sent) -> None:
        """Where both ends open the same connection, copies speak for the first of the two until the tick is over
        (bpf/include/bpfleet/connection_copy.h). Here no tick ever is, so it is as if it were now."""
        packet = readable(step.frame)
        if packet and packet.kind == "opens":
            against = {reverse(key_of(direction, packet)) for direction in (EGRESS, INGRESS)}
            if against & set(self.model.node.ends.records):
                self.datapath.forget_copies()

    def _taken_over(self, ends: Dict[Any, str]) -> None:
        """As well where another end has taken a connection over: what the host sends under an endpoint's address."""
        records = self.model.node.ends.records
        if any(records[key].at != at for key, at in ends.items() if key in records):
            self.datapath.forget_copies()

    def send(self, step: Sent, told: str) -> Result:
        """A frame, and compare all that comes of it."""
        self._open_against(step)
        result = self.datapath.run(step.program, step.frame, DEVICES[step.at], DEVICES.get(step.via, 0))
        gone_to = None
        if "hop_limit" in result.counters:  # an answer is about the frontend
            last = result.events[-1]
            gone_to = ipaddress.ip_address(last["destination"]), last["destination_port"]
        ends = {key: record.at for key, record in self.model.node.ends.records.items()}
        fate = self.model.send(step.program, step.at, step.frame, step.via, result.frame, gone_to)
        self._taken_over(ends)
        have: Dict[str, Any] = {
            "counters": result.counters,
            "passes": result.action != "shot",
            "events": [heard(event) for event in result.events],
        }
        want: Dict[str, Any] = {
            "counters": fate.counters,
            "passes": fate.passes,
            "events": list(fate.events),
        }
        if fate.passes:
            have["left"], want["left"] = (
                readable(result.frame) or result.frame,
                fate.left or readable(step.frame) or step.frame,
            )
        assert have == want, f"{told}, {step.program} at {step.at} via {step.via}: {step.frame[12:].hex()}"
        (tap,) = self.model.node.taps
        if fate.passes and (not fate.reason or (fate.reason in ("service_no_backend", "hop_limit") and step.at == tap)):
            # Only transmitted to the device, where it is met again.
            self.send(Sent("to_endpoint", tap, result.frame, step.at), f"{told}, delivered")
        return result


def _tick() -> int:
    return time.monotonic_ns() >> 30


def _failsafe(documents: List[Document]) -> FrozenSet[Tuple[str, int, str]]:
    (cluster,) = (document.spec for document in documents if document.kind == "cluster")
    ports = cluster.get("failsafe_ports", FAILSAFE)
    return frozenset((one["protocol"], one["port"], one["direction"]) for one in ports)


def heard(event: Dict[str, Any]) -> Tuple[str, int, str]:
    """What the model says of an event too."""
    drop = event["verdict"] == "drop"
    return event["verdict"], event["rule_id"], "" if drop else event["direction"]


def frontend(number: int) -> Frontend:
    """The frontend of one family and protocol, with some backends."""
    family, protocol = (4, 6)[number % 2], (f.TCP, f.UDP)[number // 2 % 2]
    names = [name for bit, name in enumerate(BACKENDS_AND_CLIENT) if number // 64 >> bit & 1 and number % 64 > 12]
    x = ADDRESSES[family]
    listed = 1 + number % 2 + 2 * sum(1 << BACKENDS_AND_CLIENT.index(name) for name in names)
    return Frontend(x["front"], 80, protocol, tuple((x[name], BACKEND_PORT) for name in names), listed)


def again(dice: random.Random, steps: Sequence[Any]) -> List[Any]:
    """One of the latest frames once more, or twice: from the third on they go by a copy of their connection."""
    before = [step for step in steps if hasattr(step, "frame")][-6:]
    return [dice.choice(before)] * dice.choice((1, 2, 2)) if before else []


WAITS = (7, 7, 48, 48, 3000)
"""Ticks. No sum of a few comes near the ends of a life, which are at 10, 56 and 7451."""
WAITS_AT_MOST = 7


@st.composite
def stories(draw: st.DrawFn, of_node: bool) -> Story:
    """Policies, then packets of a few conversations; other policies, services and time in between. of_node: there are
    policies of the node itself."""
    policies = draw(st.lists(fleets.clusters(NUMBERS, of_node), min_size=1, max_size=3))
    # Hypothesis likes to draw the same number again: with the policies it makes another story.
    dice = random.Random(f"{draw(st.integers(0, 2**64 - 1))} {policies}")
    talks = tuple(traffic.talk(dice.getrandbits(32)) for _ in range(dice.randint(1, 4)))
    steps: List[Step] = [policies[0]]
    steps += [frontend(dice.getrandbits(32)) for _ in range(dice.randint(0, 8))]
    for _ in range(dice.randint(10, 60)):
        chance = dice.random()
        if chance < 0.06:
            steps.append(dice.choice(policies))
        elif chance < 0.10:
            steps.append(frontend(dice.getrandbits(32)))
        elif chance < 0.14 and sum(isinstance(step, Wait) for step in steps) < WAITS_AT_MOST:
            steps.append(Wait(dice.choice(WAITS)))
        elif chance < 0.16:
            steps.append(dice.choice((NewAddresses(), Forget("translations"), Forget("connections"))))
        elif chance < 0.19:
            steps.append(Settle())
        elif chance < 0.40:
            steps += again(dice, steps)
        else:
            steps.append(traffic.sent(dice.getrandbits(32), talks, ADDRESSES))
    return Story(draw(st.sampled_from(("a", "c"))), tuple(steps))


@pytest.mark.parametrize("kind", ["datapath", "host_datapath"])
@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],  # making an example smaller takes minutes, and a step says enough
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_programs_are_the_model(request: pytest.FixtureRequest, kind: str, data: st.DataObject) -> None:
    is_judged = kind == "host_datapath"
    story = data.draw(stories(is_judged))
    played = Played(request.getfixturevalue(kind), is_judged, story.identity)
    for number, step in enumerate(story.steps):
        played.stand_still()
        if isinstance(step, Sent):
            played.send(step, f"step {number}")
        else:
            played.apply(step)
