"""Maps that are full to the last entry, several at once, on this machine's kernel by the real compiler and plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.errors import InvalidInput
from bpfleet.loader.capacity import overfull, usage
from bpfleet.loader.plan import plan
from bpfleet.loader.steps import ResizeMaps
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts, NodeState
from tests import fleet
from tests.packet.place import Place, state_of

pytestmark = pytest.mark.root

LIMITS = {"addresses": 256, "endpoints": 16, "policy_entries": 256, "cidrs": 16, "frontends": 16, "blocked_cidrs": 16}
"""The least that may be declared."""
FULL = {"addresses", "blocked", "policy_entries", "prefix_classes", "services"}
PROGRAMS = ("from_endpoint", "from_underlay", "socket_connect4")


def world(variant: int = 0, limits: Dict[str, int] | None = None, **more: int) -> List[Document]:
    """What fills those maps to the last entry, and more of each than that; each variant by other entries."""
    blocked = [f"203.{variant}.{number}.0/24" for number in range(16 + more.get("blocked_cidrs", 0))]
    cidrs = [{"cidr": f"198.{variant}.{number}.0/24"} for number in range(16 + more.get("cidrs", 0))]
    ports = [{"protocol": "tcp", "port": 1000 + number} for number in range(237 + more.get("policy_entries", 0))]
    frontends = [f"10.96.{variant}.{number + 1}:80" for number in range(16 + more.get("frontends", 0))]
    found = [
        fleet.document(
            "cluster", "fleet", id=1, members=["h1", "h2"], limits={**LIMITS, **(limits or {})}, blocked_cidrs=blocked
        ),
        fleet.node(1),
        fleet.node(2),
        fleet.identity("far"),
        fleet.policy(
            "full",
            {"app": "near"},
            ingress=[{"peers": cidrs}],
            egress=[{"peers": [{"labels": {"app": "far"}}], "ports": ports}],
        ),
        fleet.service("all", frontends, [{"labels": {"app": "far"}}]),
    ]
    for number in range(16):
        attach: Dict[str, Any] = {"netns": f"w{number}"} if number else {"interface": "dev-a"}
        name, address = f"near-{number}", f"10.77.1.{number + 1}"
        found.append(fleet.identity(name, {"app": "near"} if number == 0 else None))
        found.append(fleet.document("endpoint", name, node="h1", identity=name, addresses=[address], attach=attach))
    for number in range(236 + more.get("addresses", 0)):
        name, address = f"far-{number}", f"10.77.2.{number + 1 + 2 * variant}"
        attach = {"netns": name}
        found.append(fleet.document("endpoint", name, node="h2", identity="far", addresses=[address], attach=attach))
    return found


def state(documents: List[Document]) -> NodeState:
    """With the programs that bring all of the maps."""
    facts = Facts("h1", dict.fromkeys(("eth0", "dev-a", "dev-b"), (1500, ())))
    programs = Compiler().compile(DocumentSet(documents), facts).state.programs
    return replace(state_of(documents), programs={name: programs[name] for name in PROGRAMS})


def refused(want: NodeState, have: NodeState) -> Dict[str, int]:
    """By map what is needed."""
    return {str(error.details["map"]): int(str(error.details["peak"])) for error in overfull(want, have)}


def test_the_last_entry_of_every_map_has_its_place(place: Place) -> None:
    full = state(world())
    assert not FULL.difference(one.map for one in usage(full) if one.wanted == one.limit)
    place.bring(full)
    have = place.kernel.read(full)
    assert plan(full, have) == []
    for limit, overfilled in (
        ("addresses", {"addresses": 257}),
        ("blocked_cidrs", {"blocked": 17}),
        ("frontends", {"services": 17}),
        ("policy_entries", {"policy_entries": 257}),
        ("cidrs", {"prefix_classes": 17, "policy_entries": 257}),
    ):
        want = state(world(**{limit: 1}))
        assert refused(want, have) == overfilled
        with pytest.raises(InvalidInput, match=r"has room for \d+ entries"):
            plan(want, have)

    # All others take the place of those that are there: both must fit for a moment, so their room is made, and no more.
    other = world(1)
    both = {"addresses": 258, "blocked": 32, "services": 32}
    assert refused(state(other), have) == both
    scarce = {"addresses": 258, "blocked_cidrs": 32, "frontends": 31}
    assert refused(state(world(1, scarce)), have) == {"services": 32}
    for limits in ({**scarce, "frontends": 32}, {}):
        want = state(world(1, limits))
        steps = place.bring(want)
        assert [type(step) for step in steps].count(ResizeMaps) == 1
        assert plan(want, place.kernel.read(want)) == []
