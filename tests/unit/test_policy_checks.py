"""What a policy may not say is refused where it is said, with the field's path."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from bpfleet.emit.shapes import SHAPES
from bpfleet.errors import InvalidInput
from bpfleet.model.document import parse_document, problems_of
from bpfleet.model.resources import RESOURCES
from bpfleet.model.schema import UNKNOWN, camel, check
from provider.checking import check_inputs
from provider.values import to_pulumi
from tests.unit.collection import module

SHAPE = SHAPES["bpfleet:index:Policy"]
CLUSTER: Dict[str, Any] = {"cluster": "shop", "seeds": {}}
declared = module("declared")


def whole(spec: Dict[str, Any]) -> Dict[str, Any]:
    """A policy around what a row is about; None takes a field away."""
    about_whom = spec and set(spec) <= {"selector", "expressions"}
    found = {"selector": {}, **({"ingress": []} if about_whom else {}), **spec}
    return {name: value for name, value in found.items() if value is not None}


def camelled(value: Any) -> Any:
    """As a Pulumi program writes it."""
    if isinstance(value, dict):
        return {camel(name): camelled(item) for name, item in value.items()}
    return [camelled(item) for item in value] if isinstance(value, list) else value


def refused(**spec: Any) -> List[str]:
    return [str(problem.field) for problem in problems_of({"kind": "policy", "name": "p", "spec": whole(spec)})]


def peer(**spec: Any) -> Dict[str, Any]:
    return {"ingress": [{"peers": [{"entity": "all"}, spec]}]}


def port(**spec: Any) -> Dict[str, Any]:
    return {"egress": [{"ports": [{"protocol": "tcp"}, spec]}]}


def asks(key: str, operator: str, *values: str) -> Dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


REFUSED: List[Tuple[Dict[str, Any], str]] = [
    ({"expressions": [asks("app", "In")]}, "expressions[0].values"),
    ({"expressions": [asks("app", "NotIn")]}, "expressions[0].values"),
    ({"expressions": [{"key": "app", "operator": "In", "values": []}]}, "expressions[0].values"),
    ({"expressions": [asks("app", "Exists", "a")]}, "expressions[0].values"),
    ({"expressions": [{"key": "app", "operator": "DoesNotExist", "values": []}]}, "expressions[0].values"),
    ({"expressions": [asks("app", "Equals", "a")]}, "expressions[0].operator"),
    ({"expressions": [asks("app", "In", "a", "a")]}, "expressions[0].values[1]"),
    ({"selector": {"app": "a"}, "expressions": [asks("app", "In", "b")]}, "expressions[0]"),
    ({"selector": {"app": "a"}, "expressions": [asks("app", "NotIn", "a", "b")]}, "expressions[0]"),
    ({"selector": {"app": "a"}, "expressions": [asks("app", "DoesNotExist")]}, "expressions[0]"),
    ({"expressions": [asks("x", "Exists"), asks("x", "DoesNotExist")]}, "expressions[1]"),
    ({"expressions": [asks("x", "In", "a"), asks("x", "NotIn", "a")]}, "expressions[1]"),
    (peer(labels={"app": "a"}, expressions=[asks("app", "In", "b")]), "ingress[0].peers[1].expressions[0]"),
    (peer(entity="world", expressions=[asks("app", "Exists")]), "ingress[0].peers[1].expressions"),
    (peer(labels={}, cidr="10.0.0.0/8"), "ingress[0].peers[1]"),
    (peer(), "ingress[0].peers[1]"),
    (peer(cidr="10.0.0.1/8"), "ingress[0].peers[1].cidr"),
    (peer(cidr="::ffff:10.0.0.0/104"), "ingress[0].peers[1].cidr"),
    (peer(cidr="10.0.0.0/8", **{"except": ["11.0.0.0/16"]}), "ingress[0].peers[1].except"),
    (peer(cidr="10.0.0.0/8", **{"except": ["10.1.0.0/16", "::/16"]}), "ingress[0].peers[1].except"),
    (peer(cidr="10.0.0.0/8", **{"except": ["0.0.0.0/0"]}), "ingress[0].peers[1].except"),
    (peer(cidr="10.0.0.0/8", **{"except": ["10.0.0.0/9", "10.128.0.0/9"]}), "ingress[0].peers[1].except"),
    (peer(labels={}, **{"except": ["10.0.0.0/9"]}), "ingress[0].peers[1].except"),
    (peer(cidr_group="No Name"), "ingress[0].peers[1].cidr_group"),
    (port(protocol="tcp", port=90, end_port=80), "egress[0].ports[1].end_port"),
    (port(protocol="tcp", end_port=80), "egress[0].ports[1].end_port"),
    (port(protocol="tcp", port=0), "egress[0].ports[1].port"),
    (port(protocol="icmp", port=80), "egress[0].ports[1].port"),
    (port(protocol="tcp", type=8), "egress[0].ports[1].type"),
    (port(protocol="any", type=8), "egress[0].ports[1].type"),
    (port(protocol="icmp", code=1), "egress[0].ports[1].code"),
    (port(protocol="icmp", type=256), "egress[0].ports[1].type"),
    (port(protocol="gre"), "egress[0].ports[1].protocol"),
    (
        {"ingress": [{"peers": [{"cidr": "10.0.0.0/8"}], "ports": [{"protocol": "icmpv6", "type": 128}]}]},
        "ingress[0].ports[0].protocol",
    ),
    ({"ingress": [{"peers": [{"cidr": "::/0"}], "ports": [{"protocol": "icmp"}]}]}, "ingress[0].ports[0].protocol"),
    (peer(cidr="fe80::/10"), "ingress[0].peers[1].cidr"),
    ({"egress": [{"peers": [{"cidr": "fe80::1/128"}]}]}, "egress[0].peers[0].cidr"),
    (peer(cidr="169.254.1.1/32"), "ingress[0].peers[1].cidr"),
    ({"selector": None, "node_selector": {}, "egress": [{"peers": [{"cidr": "169.254.1.1/32"}]}]},
     "egress[0].peers[0].cidr"),
    # Exceptions that leave nobody.
    (peer(cidr="126.0.0.0/7", **{"except": ["126.0.0.0/8"]}), "ingress[0].peers[1].except"),
    (peer(cidr="0.0.0.0/31", **{"except": ["0.0.0.1/32"]}), "ingress[0].peers[1].except"),
    ({"egress": [{"peers": [{"cidr": "192.0.0.0/2", "except": ["192.0.0.0/3"]}]}]}, "egress[0].peers[0].except"),
    (peer(cidr="fe00::/9", **{"except": ["fe00::/10", "fe40::/10"]}), "ingress[0].peers[1].except"),
    (peer(cidr="127.0.0.0/8"), "ingress[0].peers[1].cidr"),
    (peer(cidr="::1/128"), "ingress[0].peers[1].cidr"),
    (peer(cidr="0.0.0.0/32"), "ingress[0].peers[1].cidr"),
    (peer(cidr="::/128"), "ingress[0].peers[1].cidr"),
    ({"egress": [{"peers": [{"cidr": "127.0.0.1/32"}]}]}, "egress[0].peers[0].cidr"),
    ({"egress": [{"peers": [{"cidr": "0.0.0.0/32"}]}]}, "egress[0].peers[0].cidr"),
    ({"selector": None, "node_selector": {}, "ingress": [{"peers": [{"cidr": "127.0.0.1/32"}]}]},
     "ingress[0].peers[0].cidr"),
    ({"selector": None, "node_selector": {}, "egress": [{"peers": [{"cidr": "::/128"}]}]}, "egress[0].peers[0].cidr"),
    ({"default_deny": {"ingress": "yes"}}, "default_deny.ingress"),
    ({"default_deny": {"inbound": True}, "ingress": []}, "default_deny.inbound"),
    ({"mode": "observe", "ingress": []}, "mode"),
    # What is missing, too much, or of the wrong kind.
    ({"ingress": {}}, "ingress"),
    ({"ingress": [[]]}, "ingress[0]"),
    ({"ingress": [{"action": "drop"}]}, "ingress[0].action"),
    ({"ingress": [{"peer": []}]}, "ingress[0].peer"),
    ({"ingress": [{"peers": {"entity": "world"}}]}, "ingress[0].peers"),
    ({"ingress": [{"ports": 80}]}, "ingress[0].ports"),
    ({"selector": {"app": "a"}, "node_selector": {}, "ingress": []}, "selector"),
    ({"selector": {"app": ["a"]}, "ingress": []}, "selector.app"),
    ({"selector": {"app": "no good"}, "ingress": []}, "selector.app"),
    ({"labels": {"team": 5}, "ingress": []}, "labels.team"),
    ({"ingress": [], "expressions": [{"operator": "Exists"}]}, "expressions[0].key"),
    ({"ingress": [], "expressions": [{"key": "app"}]}, "expressions[0].operator"),
    # A policy that says nothing, and one that says what cannot be.
    ({}, "ingress"),
    ({"mode": "audit"}, "ingress"),
    ({"default_deny": {"ingress": False}}, "ingress"),
    ({"default_deny": {}}, "ingress"),
    ({"default_deny": {"egress": False}, "egress": []}, "ingress"),
    ({"default_deny": {"ingress": False, "egress": False}, "ingress": [], "egress": []}, "ingress"),
    # The same twice, however it is written; and allowed as well as denied.
    ({"ingress": [{}, {"action": "allow"}]}, "ingress[1]"),
    ({"egress": [{"ports": [{"port": 80}]}, {"ports": [{"port": 80, "protocol": "any"}]}]}, "egress[1]"),
    (
        {"ingress": [{"peers": [{"entity": "world"}, {"labels": {"a": "b"}}]}, {"ports": []},
                     {"peers": [{"labels": {"a": "b"}}, {"entity": "world"}]}]},
        "ingress[2]",
    ),
    ({"ingress": [{"ports": [{"port": 80}]}, {"action": "deny", "ports": [{"port": 80}]}]}, "ingress[1]"),
    ({"egress": [{"action": "deny"}, {}]}, "egress[1]"),
    (peer(entity="all"), "ingress[0].peers[1]"),
    ({"ingress": [{"peers": [{"cidr": "10.0.0.1"}, {"cidr": "10.0.0.1/32"}]}]}, "ingress[0].peers[1]"),
    (port(protocol="tcp"), "egress[0].ports[1]"),
    ({"expressions": [asks("x", "Exists"), asks("x", "Exists")]}, "expressions[1]"),
    # The very same in other words.
    ({"ingress": [{}, {"action": "deny", "peers": [{"entity": "all"}]}]}, "ingress[1]"),
    ({"ingress": [{"peers": [{"entity": "host"}, {"entity": "all"}]}, {"ports": [{"protocol": "any"}]}]}, "ingress[1]"),
    ({"ingress": [{"peers": []}, {"peers": [{"entity": "none"}]}]}, "ingress[1]"),
    (
        {"egress": [{"ports": [{"port": 1}]},
                    {"action": "deny", "ports": [{"protocol": name, "port": 1} for name in ("sctp", "tcp", "udp")]}]},
        "egress[1]",
    ),
    (
        {"egress": [{"ports": [{"protocol": "tcp", "port": 80, "end_port": 89}]},
                    {"ports": [{"protocol": "tcp", "port": 85, "end_port": 89},
                               {"protocol": "tcp", "port": 80, "end_port": 84}]}]},
        "egress[1]",
    ),
    (
        {"egress": [{"action": "deny", "ports": [{"protocol": "tcp"}]},
                    {"ports": [{"protocol": "tcp", "port": 80}, {"protocol": "tcp"}]}]},
        "egress[1]",
    ),
    (
        {"ingress": [{"peers": [{"labels": {"a": "b", "c": "d"}}]},
                     {"peers": [{"labels": {"c": "d"}, "expressions": [asks("a", "In", "b")]}]}]},
        "ingress[1]",
    ),
    (
        {"ingress": [{"peers": [{"cidr": "10.0.0.0/8"}]}, {"peers": [{"cidr": "10.0.0.0/8", "except": []}]}]},
        "ingress[1]",
    ),
    (
        {"ingress": [{"ports": [{"protocol": "tcp", "port": 80}, {"protocol": "tcp", "port": 80, "end_port": 80}]}]},
        "ingress[0].ports[1]",
    ),
    (
        {"ingress": [{"ports": [{"protocol": "icmp", "type": 3, "code": 1}, {"protocol": "icmp", "type": 3},
                                {"type": 3, "protocol": "icmp"}]}]},
        "ingress[0].ports[2]",
    ),
    (
        {"ingress": [{"peers": [{"labels": {"a": "b", "c": "d"}}, {"labels": {"c": "d", "a": "b"}}]}]},
        "ingress[0].peers[1]",
    ),
    (
        {"egress": [{}, {"peers": [{"labels": {}, "expressions": [asks("x", "Exists"), asks("y", "Exists")]},
                                   {"labels": {}, "expressions": [asks("y", "Exists"), asks("x", "Exists")]}]}]},
        "egress[1].peers[1]",
    ),
    # Peers: one kind each, and only its own refinements.
    (peer(entity="world", labels={"app": "a"}), "ingress[0].peers[1]"),
    (peer(entity="world", cidr="10.0.0.0/8"), "ingress[0].peers[1]"),
    (peer(cidr="10.0.0.0/8", cidr_group="office"), "ingress[0].peers[1]"),
    (peer(cidr="10.0.0.0/8", expressions=[asks("app", "Exists")]), "ingress[0].peers[1].expressions"),
    (peer(cidr_group="office", **{"except": ["10.0.0.0/9"]}), "ingress[0].peers[1].except"),
    (peer(entity="world", **{"except": ["10.0.0.0/9"]}), "ingress[0].peers[1].except"),
    (peer(entity="internet"), "ingress[0].peers[1].entity"),
    (peer(cidr="10.0.0.0/33"), "ingress[0].peers[1].cidr"),
    (peer(cidr="10.0.0.0/8", **{"except": ["10.1.0.0/16", "10.1.0.0/16"]}), "ingress[0].peers[1].except[1]"),
    (peer(cidr="10.0.0.0/8", **{"except": ["10.0.0.0/8"]}), "ingress[0].peers[1].except"),
    (peer(cidr="2001:db8::/32", **{"except": ["2001:db9::/48"]}), "ingress[0].peers[1].except"),
    (peer(cidr="2001:db8::/32", **{"except": ["2001:db8::/48", "10.0.0.0/8"]}), "ingress[0].peers[1].except"),
    # Ports: what a protocol does not have.
    (port(protocol="icmp", end_port=80), "egress[0].ports[1].end_port"),
    (port(protocol="icmpv6", port=80, end_port=90), "egress[0].ports[1].port"),
    (port(protocol="sctp", code=0), "egress[0].ports[1].code"),
    (port(port=80, type=8), "egress[0].ports[1].type"),
    (port(protocol="icmp", type=8, code=256), "egress[0].ports[1].code"),
    (port(protocol="tcp", port=65536), "egress[0].ports[1].port"),
    (port(protocol="tcp", port="http"), "egress[0].ports[1].port"),
    (port(port=443, end_port=80), "egress[0].ports[1].end_port"),
    (port(protocol="tcp", port=80, name="web"), "egress[0].ports[1].name"),
    (
        {"egress": [{"action": "deny", "peers": [{"cidr": "10.0.0.0/8"}, {"cidr": "11.0.0.0/8"}],
                     "ports": [{"protocol": "tcp"}, {"protocol": "icmpv6"}]}]},
        "egress[0].ports[1].protocol",
    ),
    # Nodes: what a node says to itself is never judged.
    (
        {"selector": None, "node_selector": {}, "ingress": [{"peers": [{"entity": "host"}]}]},
        "ingress[0].peers[0].entity",
    ),
    (
        {"selector": None, "node_selector": {}, "egress": [{}, {"peers": [{"labels": {}}, {"entity": "host"}]}]},
        "egress[1].peers[1].entity",
    ),
    # Addresses of nobody: nothing comes from them, and endpoints send nothing there.
    (peer(cidr="224.0.0.0/4"), "ingress[0].peers[1].cidr"),
    (peer(cidr="ff02::1"), "ingress[0].peers[1].cidr"),
    (peer(cidr="255.255.255.255"), "ingress[0].peers[1].cidr"),
    ({"selector": None, "node_selector": {}, **peer(cidr="239.0.0.0/8")}, "ingress[0].peers[1].cidr"),
    ({"egress": [{}, {"action": "deny", "peers": [{"cidr": "224.0.0.251/32"}]}]}, "egress[1].peers[0].cidr"),
    ({"egress": [{"peers": [{"cidr": "ff00::/8"}]}]}, "egress[0].peers[0].cidr"),
    ({"egress": [{"peers": [{"cidr": "240.0.0.0/4"}]}]}, "egress[0].peers[0].cidr"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "path"), REFUSED)
def test_refused_with_its_path(spec: Dict[str, Any], path: str) -> None:
    assert refused(**spec) == [path]


@pytest.mark.parametrize(("spec", "path"), REFUSED)
def test_refused_by_pulumis_check_at_the_property(spec: Dict[str, Any], path: str) -> None:
    found = dict(check_inputs(SHAPE, "p", to_pulumi({"cluster": CLUSTER, **camelled(whole(spec))}))[1])
    assert set(found) == {re.sub("_[a-z]", lambda match: match.group()[1].upper(), path)}


@pytest.mark.parametrize(("spec", "path"), REFUSED)
def test_refused_by_the_playbook_before_any_host_is_asked(spec: Dict[str, Any], path: str) -> None:
    with pytest.raises(declared.Invalid) as caught:
        declared.declare([{"kind": "policy", "name": "p", "spec": whole(spec)}], [])
    assert [error.field.rpartition("spec.")[2] for error in caught.value.errors] == [path]


EMPTY: List[Tuple[Dict[str, Any], str]] = [
    ({"ingress": [{"peers": None}]}, "ingress[0].peers"),
    ({"ingress": [{"ports": None, "peers": []}]}, "ingress[0].ports"),
    ({"ingress": None, "egress": []}, "ingress"),
    ({"ingress": [{"action": None}]}, "ingress[0].action"),
    (peer(cidr="10.0.0.0/8", **{"except": None}), "ingress[0].peers[1].except"),
    (port(protocol="udp", port=None), "egress[0].ports[1].port"),
    ({"selector": {}, "expressions": None, "ingress": []}, "expressions"),
    ({"ingress": [], "default_deny": None}, "default_deny"),
    ({"ingress": [], "labels": {"team": None}}, "labels.team"),
]


@pytest.mark.parametrize(("spec", "path"), EMPTY)
def test_a_field_that_lost_its_value_is_refused(spec: Dict[str, Any], path: str) -> None:
    """In YAML, `peers:` with its items indented wrongly has none; left out, it means any peer."""
    data = {"kind": "policy", "name": "p", "spec": {"selector": {}, **spec}}
    assert [str(problem.field) for problem in problems_of(data)] == [path]
    with pytest.raises(declared.Invalid) as caught:
        declared.declare([data], [])
    assert [error.field.rpartition("spec.")[2] for error in caught.value.errors] == [path]


@pytest.mark.parametrize("data", [None, 5, "policy", [], [{}]])
def test_what_is_no_mapping_is_no_document(data: Any) -> None:
    (problem,) = problems_of(data)
    assert "must be a mapping" in problem.what
    with pytest.raises(InvalidInput):
        parse_document(data)


@pytest.mark.parametrize(
    "spec",
    [
        {"expressions": [asks("app", "In", "a", "b"), asks("app", "NotIn", "b"), asks("x", "DoesNotExist")]},
        {"selector": {"app": "a"}, "expressions": [asks("app", "Exists")]},
        peer(cidr="10.0.0.0/8", **{"except": ["10.0.0.0/9", "10.128.0.0/10"]}),
        peer(cidr="126.0.0.0/7", **{"except": ["126.0.0.0/9"]}),
        peer(cidr="169.254.0.0/16"),
        {"egress": [{"peers": [{"cidr": "128.0.0.0/1", "except": ["128.0.0.0/2"]}]}]},
        port(protocol="sctp", port=80, end_port=80),
        port(protocol="icmpv6", type=1, code=4),
        {"ingress": [{"peers": [{"cidr": "10.0.0.0/8"}, {"entity": "host"}], "ports": [{"protocol": "icmpv6"}]}]},
        {"default_deny": {"egress": False}, "egress": [{}], "mode": "audit", "labels": {"team": "a"}},
        {"default_deny": {"egress": False}, "egress": [], "ingress": []},
        {"ingress": [{}], "egress": [{}]},
        {"ingress": [{"peers": []}, {"ports": []}, {"peers": [], "ports": []}]},
        {"ingress": [{"action": "deny"}, {"ports": [{"port": 80}]}]},
        {"ingress": [{"ports": [{"port": 80}]}, {"ports": [{"port": 80, "protocol": "tcp"}]}]},
        {"default_deny": {"egress": True}},
        # Alike, and not the same.
        {"ingress": [{}, {"action": "deny", "peers": [{"entity": "cluster"}, {"entity": "host"}]}]},
        {"ingress": [{"ports": [{"port": 1}]}, {"ports": [{"port": 1, "protocol": one} for one in ("tcp", "udp")]}]},
        {"ingress": [{"ports": [{"protocol": "tcp"}]}, {"ports": [{"protocol": "tcp", "port": 1, "end_port": 65535}]}]},
        {"ingress": [{"ports": [{"protocol": "icmp", "type": 3}]}, {"ports": [{"protocol": "icmpv6", "type": 3}]}]},
        {"ingress": [{"ports": [{"protocol": "tcp", "port": 80}, {"protocol": "tcp", "port": 80, "end_port": 81}]}]},
        {
            "ingress": [
                {"ports": [{"protocol": "tcp", "port": 80}, {"protocol": "tcp", "port": 82}]},
                {"ports": [{"protocol": "tcp", "port": 80, "end_port": 82}]},
            ]
        },
        {"ingress": [{"peers": [{"labels": {"a": "b"}}]}, {"peers": [{"labels": {}}]}]},
        {"ingress": [{"ports": [{}]}, {"ports": [{"protocol": "tcp"}, {"protocol": "udp"}, {"protocol": "sctp"}]}]},
        # Networks that hold more than multicast, what nodes send to groups, and what may come from reserved addresses.
        {"egress": [{"peers": [{"cidr": "0.0.0.0/0", "except": ["224.0.0.0/4"]}, {"cidr": "fe00::/7"}]}]},
        {
            "selector": None,
            "node_selector": {},
            "egress": [{"peers": [{"cidr": "224.0.0.18/32"}, {"cidr": "ff02::/16"}, {"cidr": "255.255.255.255/32"}]}],
        },
        peer(cidr="240.0.0.0/5"),
        # Who asks a node for an address has none yet.
        {"selector": None, "node_selector": {}, "ingress": [{"peers": [{"cidr": "0.0.0.0/32"}, {"cidr": "::/128"}]}]},
        # A node's neighbours; and what is routed though it is of a link.
        {"selector": None, "node_selector": {}, "ingress": [{"peers": [{"cidr": "fe80::/10"}]}]},
        {"selector": None, "node_selector": {}, "egress": [{"peers": [{"cidr": "fe80::7/128"}]}]},
        {"egress": [{"peers": [{"cidr": "169.254.169.254/32"}]}]},
        peer(cidr="126.0.0.0/7"),
        peer(cidr="::/127"),
    ],
)
def test_accepted(spec: Dict[str, Any]) -> None:
    assert refused(**spec) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": UNKNOWN, "expressions": [asks("app", "In", "a")], "ingress": []},
        {"selector": {"app": UNKNOWN}, "expressions": [asks("app", "In", "a")], "ingress": []},
        {"selector": {}, "ingress": [{"peers": [{"cidr": UNKNOWN, "except": ["10.0.0.0/8"]}]}]},
        {"selector": {}, "ingress": [{"peers": UNKNOWN, "ports": UNKNOWN}]},
        {"selector": {}, "default_deny": {"ingress": UNKNOWN}},
        {"node_selector": {}, "ingress": [{"peers": [{"entity": UNKNOWN}]}]},
        {"selector": {}, "ingress": [{"ports": [{"protocol": UNKNOWN, "port": 80, "end_port": UNKNOWN}]}]},
        {"selector": {}, "expressions": [{"key": "app", "operator": UNKNOWN, "values": UNKNOWN}], "ingress": []},
    ],
)
def test_what_a_preview_does_not_know_yet_is_not_held_against_it(spec: Dict[str, Any]) -> None:
    shape = RESOURCES["policy"]
    assert check(shape.spec_fields, spec, shape.exactly_one, shape.checks)[1] == []


def with_unknowns(value: Any) -> Iterator[Any]:
    """What is below a value, each part in turn not known yet."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        inner: List[Any] = [UNKNOWN, *with_unknowns(value[key])]
        for one in inner:
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = one
            yield changed


@pytest.mark.parametrize(("spec", "path"), REFUSED)
def test_whatever_a_preview_does_not_know_is_checked_around(spec: Dict[str, Any], path: str) -> None:
    """What is wrong may lie in what is not known; nothing else is found wrong for it."""
    shape = RESOURCES["policy"]
    for unknown in with_unknowns(whole(spec)):
        found = {problem.path for problem in check(shape.spec_fields, unknown, shape.exactly_one, shape.checks)[1]}
        assert found <= {path}, unknown
