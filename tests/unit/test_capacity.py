"""How large maps are, what fills them, and what is refused before anything is changed."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Dict, List, Sequence

import pytest

from bpfleet.compile import limits
from bpfleet.compile.compiler import Compiler
from bpfleet.errors import InvalidInput
from bpfleet.loader.capacity import LIMITS, blame, kept_sizes, overfull, usage
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.loader.layout import layout
from bpfleet.loader.objects import history_shares
from bpfleet.loader.plan import plan
from bpfleet.loader.real import INNER_MAPS
from bpfleet.loader.steps import ResizeMaps
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import CLUSTER, DEFAULT_LIMITS
from bpfleet.model.state import Compiled, NodeState
from bpfleet.observe.usage import gauge, rooms_of
from tests import fleet

FIXED = {
    "balance_work",  # a place to work for each CPU
    "packet_work",  # the same
    "fragments",  # forgets the oldest
    "backend_entries",  # an array: as long as its list
    "connections_next",  # connections, but while that is made anew
    "connection_copies",  # from that of connections and the number of CPUs
    "copy_epoch",
    "judgement_copies",  # from that of connection_copies
    "counters",  # one for each reason
    "direct_paths",  # members that share a place take it from each other
    "events",  # a ring that overwrites
    "event_cursor",
    "failsafe",
    "flow_counts",  # from that of flows and the number of CPUs
    "flow_cursors",
    "generation",
    "node",
}
"""Maps whose size no limit declares."""


def declared(**values: int) -> Document:
    return fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits=values)


def compiled(documents: Sequence[Document], **values: int) -> Compiled:
    others = [document for document in documents if document.kind != "cluster"]
    return Compiler().compile(DocumentSet([declared(**values), *others]), fleet.facts(1))


def test_every_map_has_its_size_from_a_limit() -> None:
    sizes = limits.sizes_of(fleet.cluster(["h1"]))
    assert set(sizes) == set(MAPS) - FIXED
    assert set(LIMITS) == set(sizes) - {"port_intervals"}
    assert set(LIMITS.values()) <= set(DEFAULT_LIMITS)
    (shape,) = [field.type for field in CLUSTER.fields if field.name == "limits"]
    assert [field.name for field in shape.fields] == list(DEFAULT_LIMITS)  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", DEFAULT_LIMITS)
def test_a_declared_limit_sizes_its_maps(limit: str) -> None:
    default = limits.sizes_of(fleet.cluster(["h1"]))
    larger = limits.sizes_of(declared(**{limit: DEFAULT_LIMITS[limit] + 1000}))
    grown = {name for name in default if larger[name] > default[name]}
    assert grown == {name for name, field in LIMITS.items() if field == limit}
    state = compiled(fleet.quickstart(), **{limit: DEFAULT_LIMITS[limit] + 1000}).state
    assert state.sizes == larger and all(program.sizes == larger for program in state.programs.values())


def test_defaults_are_those_of_the_headers() -> None:
    """Packet tests and benches load the objects as they are; a node's maps are at least as large."""
    sizes = limits.sizes_of(fleet.cluster(["h1"]))
    outer = {name for name in sizes if "inner" not in MAPS[name] and MAPS[name]["max_entries"] > 1}
    assert {name: MAPS[name]["max_entries"] for name in outer} == {name: sizes[name] for name in outer}
    assert history_shares(sizes["flows"]) == {"flows_passed": 8192, "flows_dropped": 2048}  # as in base.h
    assert history_shares(2 + 17) == {"flows_passed": 14, "flows_dropped": 3} and history_shares(0) == {}


def test_what_a_plan_takes_of_each_map_is_counted() -> None:
    want = compiled(fleet.quickstart()).state
    fewer = [one for one in fleet.quickstart() if one.key not in ("endpoint/db-1", "policy/api")]
    have = compiled(fewer).state
    found = {one.map: one for one in usage(want, have)}
    assert (found["addresses"].used, found["addresses"].wanted) == (len(have.tables["addresses"].rows), 12)
    assert found["policy_entries"].wanted == max(len(table.rows) for table in want.nested["policies"].values())
    assert found["policy_entries"].key in want.nested["policies"]
    assert all(one.limit == want.sizes.get(one.map, one.limit) for one in found.values())
    assert {"addresses", "endpoints", "policies", "policy_entries", "services", "blocked"} <= set(found)


def rules(count: int) -> List[Dict[str, Any]]:
    return [{"ports": [{"protocol": "tcp", "port": port} for port in range(1, count + 1)]}]


def networks(count: int) -> List[str]:
    return [f"10.{index // 256}.{index % 256}.0/24" for index in range(count)]


OVERFULL: Dict[str, Any] = {
    "addresses": (
        {"addresses": 256},
        [
            fleet.document(
                "endpoint", f"many-{n}", node="h2", identity="db", attach={"netns": f"x{n}"},
                addresses=[f"fd77:0:0:2::{n}:{host:x}" for host in range(150)],
            )
            for n in (10, 11)
        ],
        "endpoint/many-10",
    ),
    "endpoints": (
        {"endpoints": 16},
        [
            fleet.document(
                "endpoint", f"many-{n}", node="h1", identity="db", attach={"interface": f"tap{n}"},
                addresses=[f"10.77.1.{100 + n}"],
            )
            for n in range(15)
        ],
        "endpoint/many-0",
    ),
    "policy_entries": (
        {"policy_entries": 300},
        [fleet.policy("wide", {"app": "web"}, ingress=rules(200), egress=rules(200))],
        "policy/wide",
    ),
    "prefix_classes": (
        {"cidrs": 16},
        [fleet.policy("wide", {"app": "web"}, egress=[{"peers": [{"cidr": cidr} for cidr in networks(17)]}])],
        "policy/wide",
    ),
    "services": (
        {"frontends": 16},
        [fleet.service("many", [f"10.96.0.1:{port}" for port in range(1, 18)], [{"address": "192.0.2.53"}])],
        "service/many",
    ),
    "blocked": ({"blocked_cidrs": 16}, [], "cluster/fleet"),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERFULL)
def test_an_overfull_plan_names_map_document_and_way_out(name: str) -> None:
    values, added, culprit = OVERFULL[name]
    documents = [one for one in fleet.quickstart() if one.kind != "cluster"]
    blocked = networks(17) if name == "blocked" else []
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits=values, blocked_cidrs=blocked)
    facts = dataclasses.replace(
        fleet.facts(1), devices={**fleet.facts(1).devices, **{f"tap{n}": (1500, ()) for n in range(15)}}
    )
    before = Compiler().compile(DocumentSet([declared(**values), *documents]), facts).state
    after = Compiler().compile(DocumentSet([cluster, *documents, *added]), facts)
    assert overfull(before) == []
    (error,) = overfull(after.state, before, after.identities)
    assert ("of identity web has room" in error.what) == (name == "policy_entries")
    said = blame(error, after, {culprit, *(one.key for one in added), "cluster/fleet"})
    assert said.resource == culprit and said.details["map"] == name
    assert f"the map {name}" in said.what and culprit in said.what
    assert f"raise limits.{LIMITS[name]} of the cluster" in said.remedy
    assert said.details["needed"] > said.details["limit"] >= said.details["used"]
    with pytest.raises(InvalidInput, match=f"the map {name}"):
        plan(after.state, before)


def test_what_one_direction_wants_is_counted() -> None:
    """Also where it alone is more than the map holds."""
    wide = fleet.policy("wide", {"app": "web"}, ingress=rules(1000))
    (error,) = overfull(compiled([*fleet.quickstart(), wide], policy_entries=300).state)
    assert re.fullmatch(r"the map policy_entries of identity \S+ has room for 300 entries, 1001 are needed", error.what)


def test_one_rule_without_end_is_refused_while_it_is_counted() -> None:
    """The compiler gives up on it rather than build what no map will hold."""
    says = (
        "the map policy_entries of identity web has room for 300 entries, more than 1200 are needed for ingress alone, "
        "counted up to policy wide"
    )
    with pytest.raises(InvalidInput, match=says) as caught:
        compiled([*fleet.quickstart(), fleet.policy("wide", {"app": "web"}, ingress=rules(1201))], policy_entries=300)
    assert caught.value.resource == "policy/wide" and "limits.policy_entries" in caught.value.remedy


def test_a_map_holds_what_comes_beside_what_goes() -> None:
    """New rows are put before old ones are removed: where both do not fit, the change is two."""
    first = [fleet.service("one", [f"10.96.0.1:{port}" for port in range(1, 10)], [])]
    second = [fleet.service("two", [f"10.96.0.2:{port}" for port in range(1, 10)], [])]
    have = compiled([*fleet.quickstart(), *first], frontends=16).state
    want = compiled([*fleet.quickstart(), *second], frontends=16)
    (error,) = overfull(want.state, have)
    assert "18 are needed while 9 take the place of 9" in error.what
    assert error.remedy.startswith("Remove in one change and add in the next")
    assert overfull(compiled(fleet.quickstart(), frontends=16).state, have) == []


def frontends(count: int) -> List[Document]:
    """The quickstart, and a service of so many frontends."""
    return [*fleet.quickstart(), fleet.service("many", [f"10.96.0.1:{port}" for port in range(1, count + 1)], [])]


def resizes(want: NodeState, have: NodeState) -> Dict[int, Dict[str, int]]:
    """By place in the plan, counted from the end but for the first, what it resizes."""
    steps = [step for step in plan(want, have) if step.kind != "LoadProgram"]
    return {at and at - len(steps): dict(step.sizes) for at, step in enumerate(steps) if isinstance(step, ResizeMaps)}


def test_a_changed_limit_is_a_step_of_the_plan() -> None:
    """The last one, unless the change itself needs the room."""
    small, large = compiled(frontends(9), frontends=16).state, compiled(frontends(9), frontends=100).state
    grown, shrunk = {"backends": 200, "services": 100}, {"backends": 32, "services": 16}
    assert resizes(large, small) == {0: grown} and resizes(small, large) == {0: shrunk}
    assert "backends from 32 to 200, services from 16 to 100 entries" in plan(large, small)[0].describe()
    more = compiled(frontends(17), frontends=100, blocked_cidrs=16).state
    assert resizes(more, small) == {0: grown, -1: {"blocked": 16}}, "what shrinks does so when what goes is gone"
    assert resizes(small, more) == {-1: {**shrunk, "blocked": small.sizes["blocked"]}}
    busy = compiled(frontends(17), frontends=100, connections=1 << 20).state
    assert resizes(busy, small) == {0: grown, -1: {"connections": 1 << 20}}, "connections wait for the rest"


def test_a_lowered_limit_that_what_is_there_does_not_fit_is_refused_by_name() -> None:
    have, want = compiled(frontends(17), frontends=100), compiled(frontends(17), frontends=16)
    (error,) = overfull(want.state, have.state)
    said = blame(error, want, {"cluster/fleet"})
    assert said.what == "the map services is to have room for 16 entries, 17 are needed; 17 are used now"
    assert (said.resource, said.field) == ("cluster/fleet", "limits.frontends")
    assert "raise limits.frontends" in said.remedy
    with pytest.raises(InvalidInput, match="the map services"):
        plan(want.state, have.state)
    fewer = compiled(frontends(16), frontends=16)
    assert overfull(fewer.state, have.state) == [], "they go before the map is made smaller"


@pytest.mark.parametrize("limit", ["policy_entries", "cidrs"])
def test_what_is_of_one_identity_is_refused_at_what_was_changed(limit: str) -> None:
    """The policy that fills the map is named in any case; who is refused is the limit that was lowered, or the endpoint
    that brought the identity to this node."""
    networks_of_web = [{"peers": [{"cidr": cidr} for cidr in networks(300)]}]
    wide = fleet.policy("wide", {"app": "web"}, ingress=networks_of_web, egress=networks_of_web)
    want = compiled([*fleet.quickstart(), wide], **{limit: 299 if limit == "cidrs" else 500})
    had = compiled([*fleet.quickstart(), wide]).state
    of_inner = {name: size for name, size in want.state.sizes.items() if name in INNER_MAPS}
    have = dataclasses.replace(had, sizes={**had.sizes, **of_inner})  # as a kernel reads them
    (error,) = overfull(want.state, have, want.identities)
    said = blame(error, want, {"cluster/fleet", "service/other"})
    assert (said.resource, said.field) == ("cluster/fleet", f"limits.{limit}")
    for culprit in ("policy/wide", "endpoint/web-1"):
        said = blame(error, want, {culprit, "service/other"})
        assert said.resource == culprit and "filled by policy/wide" in said.what


def test_maps_that_programs_fill_keep_their_size() -> None:
    have = compiled(fleet.quickstart()).state
    want = compiled(fleet.quickstart(), translations=2048, flows=2048).state
    told = kept_sizes(want, have, "fleet")
    assert {text.split()[3] for text in told} == {"flow_slots", "flows", "translations"}
    assert told[-1].startswith("cluster/fleet, limits.translations: ") and "2048 are declared" in told[-1]
    assert "it keeps its size, and what it holds, until the node restarts. Restart the node" in told[-1]
    assert kept_sizes(want, want, "fleet") == [] == kept_sizes(want, NodeState(), None)
    assert plan(want, have) == []


@pytest.mark.parametrize(
    ("used", "level"), [(0, "ok"), (79, "ok"), (80, "high"), (94, "high"), (95, "critical"), (100, "critical")]
)
def test_pressure_has_levels(used: int, level: str) -> None:
    found = gauge("addresses", used, 100)
    assert (found["level"], found["pressure"]) == (level, used / 100)
    assert found["declared_by"] == "limits.addresses" and not found["evicts"]
    assert gauge("connections", used, 100)["evicts"] and not gauge("flow_slots", used, 100)["evicts"]


def test_each_kind_of_flow_has_its_room_and_idle_ones_leave_theirs() -> None:
    now = 20_000

    def slot(seen: int, verdict: int = 1) -> bytes:
        return layout("flows", "value").encode({**blank, "verdict": verdict, "last_seen": seen})

    blank = dict.fromkeys(layout("flows", "value").names, 0)
    together = [slot(now)] * 2
    passed = [slot(now), slot(now - 8192), slot(now - 8193), slot(0), slot(now, verdict=0), slot(now + 1)]
    passed += [slot(0)] * 6
    dropped = [slot(now - 64, 2), slot(now - 65, 2), slot(now, 4)]
    assert rooms_of([*together, *passed, *dropped], now) == {"passed": (3, 12), "dropped": (2, 3)}
    assert rooms_of([], now) == {"passed": (0, 0), "dropped": (0, 0)}
