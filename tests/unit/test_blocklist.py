"""What a block list may not hold, and what becomes of it in the state."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any, List, Sequence, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import NodeState
from tests import fleet


def documents(blocked: Sequence[str], *devices: Any) -> List[Document]:
    node = fleet.node(1)
    spec = {**node.spec, "devices": list(devices) or node.spec["devices"]}
    return [
        fleet.document("cluster", "fleet", id=1, routing={}, members=["h1", "h2"], blocked_cidrs=list(blocked)),
        fleet.document("node", "h1", **spec),
        fleet.node(2),
    ]


def state(blocked: Sequence[str], *devices: Any) -> NodeState:
    there = dict.fromkeys(("eth0", "eth1"), (1500, ("192.168.77.1",)))
    facts = dataclasses.replace(fleet.facts(1), devices=there)
    return Compiler().compile(DocumentSet(documents(blocked, *devices)), facts).state


FACTS = dataclasses.replace(fleet.facts(1), gateways=("192.168.77.254", "fe80::1"), controller="203.0.113.9")


@pytest.mark.parametrize(
    ("cidr", "says"),
    [
        ("192.168.77.2/32", "192.168.77.2, the address of member h2"),
        ("192.168.77.0/30", "192.168.77.1, the address of member h1"),
        ("203.0.113.0/24", "203.0.113.9, from where node h1 is being changed: the controller or its jump host"),
        ("192.168.77.254/32", "192.168.77.254, the gateway of node h1"),
        ("0.0.0.0/0", "0.0.0.0/0 is everybody"),
        ("::/0", "::/0 is everybody"),
        ("::/64", "mapped form"),
        ("fe80::/10", "link-local addresses"),
    ],
)
def test_what_may_not_be_blocked(cidr: str, says: str) -> None:
    found = [error for error in validate(DocumentSet(documents(["198.51.100.0/24", cidr])), FACTS) if error.field]
    mine = [error for error in found if says in error.what]
    assert mine, found
    assert (mine[0].resource, mine[0].field) == ("cluster/fleet", "blocked_cidrs")
    assert mine[0].remedy


@pytest.mark.parametrize("cidr", ["203.0.113.0/24", "192.168.77.248/29"])
def test_no_workloads_are_where_the_controller_or_the_gateway_is(cidr: str) -> None:
    devices = [{"name": "eth0"}]
    moved = fleet.document(
        "node", "h1", address="192.168.77.1", devices=devices, workload_cidrs=["10.77.1.0/24", "fd77:0:0:1::/64", cidr]
    )
    given = [one for one in documents([]) if (one.kind, one.name) != ("node", moved.name)] + [moved]
    (error,) = validate(DocumentSet(given), FACTS)
    assert (error.resource, error.field) == ("node/h1", "workload_cidrs")
    assert cidr in error.what and error.remedy
    if cidr.startswith("203"):
        controller = fleet.document(
            "endpoint", "control", node="h1", identity="web", addresses=["203.0.113.9"], attach={"netns": "control"}
        )
        assert validate(DocumentSet([*given, controller]), FACTS) == []


def test_what_may_be_blocked() -> None:
    assert validate(DocumentSet(documents(["198.51.100.0/24", "2001:db8:bad::/48", "128.0.0.0/2"])), FACTS) == []


@pytest.mark.parametrize(
    ("modes", "at_tc"),
    [(("off",), 1), (("native",), 0), (("generic", "native"), 0), (("native", "off"), 1), ((), 1)],
)
def test_who_looks(modes: Sequence[str], at_tc: int) -> None:
    """tc where any device has no XDP; what XDP dropped never comes there."""
    devices = [{"name": f"eth{n}", "xdp": mode} for n, mode in enumerate(modes)]
    made = state(["198.51.100.0/24"], *devices)
    assert made.programs["from_underlay"].constants.get("blocked_at_tc", 0) == at_tc
    assert ("xdp_underlay" in made.programs) is bool(set(modes) - {"off"})
    hooks = {hook: program for hook, program in made.attachments.items() if program == "xdp_underlay"}
    assert set(hooks) == {(f"eth{n}", f"xdp-{mode}") for n, mode in enumerate(modes) if mode != "off"}
    assert made.tables["blocked"].rows == {(120, "198.51.100.0"): (1,)}


def test_an_empty_list_costs_nothing_at_tc() -> None:
    assert "blocked_at_tc" not in state([]).programs["from_underlay"].constants
    assert not state([]).tables["blocked"].rows


def test_what_workloads_send_is_not_blocked_and_that_is_said() -> None:
    compiled = Compiler().compile(DocumentSet(documents(["10.77.0.0/16"])), fleet.facts(1))
    assert [warning for warning in compiled.warnings if "10.77.0.0/16, where workloads of h2 are" in warning]


ENDS = (
    "10.77.0.0",
    "10.77.1.0",
    "10.77.1.128",
    "10.77.2.0",
    "10.77.3.0",
    "192.168.77.1",
    "192.168.77.2",
    "fd77:0:0:1::",
)


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.integers(1, 128)), min_size=1, max_size=6))
def test_whom_a_blocked_network_touches(drawn: List[Tuple[str, int]]) -> None:
    """Every member and every workload network in it or around it, and no other."""
    networks = [
        ipaddress.ip_network((end, length if ":" in end else 1 + length % 32), strict=False) for end, length in drawn
    ]
    given_documents = documents(sorted(map(str, set(networks))))
    blocked = [ipaddress.ip_network(text) for text in given_documents[0].spec["blocked_cidrs"]]
    nodes = given_documents[1:]
    held = [
        ("blocked_cidrs", node.key)
        for network in blocked
        for node in nodes
        if ipaddress.ip_address(node.spec["address"]) in network
    ]
    found = [error for error in validate(DocumentSet(given_documents)) if "of member" in error.what]
    assert [(error.field, error.details["other"]) for error in found] == held
    if not held:
        touched = [
            f"blocked_cidrs has {network}, where workloads of {node.name} are ({cidr})"
            for network in blocked
            for node in nodes
            for cidr in node.spec["workload_cidrs"]
            if fleet.lies_in(cidr, str(network)) or fleet.lies_in(str(network), cidr)
        ]
        told = Compiler().compile(DocumentSet(given_documents), fleet.facts(1)).warnings
        assert [text.partition(": ")[2].partition(": what they")[0] for text in told] == touched
