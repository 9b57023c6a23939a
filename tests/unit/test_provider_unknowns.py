"""What a preview does not know yet may stand anywhere: in any field of any resource."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

import pytest
from pulumi.runtime import rpc

from bpfleet.emit.shapes import SHAPES
from provider.checking import check_inputs
from provider.differing import differences
from provider.program import known_document
from provider.values import from_pulumi, to_model, to_pulumi

Path = Tuple[Any, ...]

SSH = {"host": "h", "port": 22, "user": "root", "jump": {"host": "gate", "port": 22}}
HANDLE = {"name": "h1", "address": "192.0.2.1", "ssh": SSH}
SHOP = {"cluster": "shop", "seeds": {"h1": HANDLE}}
RULES: Dict[str, Any] = {
    "expressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
    "ingress": [
        {
            "action": "allow",
            "peers": [
                {"labels": {"role": "web"}, "expressions": [{"key": "tier", "operator": "Exists"}]},
                {"entity": "world"},
                {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]},
                {"cidrGroup": "office"},
            ],
            "ports": [{"protocol": "tcp", "port": 1, "endPort": 2}, {"protocol": "icmp", "type": 3, "code": 1}],
        },
        {"action": "deny", "peers": [{"cidr": "10.0.0.0/8"}], "ports": [{"protocol": "icmp"}]},
    ],
    "egress": [{"peers": [{"cidr": "fd00::/8"}, {"cidr": "fc00::/8"}], "ports": [{"protocol": "icmpv6"}]}],
    "defaultDeny": {"ingress": True, "egress": False},
    "mode": "audit",
}
WHOLE: List[Tuple[str, Dict[str, Any]]] = [
    (
        "Cluster",
        {
            "id": 1,
            "routing": {"port": 8472, "mtu": 1400},
            "members": {"h1": HANDLE},
            "failsafePorts": [{"protocol": "tcp", "port": 22}],
            "blockedCidrs": ["10.9.0.0/16"],
            "unselected": "deny",
            "allowLocalHost": True,
            "limits": {"addresses": 1000},
        },
    ),
    (
        "Node",
        {
            "address": "192.0.2.1",
            "devices": [{"name": "eth0", "xdp": "off"}],
            "workloadCidrs": ["10.0.1.0/24"],
            "labels": {"zone": "a"},
            "ssh": SSH,
            "onDeleteUnreachable": "fail",
        },
    ),
    ("Identity", {"cluster": SHOP, "labels": {"role": "web"}}),
    (
        "Endpoint",
        {"cluster": SHOP, "node": "h1", "identity": "web", "addresses": ["10.0.1.1"], "attach": {"tap": "t"}},
    ),
    ("CidrGroup", {"cluster": SHOP, "description": "d", "cidrs": ["198.51.100.0/24", "203.0.113.0/24"]}),
    (
        "Service",
        {
            "cluster": SHOP,
            "frontends": [{"address": "10.96.0.1", "port": 80}],
            "backends": [{"labels": {"role": "web"}, "port": 1}, {"address": "10.0.1.1"}],
        },
    ),
    ("Policy", {"cluster": SHOP, "selector": {"role": "web"}, "labels": {"team": "a"}, **RULES}),
    ("Policy", {"cluster": SHOP, "nodeSelector": {"zone": "a"}, **RULES}),
]


def parts(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all values in a value."""
    for step, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, step)
        yield from parts(item, (*path, step))


def without(value: Any, unknown: Path, path: Path = ()) -> Any:
    """The value with what is at that path not known."""
    if path == unknown:
        return rpc.UNKNOWN
    if isinstance(value, dict):
        return {key: without(item, unknown, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [without(item, unknown, (*path, index)) for index, item in enumerate(value)]
    return value


@pytest.mark.parametrize(("kind", "values"), WHOLE)
def test_anything_may_be_unknown(kind: str, values: Dict[str, Any]) -> None:
    shape = SHAPES[f"bpfleet:index:{kind}"]

    def inputs_of(given: Dict[str, Any]) -> Dict[str, Any]:
        checked, failures = check_inputs(shape, "one", to_pulumi(given))
        assert failures == []
        return to_model(shape.inputs, from_pulumi(checked)[0])[0]

    known = inputs_of(values)
    for path in parts(values):
        inputs = inputs_of(without(values, path))
        if path[0] not in ("cluster", "members", "ssh", "onDeleteUnreachable"):
            assert known_document(shape, inputs) is None, path
        if path[0] != "cluster":
            assert differences(shape, known, {}, inputs).detailed, path
