"""Conflicts among documents name both sides, the field, and a way out."""

from __future__ import annotations

import dataclasses
from typing import List, Tuple

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.errors import NumberTaken
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts
from tests import fleet


def _node(name: str, address: str, *cidrs: str) -> Document:
    return fleet.document("node", name, address=address, devices=[{"name": "eth0"}], workload_cidrs=list(cidrs))


CASES: List[Tuple[str, List[Document], str, str, str]] = [
    (
        "two endpoints with one address",
        [fleet.endpoint("a", 1, 1, netns="w1"), fleet.endpoint("b", 1, 1, netns="w2")],
        "endpoint/b", "addresses", "endpoint/a",
    ),
    (
        "two endpoints in one namespace",
        [fleet.endpoint("a", 1, 1, netns="w1"), fleet.endpoint("b", 1, 2, netns="w1")],
        "endpoint/b", "attach", "endpoint/a",
    ),
    (
        "address outside the node's networks",
        [fleet.node(2), fleet.document("endpoint", "a", node="h2", identity="a", addresses=["10.77.1.9"],
                                       attach={"netns": "w1"})],
        "endpoint/a", "addresses", "node/h2",
    ),
    (
        "equal workload networks",
        [_node("a", "192.168.0.1", "10.1.0.0/24"), _node("b", "192.168.0.2", "10.1.0.0/24")],
        "node/b", "workload_cidrs", "node/a",
    ),
    (
        "a small network inside an earlier wide one",
        [_node("a", "192.168.0.1", "10.0.0.0/8"), _node("b", "192.168.0.2", "10.1.0.0/24"),
         _node("c", "192.168.0.3", "11.0.0.0/24")],
        "node/b", "workload_cidrs", "node/a",
    ),
    (
        "IPv6 networks overlap",
        [_node("a", "192.168.0.1", "fd00::/32"), _node("b", "192.168.0.2", "fd00:0:1::/48")],
        "node/b", "workload_cidrs", "node/a",
    ),
    (
        "one underlay address for two nodes",
        [_node("a", "192.168.0.1", "10.1.0.0/24"), _node("b", "192.168.0.1", "10.2.0.0/24")],
        "node/b", "address", "node/a",
    ),
    (
        "an underlay address inside a workload network",
        [_node("a", "10.1.0.5", "10.9.0.0/24"), _node("b", "192.168.0.1", "10.1.0.0/24")],
        "node/b", "workload_cidrs", "node/a",
    ),
    (
        "two identities with the same labels",
        [fleet.identity("a", {"x": "y"}), fleet.identity("b", {"x": "y"}, number=70000)],
        "identity/b", "labels", "identity/a",
    ),
    (
        "two identities with one number",
        [fleet.identity("a", number=70000), fleet.identity("b", number=70000)],
        "identity/b", "number", "identity/a",
    ),
    (
        "a number of another cluster",
        [fleet.cluster(["h1"]), fleet.identity("a", number=2 << 16 | 4711)],
        "identity/a", "number", "cluster/fleet",
    ),
    (
        "two clusters on one node",
        [fleet.cluster(["h1"]), fleet.document("cluster", "other", id=2, members=["h1"])],
        "cluster/other", "", "cluster/fleet",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("documents", "resource", "field", "other"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_conflict(documents: List[Document], resource: str, field: str, other: str) -> None:
    found = [error for error in validate(DocumentSet(documents)) if error.resource == resource]
    error = next(error for error in found if (error.field or "") == field)
    assert other in str(error) and error.remedy and error.details["other"] == other


def test_a_taken_number_is_told_apart_so_that_the_next_is_tried() -> None:
    documents = DocumentSet([fleet.identity("a", number=70000), fleet.identity("b", number=70000)])
    assert [type(error) for error in validate(documents)] == [NumberTaken]


def test_a_sound_fleet_has_no_conflict() -> None:
    assert validate(DocumentSet(fleet.quickstart()), fleet.facts(1)) == []


def test_neighbouring_networks_do_not_overlap() -> None:
    nodes = [_node(f"n{index}", f"192.168.0.{index}", f"10.1.{index}.0/24") for index in range(1, 100)]
    assert validate(DocumentSet(nodes)) == []


def test_what_the_node_itself_lacks() -> None:
    documents = DocumentSet([*fleet.quickstart()])
    without = Facts("h1", {"lo": (65536, ("127.0.0.1",))})
    assert {error.field for error in validate(documents, without)} == {"devices[0].name", "address"}


@pytest.mark.parametrize(
    ("address", "resource", "field"),
    [
        ("10.77.1.1", "endpoint/web-1", "addresses"),
        ("fd77:0:0:2::2", "endpoint/db-1", "addresses"),
        ("192.168.77.2", "node/h2", "address"),
    ],
)
def test_what_the_node_has_itself_is_nobody_else_s_address(address: str, resource: str, field: str) -> None:
    """Its kernel would keep what is for the other, and its policy would take the other for the host."""
    facts = dataclasses.replace(
        fleet.facts(1), devices={"eth0": (1500, ("192.168.77.1",)), "br0": (1500, (address, "10.77.1.254"))}
    )
    (error,) = validate(DocumentSet(fleet.quickstart()), facts)
    assert (error.resource, error.field, error.details["other"]) == (resource, field, "node/h1")
    assert "br0" in str(error) and "br0" in error.remedy
    elsewhere = [one for one in fleet.quickstart() if one.key != "node/h1"]
    assert validate(DocumentSet(elsewhere), facts) == []


@pytest.mark.parametrize("link_type", [65534, 512, 772])
def test_a_device_without_a_link_layer_may_be_an_underlay(link_type: int) -> None:
    facts = dataclasses.replace(fleet.facts(1), link_types={"eth0": link_type, "ib0": 32})
    assert validate(DocumentSet(fleet.quickstart()), facts) == []


@pytest.mark.parametrize("link_type", [32, 768, 778, 802])
def test_a_device_of_another_link_layer_is_refused(link_type: int) -> None:
    facts = dataclasses.replace(fleet.facts(1), link_types={"eth0": link_type})
    (error,) = validate(DocumentSet(fleet.quickstart()), facts)
    assert (error.resource, error.field) == ("node/h1", "devices[0].name")
    assert "eth0" in str(error) and str(link_type) in str(error) and "WireGuard" in error.remedy


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_xdp_where_there_is_no_link_layer_is_refused(mode: str) -> None:
    node = fleet.node(1)
    node = fleet.document("node", node.name, **{**node.spec, "devices": [{"name": "eth0", "xdp": mode}]})
    facts = dataclasses.replace(fleet.facts(1), link_types={"eth0": 65534})
    (error,) = validate(DocumentSet([fleet.cluster(["h1"]), node]), facts)
    assert (error.resource, error.field) == ("node/h1", "devices[0].xdp") and "xdp: off" in error.remedy


def test_an_mtu_that_does_not_fit_the_underlay() -> None:
    documents = DocumentSet([fleet.cluster(["h1"], mtu=1451), fleet.node(1)])
    (error,) = validate(documents, fleet.facts(1))
    assert (error.resource, error.field) == ("cluster/fleet", "routing.mtu") and "1450" in error.remedy


def test_a_cidr_that_can_mean_nobody_is_warned_of() -> None:
    """It would mean endpoints or a node, which no CIDR does; one that holds more than those is as it should be."""
    peers = [{"cidr": cidr} for cidr in ("10.77.2.0/25", "10.0.0.0/8", "192.168.77.1/32", "fd77:0:0:1::7/128", "::/0")]
    documents = DocumentSet([*fleet.quickstart(), fleet.policy("p", {"app": "web"}, egress=[{}, {"peers": peers}])])
    compiler = Compiler()
    told = [text for text in compiler.compile(documents, fleet.facts(1)).warnings if text.startswith("policy/p")]
    end = "which a CIDR never means; use labels or an entity"
    assert told == [
        f"policy/p, egress[1].peers[0].cidr: 10.77.2.0/25 is of node h2 and its endpoints, {end}",
        f"policy/p, egress[1].peers[2].cidr: 192.168.77.1/32 is of node h1 and its endpoints, {end}",
        f"policy/p, egress[1].peers[3].cidr: fd77:0:0:1::7/128 is of node h1 and its endpoints, {end}",
    ]
    moved = fleet.document("node", "h2", **{**fleet.node(2).spec, "workload_cidrs": ["10.78.2.0/24"]})
    later = compiler.compile(documents.changed([moved], []), fleet.facts(1)).warnings
    assert [text for text in later if text.startswith("policy/p")] == told[1:]


def test_a_cidr_that_is_made_up_of_several_nodes_networks_is_warned_of() -> None:
    """One with a gap between them means who is in the gap."""
    nodes = [
        fleet.document(
            "node", f"h{number}", **{**fleet.node(number).spec, "workload_cidrs": [f"10.78.{number - 1}.0/24"]}
        )
        for number in range(1, 9)
        if number != 7
    ]
    cidrs = ("10.78.0.0/23", "10.78.1.0/24", "10.78.0.0/22", "10.78.4.0/22", "10.78.0.0/21", "10.78.0.128/25")
    peers = [{"cidr": cidr} for cidr in cidrs]
    documents = DocumentSet(
        [fleet.cluster([node.name for node in nodes]), *nodes, fleet.policy("p", {}, ingress=[{"peers": peers}])]
    )
    told = [text for text in _said_of(documents, Compiler(), "policy/p") if "which a CIDR never means" in text]
    assert [text.partition(": ")[2].partition(", which")[0] for text in told] == [
        "10.78.0.0/23 is of nodes h1, h2 and their endpoints",
        "10.78.1.0/24 is of node h2 and its endpoints",
        "10.78.0.0/22 is of nodes h1, h2, h3 and 1 more and their endpoints",
        "10.78.0.128/25 is of node h1 and its endpoints",
    ]


def test_a_cidr_of_which_exceptions_leave_only_nodes_networks_is_warned_of() -> None:
    left = [
        ("10.77.0.0/22", ["10.77.0.0/24", "10.77.3.0/24"]),
        ("10.77.0.0/22", ["10.77.0.0/24", "10.77.2.0/23"]),
        ("10.77.0.0/22", ["10.77.0.0/24"]),  # 10.77.3.0/24 is the world's
        ("192.168.77.0/31", ["192.168.77.0/32"]),
        ("10.77.1.0/24", ["10.77.1.0/25"]),
    ]
    peers = [{"cidr": cidr, "except": parts} for cidr, parts in left]
    documents = DocumentSet([*fleet.quickstart(), fleet.policy("p", {"app": "web"}, egress=[{"peers": peers}])])
    told = _said_of(documents, Compiler(), "policy/p")
    assert [text.partition("peers")[2].partition(", which")[0] for text in told] == [
        "[0].cidr: what is left of 10.77.0.0/22 is of nodes h1, h2 and their endpoints",
        "[1].cidr: what is left of 10.77.0.0/22 is of node h1 and its endpoints",
        "[3].cidr: what is left of 192.168.77.0/31 is of node h1 and its endpoints",
        "[4].cidr: what is left of 10.77.1.0/24 is of node h1 and its endpoints",
    ]


def test_a_cidr_of_a_node_outside_the_cluster_means_what_it_says() -> None:
    """Its addresses are the world's."""
    peers = [{"cidr": "10.77.2.0/25"}, {"cidr": "10.77.9.0/25"}]
    documents = DocumentSet(
        [*fleet.quickstart(), fleet.node(9), fleet.policy("p", {"app": "web"}, egress=[{"peers": peers}])]
    )
    told = _said_of(documents, Compiler(), "policy/p")
    assert [text.partition(":")[0] for text in told] == ["policy/p, egress[0].peers[0].cidr"]
    joined = documents.changed([fleet.cluster(["h1", "h2", "h9"])])
    assert [text.partition(":")[0] for text in _said_of(joined, Compiler(), "policy/p")] == [
        "policy/p, egress[0].peers[0].cidr",
        "policy/p, egress[0].peers[1].cidr",
    ]


def _said_of(documents: DocumentSet, compiler: Compiler, *keys: str) -> List[str]:
    told = compiler.compile(documents, fleet.facts(1)).warnings
    return [text for text in told if text.startswith(keys)]


def test_a_cidr_group_that_can_mean_nobody_is_warned_of() -> None:
    """Once for each group, whoever names it; one that holds more than endpoints and a node is as it should be."""
    inside = fleet.document(
        "cidr_group", "inside", cidrs=["10.0.0.0/8", "10.77.1.0/24", "192.168.77.1/32", "fd77:0:0:2::7/128"]
    )
    around = fleet.document(
        "cidr_group", "around", cidrs=["10.77.0.0/16", "192.168.77.0/24", "192.168.77.9/32", "::/0"]
    )
    one = fleet.document("cidr_group", "one", cidrs=["10.77.2.128/25"])
    documents = DocumentSet([*fleet.quickstart(), inside, around, one])
    compiler = Compiler()
    end = "which a CIDR never means; use labels or an entity"
    assert _said_of(documents, compiler, "cidr_group/") == [
        f"cidr_group/inside, cidrs: 10.77.1.0/24 and 2 more are of nodes and their endpoints (the first of h1), {end}",
        f"cidr_group/one, cidrs: 10.77.2.128/25 is of node h2 and its endpoints, {end}",
    ]
    moved = fleet.document("node", "h2", **{**fleet.node(2).spec, "workload_cidrs": ["10.78.2.0/24"]})
    less = fleet.document("cidr_group", "inside", cidrs=["fd77:0:0:1::/64"])
    assert _said_of(documents.changed([moved, less]), compiler, "cidr_group/") == [
        f"cidr_group/inside, cidrs: fd77:0:0:1::/64 is of node h1 and its endpoints, {end}"
    ]


def test_a_cidr_group_by_which_a_peer_means_nobody_is_warned_of() -> None:
    """Of each peer that means nobody by it: a node's egress may mean somebody."""
    groups = [
        fleet.document("cidr_group", "groups", cidrs=["224.0.0.0/4", "ff00::/8"]),
        fleet.document("cidr_group", "loopback", cidrs=["127.0.0.0/8"]),
        fleet.document("cidr_group", "bogons", cidrs=["10.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4"]),
        fleet.document("cidr_group", "empty", cidrs=[]),
    ]
    peers = [{"cidr_group": group.name} for group in groups]
    policies = [
        fleet.document("policy", "p", selector={}, ingress=[{"peers": peers}], egress=[{"peers": peers}]),
        fleet.document("policy", "q", node_selector={}, ingress=[{"peers": peers}], egress=[{"peers": peers}]),
    ]
    documents = DocumentSet([*fleet.quickstart(), *groups, *policies])
    told = [text for text in _said_of(documents, Compiler(), "policy/") if "cidr_group" in text]
    assert [text.partition(": ")[0] for text in told] == [
        "policy/p, ingress[0].peers[0].cidr_group",
        "policy/p, ingress[0].peers[1].cidr_group",
        "policy/p, egress[0].peers[0].cidr_group",
        "policy/p, egress[0].peers[1].cidr_group",
        "policy/q, ingress[0].peers[0].cidr_group",
        "policy/q, ingress[0].peers[1].cidr_group",
        "policy/q, egress[0].peers[1].cidr_group",
    ]
    assert told[0].endswith(
        ": groups has only networks that mean nobody: 224.0.0.0/4 is multicast or broadcast, and nothing comes from "
        "such addresses, whatever policy says"
    )


def test_a_deny_of_echo_replies_is_warned_of() -> None:
    """They follow their connection, so it denies none."""
    ports = [
        {"protocol": "tcp", "port": 80},
        {"protocol": "icmp", "type": 0},
        {"protocol": "icmpv6", "type": 129, "code": 0},
        {"protocol": "icmpv6", "type": 0},
        {"protocol": "icmp", "type": 129},
        {"protocol": "icmp", "type": 8},
        {"protocol": "icmpv6"},
    ]
    rules = [{"action": "deny", "ports": ports}, {"ports": ports[1:2]}]
    documents = DocumentSet([*fleet.quickstart(), fleet.policy("p", {"app": "web"}, egress=rules)])
    end = (
        "type: an echo reply passes with the echo that it answers, whatever denies it, and never without; deny the echo"
    )
    assert _said_of(documents, Compiler(), "policy/p") == [
        f"policy/p, egress[0].ports[1].{end}, type 8",
        f"policy/p, egress[0].ports[2].{end}, type 128",
    ]


def test_icmp_of_a_family_that_a_cidr_group_lacks_is_warned_of() -> None:
    """Refused it cannot be: a group may have other networks tomorrow."""
    four = fleet.document("cidr_group", "four", cidrs=["198.51.100.0/24"])
    six = fleet.document("cidr_group", "six", cidrs=["2001:db8::/32"])
    empty = fleet.document("cidr_group", "empty", cidrs=[])
    icmpv6, both = [{"protocol": "icmpv6"}], [{"protocol": "icmp"}, {"protocol": "icmpv6", "type": 128}]
    rules = [
        {"peers": [{"cidr_group": "four"}], "ports": icmpv6},
        {"peers": [{"cidr_group": "four"}, {"cidr_group": "six"}], "ports": both},
        {"peers": [{"cidr": "10.0.0.0/8"}, {"cidr_group": "four"}], "ports": both},
        {"peers": [{"cidr_group": "four"}, {"entity": "host"}], "ports": both},
        {"peers": [{"cidr_group": "empty"}], "ports": both},
        {"peers": [{"cidr_group": "four"}, {"cidr_group": "later"}], "ports": both},
        {"peers": [{"cidr_group": "six"}], "ports": [{"protocol": "tcp"}, *both]},
    ]
    documents = DocumentSet([*fleet.quickstart(), four, six, empty, fleet.policy("p", {"app": "web"}, egress=rules)])
    compiler = Compiler()
    end = "networks only; remove it, or add a network of its family"
    assert _said_of(documents, compiler, "policy/p") == [
        f"policy/p, egress[0].ports[0].protocol: icmpv6 cannot come from peers that are IPv4 {end}",
        f"policy/p, egress[2].ports[1].protocol: icmpv6 cannot come from peers that are IPv4 {end}",
        f"policy/p, egress[6].ports[1].protocol: icmp cannot come from peers that are IPv6 {end}",
    ]
    wider = fleet.document("cidr_group", "four", cidrs=["198.51.100.0/24", "::/0"])
    told = _said_of(documents.changed([wider]), compiler, "policy/p")
    assert [text.partition(":")[0] for text in told] == ["policy/p, egress[6].ports[1].protocol"]
