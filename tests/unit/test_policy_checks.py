"""What a policy may not say is refused where it is said, with the field's path."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from bpfleet.model.document import problems_of
from bpfleet.model.resources import RESOURCES
from bpfleet.model.schema import UNKNOWN, check


def refused(**spec: Any) -> List[str]:
    return [problem.field for problem in problems_of({"kind": "policy", "name": "p", "spec": {"selector": {}, **spec}})]


def peer(**spec: Any) -> Dict[str, Any]:
    return {"ingress": [{"peers": [{"entity": "all"}, spec]}]}


def port(**spec: Any) -> Dict[str, Any]:
    return {"egress": [{"ports": [{"protocol": "tcp"}, spec]}]}


def asks(key: str, operator: str, *values: str) -> Dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
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
        (peer(cidr="10.0.0.0/8", **{"except": ["11.0.0.0/16"]}), "ingress[0].peers[1].except[0]"),
        (peer(cidr="10.0.0.0/8", **{"except": ["10.1.0.0/16", "::/16"]}), "ingress[0].peers[1].except[1]"),
        (peer(cidr="10.0.0.0/8", **{"except": ["0.0.0.0/0"]}), "ingress[0].peers[1].except[0]"),
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
        ({"default_deny": {"ingress": "yes"}}, "default_deny.ingress"),
        ({"default_deny": {"inbound": True}}, "default_deny.inbound"),
        ({"mode": "observe"}, "mode"),
    ],
)
def test_refused_with_its_path(spec: Dict[str, Any], path: str) -> None:
    assert refused(**spec) == [path]


@pytest.mark.parametrize(
    "spec",
    [
        {"expressions": [asks("app", "In", "a", "b"), asks("app", "NotIn", "b"), asks("x", "DoesNotExist")]},
        {"selector": {"app": "a"}, "expressions": [asks("app", "Exists")]},
        peer(cidr="10.0.0.0/8", **{"except": ["10.0.0.0/9", "10.128.0.0/10"]}),
        port(protocol="sctp", port=80, end_port=80),
        port(protocol="icmpv6", type=1, code=4),
        {"ingress": [{"peers": [{"cidr": "10.0.0.0/8"}, {"entity": "host"}], "ports": [{"protocol": "icmpv6"}]}]},
        {"default_deny": {"egress": False}, "mode": "audit", "labels": {"team": "a"}},
    ],
)
def test_accepted(spec: Dict[str, Any]) -> None:
    assert refused(**spec) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": UNKNOWN, "expressions": [asks("app", "In", "a")]},
        {"selector": {"app": UNKNOWN}, "expressions": [asks("app", "In", "a")]},
        {"selector": {}, "ingress": [{"peers": [{"cidr": UNKNOWN, "except": ["10.0.0.0/8"]}]}]},
        {"selector": {}, "ingress": [{"peers": UNKNOWN, "ports": UNKNOWN}]},
        {"selector": {}, "ingress": [{"ports": [{"protocol": UNKNOWN, "port": 80, "end_port": UNKNOWN}]}]},
        {"selector": {}, "expressions": [{"key": "app", "operator": UNKNOWN, "values": UNKNOWN}]},
    ],
)
def test_what_a_preview_does_not_know_yet_is_not_held_against_it(spec: Dict[str, Any]) -> None:
    shape = RESOURCES["policy"]
    assert check(shape.spec_fields, spec, shape.exactly_one, shape.checks)[1] == []
