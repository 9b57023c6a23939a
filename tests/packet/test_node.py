"""The programs do with packet after packet what the model of a node says: fate, counters, verdicts and rules of each.

`make fuzz` does it for longer: BPFLEET_FUZZ_EXAMPLES conversations.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, List, Union

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.document import Document, DocumentSet
from tests import fleet
from tests.packet import world
from tests.packet.kernel import Datapath
from tests.packet.modelled import FAILSAFE, places
from tests.packet.test_reference import NUMBERS, rows
from tests.packet.world import ADDRESSES, DEVICES
from tests.reference import fleets, traffic
from tests.reference.ends import Ends, Unsaid
from tests.reference.judge import Declared
from tests.reference.node import Node
from tests.reference.traffic import Sent

pytestmark = pytest.mark.root

Step = Union[List[Document], Sent]
EXAMPLES = int(os.environ.get("BPFLEET_FUZZ_EXAMPLES", "40"))
HERE = ("a", "b")
PLACES = {address: place for address, place in places().items() if place not in ("q", "t", "tunnel/d")}
MODELLED = (*HERE, "c", "u", "host", "gateway", "node2")
PASSES = {"to_endpoint", "to_tunnel", "to_stack", "neighbour"}


def clear(datapath: Datapath) -> None:
    """Nothing is known but the world, and of that only what the model knows."""
    for name in ("connections", "fragments", "policies", "flow_slots", "flows", "flow_counts", "flow_cursors"):
        datapath.maps[name].clear()
    for family in ADDRESSES.values():
        for name in set(family) - set(MODELLED) - {"world"}:
            with contextlib.suppress(FileNotFoundError):
                datapath.maps["addresses"].delete({"address": family[name]})


def change(datapath: Datapath, documents: List[Document], revision: int) -> None:
    """The policies of this node's endpoints as the compiler makes them: sets, maps, then revisions."""
    state = Compiler().compile(DocumentSet(documents), fleet.facts(1)).state
    for name in ("prefix_sets", "port_sets", "policies"):
        key = MAPS[name]["key"]["fields"][0]["name"]
        if name == "policies":
            datapath.maps[name].clear()
        for number, table in state.nested[name].items():
            if name != "policies" or number in (NUMBERS["a"], NUMBERS["b"]):
                datapath.set_inner(name, {key: number}, rows(table))
    for name in HERE:
        datapath.maps["endpoints"].update({"ifindex": DEVICES[name]}, world.endpoint_record(name, revision))


def play(datapath: Datapath, steps: List[Step]) -> None:
    """Take the steps in the kernel and in the model, and compare all that came of each."""
    clear(datapath)
    node = Node(Ends(PLACES, {name: name for name in HERE}), world.TUNNEL_PORT, failsafe=FAILSAFE)
    for number, step in enumerate(steps):
        if not isinstance(step, Sent):
            node.change(Declared(tuple(step)), set(HERE), FAILSAFE)
            change(datapath, step, node.ends.policy_revisions["a"])
            continue
        if step.is_to:
            result = datapath.run("to_endpoint", step.frame, DEVICES[step.name], DEVICES.get(step.via, 0))
        else:
            result = datapath.run("from_endpoint", step.frame, DEVICES[step.name])
        reasons = {name for name in result.counters if name != "audited"}
        try:
            fate = node.receives(step.name, step.frame, step.via) if step.is_to else node.sends(step.name, step.frame)
        except Unsaid:
            assert len(reasons) == 1 and reasons <= PASSES | {"fragment", "hop_limit"}, (number, step, result)
            continue
        have: Dict[str, Any] = {
            "counters": result.counters,
            "passes": result.action != "shot",
            "events": [_heard(event) for event in result.events],
        }
        want = {
            "counters": fate.counters,
            "passes": fate.passes,
            "events": list(fate.events),
        }
        assert have == want, f"step {number}, {step.name} {step.via} {step.frame[12:].hex()}"


def _heard(event: Dict[str, Any]) -> tuple[str, int, str]:
    drop = event["verdict"] == "drop"
    return event["verdict"], event["rule_id"], "" if drop else event["direction"]


@st.composite
def conversations(draw: st.DrawFn) -> List[Step]:
    """Policies, then packets of a few conversations, with other policies in between."""
    policies = draw(st.lists(fleets.clusters(NUMBERS), min_size=1, max_size=3))
    talks = tuple(traffic.talk(number) for number in draw(st.lists(st.integers(0, 999), min_size=1, max_size=3)))
    steps: List[Step] = [policies[0]]
    for number in draw(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40)):
        if number % 8 == 0:
            steps.append(policies[number // 8 % len(policies)])
        else:
            steps.append(traffic.sent(number, talks, ADDRESSES))
    return steps


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],  # making an example smaller takes minutes, and a step says enough
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(conversations())
def test_programs_are_the_model(datapath: Datapath, steps: List[Step]) -> None:
    play(datapath, steps)
