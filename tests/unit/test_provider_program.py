"""What is known of a program's resources before any host is asked: no false alarm, whatever the order."""

from __future__ import annotations

import random
import re
from typing import Any, List, Optional, Sequence

import pytest

from bpfleet.errors import BpfleetError
from bpfleet.model.document import Document, DocumentSet
from provider.program import Program
from tests import fleet


def place(document: Document) -> Optional[str]:
    return None if document.kind == "node" else "fleet"


def without_number(document: Document) -> Document:
    spec = {name: value for name, value in document.spec.items() if name != "number"}
    return Document(document.kind, document.name, spec)


def see(program: Program, document: Document) -> Optional[BpfleetError]:
    program.see(document.key, place(document), without_number(document))
    return program.refusal(document.key)


def refusals(documents: Sequence[Document]) -> List[BpfleetError]:
    """What is refused while documents come one by one."""
    program = Program()
    return [error for document in documents if (error := see(program, document)) is not None]


def limited(**limits: int) -> Document:
    return fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], limits=limits)


def with_limits(**limits: int) -> List[Document]:
    return [limited(**limits), *(one for one in fleet.quickstart() if one.kind != "cluster")]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_good_is_refused_in_no_order(seed: int) -> None:
    documents = [
        *fleet.quickstart(),
        fleet.service("shop", ["10.96.0.1:80", "[fd00::1]:80"], [{"labels": {"app": "api"}}]),
    ]
    random.Random(seed).shuffle(documents)
    assert refusals(documents) == []


PAIRS: dict[str, tuple[Document, Document]] = {
    "address": (fleet.endpoint("x", 1, 9, "web", "x"), fleet.endpoint("y", 1, 9, "web", "y")),
    "place": (fleet.endpoint("x", 1, 9, "web", "x"), fleet.endpoint("y", 1, 8, "web", "x")),
    "frontend": (fleet.service("x", ["10.96.0.1:80"], []), fleet.service("y", ["10.96.0.1:80"], [])),
    "frontend of an endpoint": (fleet.endpoint("x", 1, 9, "web", "x"), fleet.service("y", ["10.77.1.9:80"], [])),
    "behind a service": (
        fleet.service("x", ["10.96.0.1:80"], []),
        fleet.service("y", ["10.96.0.2:80"], [{"address": "10.96.0.1"}]),
    ),
    "labels": (fleet.identity("x", {"a": "b"}), fleet.identity("y", {"a": "b"})),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_the_later_of_two_is_refused_and_names_the_other(name: str, turned: bool) -> None:
    first, second = reversed(PAIRS[name]) if turned else PAIRS[name]
    program = Program()
    for document in [*fleet.quickstart(), first]:
        assert see(program, document) is None
    error = see(program, second)
    assert error is not None and error.resource == second.key and first.key in error.what
    program.forget(first.key)
    assert program.refusal(second.key) is None, "what the program no longer says does not count"


def test_two_that_change_places_are_no_contradiction() -> None:
    program = Program()
    one, two = fleet.endpoint("x", 1, 9, "web", "x"), fleet.endpoint("y", 1, 8, "web", "y")
    for document in [*fleet.quickstart(), one, two]:
        assert see(program, document) is None
    # The program of the next run is another one: what the state has is never seen.
    program = Program()
    for document in [
        *fleet.quickstart(),
        fleet.endpoint("x", 1, 8, "web", "y"),
        fleet.endpoint("y", 1, 9, "web", "x"),
    ]:
        assert see(program, document) is None


def test_nodes_are_at_odds_as_members_of_one_cluster_only() -> None:
    twin = fleet.document(
        "node", "h2", address="192.168.77.9", devices=[{"name": "eth0"}], workload_cidrs=["10.77.1.0/24"]
    )
    assert refusals([fleet.node(1), twin]) == []
    for documents in (
        [fleet.node(1), twin, fleet.cluster(["h1", "h2"])],
        [fleet.cluster(["h1", "h2"]), fleet.node(1), twin],
    ):
        (error,) = refusals(documents)
        assert "overlaps" in error.what
    assert refusals([fleet.node(1), twin, fleet.cluster(["h1"])]) == []


def test_a_family_that_no_node_has_yet_is_no_contradiction() -> None:
    """Another node may bring it; only nodes, which hold all documents, can tell."""
    six = fleet.service("six", ["[fd00::1]:80"], [{"labels": {"app": "web"}}])
    four = fleet.document(
        "node", "h1", address="192.168.77.1", devices=[{"name": "eth0"}], workload_cidrs=["10.77.1.0/24"]
    )
    assert refusals([four, fleet.cluster(["h1", "h2"]), six]) == []


def many_endpoints(count: int) -> List[Document]:
    return [
        fleet.document(
            "endpoint", f"many-{n}", node="h1", identity="web", attach={"netns": f"n{n}"},
            addresses=[f"10.77.1.{50 + n}"],
        )
        for n in range(count)
    ]  # fmt: skip


def test_room_is_counted_with_what_the_program_still_says() -> None:
    program = Program()
    for document in [*with_limits(endpoints=16), *many_endpoints(14)]:
        assert see(program, document) is None
    last = fleet.document(
        "endpoint", "last", node="h1", identity="web", attach={"interface": "eth9"}, addresses=["10.77.1.200"]
    )
    error = see(program, last)
    assert error is not None and error.where["node"] == "h1" and error.resource == "endpoint/last"
    assert "the map endpoints has room for 16 entries, 17 are needed" in error.what and "used" not in error.what
    program.forget("endpoint/many-0")
    assert program.refusal(last.key) is None
    assert see(program, limited(endpoints=17)) is None
    assert see(program, many_endpoints(1)[0]) is None
    assert see(program, limited(endpoints=16)) is not None


def wide(peers: List[Any], ports: int = 1, **changes: Any) -> Document:
    listed = [{"protocol": "tcp", "port": 1 + port} for port in range(ports)]
    return fleet.policy("wide", {"app": "web"}, ingress=[{"peers": peers, "ports": listed, **changes}])


def test_entries_are_counted_by_compiling() -> None:
    assert refusals([*with_limits(policy_entries=256), wide([{"entity": "host"}], 200)]) == []
    for peers, ports in ([{"labels": {}}], 90), ([{"cidr": f"198.51.{n}.0/24"} for n in range(30)], 10):
        (error,) = refusals([*with_limits(policy_entries=256), wide(peers, ports)])
        assert error.resource == "policy/wide"
        assert re.search("the map policy_entries of identity web has room for 256 entries, (271|302) are ", error.what)
    whole = [*with_limits(policy_entries=256), wide([{"labels": {}}], 90)]
    for last, blamed in {**{kind: kind for kind in ("identity", "endpoint", "cluster")}, "node": "policy"}.items():
        late = [one for one in whole if one.kind != last] + [one for one in whole if one.kind == last]
        assert {str(error.resource).partition("/")[0] for error in refusals(late)} == {blamed}, f"{last} came last"


def test_a_group_that_is_not_there_yet_counts_nothing() -> None:
    """Until it is, a deny by it means the whole world, which may be more entries than it will have."""
    deny = wide([{"cidr_group": "later"}, *({"cidr": f"198.51.{n}.0/24"} for n in range(14))], 18, action="deny")
    documents = [*with_limits(policy_entries=256, cidrs=16), deny]
    assert refusals(documents) == []
    group = fleet.document("cidr_group", "later", cidrs=[f"203.0.{n}.0/24" for n in range(3)])
    (error,) = refusals([*documents, group])
    assert "the map" in error.what or "more than 256" in error.what


def test_a_thousand_endpoints_cost_no_compilation_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfleet.compile.compiler import Compiler

    compiled: List[int] = []
    compile_one = Compiler.compile

    def counted(self: Compiler, documents: DocumentSet, facts: Any) -> Any:
        compiled.append(len(documents))
        return compile_one(self, documents, facts)

    monkeypatch.setattr(Compiler, "compile", counted)
    node = fleet.document(
        "node", "h1", address="192.168.77.1", devices=[{"name": "eth0"}], workload_cidrs=["10.64.0.0/16"]
    )
    endpoints = [
        fleet.document(
            "endpoint", f"e-{n}", node="h1", identity="web", attach={"netns": f"n{n}"},
            addresses=[f"10.64.{n // 200}.{n % 200 + 1}"],
        )
        for n in range(1000)
    ]  # fmt: skip
    assert refusals([node, fleet.cluster(["h1"]), fleet.identity("web"), *endpoints]) == []
    assert compiled == []
