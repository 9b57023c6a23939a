"""Long lists of networks cost what they are long, once: not times the nodes, the policies or the changes."""

from __future__ import annotations

import ipaddress
import tracemalloc
from typing import Any, Callable, List

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.intervals import PortSet
from bpfleet.compile.selector import LabelIndex
from bpfleet.model.document import Document, DocumentSet
from bpfleet.observe.explain import explain
from tests import fleet

NODES = 20
LISTED = [f"60.0.{index}.0/24" for index in range(200)]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Networks that were read from text, each time."""
    found: List[str] = []
    real: Callable[..., Any] = ipaddress.ip_network

    def read(text: Any, *more: Any) -> Any:
        found.append(text)
        return real(text, *more)

    monkeypatch.setattr(ipaddress, "ip_network", read)
    return found


def documents(**settings: Any) -> DocumentSet:
    members = [f"h{index}" for index in range(1, NODES + 1)]
    found: List[Document] = [fleet.document("cluster", "fleet", id=1, members=members, **settings)]
    found += [fleet.node(index) for index in range(1, NODES + 1)]
    return DocumentSet([*found, fleet.identity("web"), fleet.endpoint("web", 1, 1)])


def test_a_block_list_is_not_compared_with_each_node(parsed: List[str]) -> None:
    held, compiler = documents(blocked_cidrs=LISTED), Compiler()
    parsed.clear()
    assert compiler.conflicts(held, fleet.facts(1)) == []
    first = compiler.compile(held, fleet.facts(1))
    assert max(map(parsed.count, LISTED)) <= 4
    held = held.changed([fleet.policy("p", {"app": "web"}, ingress=[])])
    parsed.clear()
    assert compiler.conflicts(held, fleet.facts(1)) == []
    later = compiler.compile(held, fleet.facts(1))
    assert (parsed, later.state.nested != first.state.nested) == ([], True)


def test_a_cidr_group_is_read_once_for_all_policies(parsed: List[str]) -> None:
    rules = [{"action": "deny", "peers": [{"cidr_group": "feed"}], "ports": [{"port": port}]} for port in range(1, 5)]
    policies = [fleet.policy(f"p{index}", {"app": "web"}, egress=rules) for index in range(10)]
    held = documents().changed([fleet.document("cidr_group", "feed", cidrs=LISTED), *policies])
    compiler = Compiler()
    parsed.clear()
    compiler.compile(held, fleet.facts(1))
    assert max(map(parsed.count, LISTED)) <= 2  # for policies, and for what is to be warned of
    parsed.clear()
    compiler.compile(held.changed([fleet.identity("new")]), fleet.facts(1))
    assert parsed == []


def test_nested_port_ranges_name_each_interval_once() -> None:
    nested = [(6, first, 40_000 - first) for first in range(1, 3_000)]
    ranges = [*nested, (6, 39_990, 41_000), (6, 50_000, 50_001), (17, 5, 6), (17, 5, 9)]
    ports = PortSet([*ranges, (17, 1, 2), (6, 60_000, 60_001)])
    found = list(ports.covered(ranges))
    assert len(found) == len(set(found))
    assert set(found) == {
        (protocol, number)
        for protocol, intervals in ports.intervals.items()
        for number, (first, last) in enumerate(intervals)
        if any(one[0] == protocol and one[1] <= first and last <= one[2] for one in ranges[-6:] + ranges[:1])
    }


def test_a_cidr_group_is_held_once_for_all_rules() -> None:
    group = fleet.document(
        "cidr_group", "feed", cidrs=[f"60.{index >> 8}.{index & 255}.0/24" for index in range(20000)]
    )
    rules = [{"peers": [{"cidr_group": "feed"}], "ports": [{"port": port}]} for port in range(1, 1001)]
    held = documents().changed([group, fleet.policy("p", {"app": "nobody"}, egress=rules)])
    compiler = Compiler()
    tracemalloc.start()
    try:
        compiler.compile(held, fleet.facts(1))
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_a_fleet_whose_identities_are_yet_to_come_is_not_searched_for_labels_like_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That takes milliseconds a selector; and explain, which has no warnings, looks for none."""
    asked: List[Any] = []
    real = LabelIndex.nearest

    def nearest(index: LabelIndex, labels: Any) -> Any:
        asked.append(labels)
        return real(index, labels)

    monkeypatch.setattr(LabelIndex, "nearest", nearest)
    policies = [fleet.policy(f"p{number:03}", {"app": f"wed{number}"}, ingress=[]) for number in range(300)]
    held, compiler = documents().changed(policies), Compiler()
    told = compiler.compile(held, fleet.facts(1)).warnings
    assert len(told) == 300 and sum("the nearest label is app=web" in text for text in told) == len(asked) == 50
    held = held.changed([fleet.policy("q", {"app": "web"}, ingress=[])])
    assert compiler.compile(held, fleet.facts(1)).warnings == told
    explain(held, "web", "h2", "tcp", 80)
    assert len(asked) == 50


def test_what_compilations_keep_does_not_grow_with_their_number() -> None:
    """The agent that serves a stack compiles for each of its steps."""
    endpoints = [fleet.endpoint(f"e{index}", 2, index, "web") for index in range(1, 250)]
    held, compiler = documents().changed(endpoints), Compiler()

    def change(first: int, last: int) -> int:
        nonlocal held
        for host in range(first, last):
            held = held.changed([fleet.endpoint("web", 1, host)])
            compiler.compile(held, fleet.facts(1))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = change(1, 5)
        size = len(repr(compiler.compile(held, fleet.facts(1)).state.tables["addresses"].rows))
        assert change(5, 65) - before < 5 * size
    finally:
        tracemalloc.stop()
