"""Diff: which paths change, what is replaced, and what is no change at all."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from bpfleet.emit.shapes import SHAPES
from bpfleet.model.schema import UNKNOWN
from provider.clusters import cluster_handle
from provider.differing import differences

HANDLE: Dict[str, Any] = {"name": "h1", "address": "192.0.2.1", "ssh": {}}
SHOP: Dict[str, Any] = {"cluster": "shop", "seeds": {"h1": HANDLE}}
POLICY: Dict[str, Any] = {
    "name": "p",
    "cluster": SHOP,
    "selector": {"role": "web"},
    "ingress": [{"action": "allow", "ports": [{"protocol": "tcp", "port": 80}]}],
}


def diff(kind: str, old: Dict[str, Any], new: Dict[str, Any], outputs: Dict[str, Any] | None = None) -> Dict[str, str]:
    found = differences(SHAPES[f"bpfleet:index:{kind}"], old, outputs or {}, new)
    return {path: change.kind.name for path, change in found.detailed.items()}


def test_the_same_is_no_change() -> None:
    assert diff("Policy", POLICY, POLICY) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"description": "d"}, {"description": "ADD"}),
        ({"selector": {"role": "db"}}, {"selector.role": "UPDATE"}),
        ({"selector": {"a.b": "c"}}, {"selector.role": "DELETE", 'selector["a.b"]': "ADD"}),
        ({"ingress": []}, {"ingress[0]": "DELETE"}),
        ({"ingress": [{"action": "deny", "ports": [{"protocol": "tcp"}]}]},
         {"ingress[0].action": "UPDATE", "ingress[0].ports[0].port": "DELETE"}),
        ({"name": "q"}, {"name": "UPDATE_REPLACE"}),
        ({"selector": UNKNOWN}, {"selector": "UPDATE"}),
    ],
)  # fmt: skip
def test_changes_at_leaf_paths(change: Dict[str, Any], expected: Dict[str, str]) -> None:
    assert diff("Policy", POLICY, {**POLICY, **change}) == expected


RULES: list[dict[str, Any]] = [{"action": "allow", "ports": [{"protocol": "tcp", "port": one}]} for one in (1, 2, 3, 4)]
CIDRS = ["10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # Where order counts: what is equal at both ends is no difference.
        (RULES, RULES[1:], {"[0]": "DELETE"}),
        (RULES[1:], RULES, {"[0]": "ADD"}),
        (RULES, [RULES[0], *RULES[2:]], {"[1]": "DELETE"}),
        ([RULES[0], *RULES[2:]], RULES, {"[1]": "ADD"}),
        (RULES[:3], [RULES[0], RULES[3], RULES[2]], {"[1].ports[0].port": "UPDATE"}),
        (RULES[:2], [*RULES[:2], RULES[0]], {"[2]": "ADD"}),
        ([RULES[0]] * 3, [RULES[0]] * 2, {"[2]": "DELETE"}),
        ([RULES[0]], [UNKNOWN, RULES[0]], {"[0]": "ADD"}),
        ([], RULES[:1], {"[0]": "ADD"}),
    ],
)
def test_a_rule_more_or_less_is_one_change(old: list[Any], new: list[Any], expected: Dict[str, str]) -> None:
    found = diff("Policy", {**POLICY, "ingress": old}, {**POLICY, "ingress": new})
    assert found == {f"ingress{path}": kind for path, kind in expected.items()}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (CIDRS[1:], CIDRS, {"[0]": "ADD"}),
        (CIDRS, CIDRS[1:], {"[0]": "DELETE"}),
        (CIDRS[1:], [CIDRS[0], *CIDRS[2:]], {"[0]": "UPDATE"}),
        (CIDRS[:3], [CIDRS[0], *CIDRS[2:]], {"[1]": "DELETE", "[2]": "ADD"}),
        (CIDRS[:2], [UNKNOWN, CIDRS[0]], {"[0]": "UPDATE", "[1]": "UPDATE"}),
    ],
)
def test_a_network_more_or_less_is_one_change(old: list[Any], new: list[Any], expected: Dict[str, str]) -> None:
    group = {"name": "g", "cluster": SHOP}
    found = diff("CidrGroup", {**group, "cidrs": old}, {**group, "cidrs": new})
    assert found == {f"cidrs{path}": kind for path, kind in expected.items()}


def test_items_of_several_fields_are_alike_in_whatever_order_their_fields_come() -> None:
    service = {"name": "s", "cluster": SHOP, "backends": []}
    http, https = ({"address": "10.96.0.1", "port": port, "protocol": "tcp"} for port in (80, 443))
    turned = dict(reversed(list(https.items())))
    old, new = ({**service, "frontends": frontends} for frontends in ([http, https], [turned]))
    assert diff("Service", old, new) == {"frontends[0]": "DELETE"}


def test_other_seeds_are_no_change_and_another_cluster_replaces() -> None:
    other_seeds = {"cluster": "shop", "seeds": {"h2": {**HANDLE, "name": "h2"}}}
    assert diff("Policy", POLICY, {**POLICY, "cluster": other_seeds}) == {}
    unknown_seed = {"cluster": "shop", "seeds": {"h1": HANDLE, "h4": UNKNOWN}}
    assert diff("Policy", POLICY, {**POLICY, "cluster": unknown_seed}) == {}
    assert diff("Policy", POLICY, {**POLICY, "cluster": {**SHOP, "cluster": "x"}}) == {"cluster": "UPDATE_REPLACE"}
    assert diff("Policy", POLICY, {**POLICY, "cluster": UNKNOWN}) == {"cluster": "UPDATE_REPLACE"}


def test_what_must_go_before_its_replacement_can_come() -> None:
    for kind, first in {"Policy": False, "Endpoint": True, "Identity": True, "Node": True, "Cluster": True}.items():
        assert differences(SHAPES[f"bpfleet:index:{kind}"], {}, {}, {}).delete_first is first


def test_drift_and_lagging_nodes_are_changes() -> None:
    cluster = {"name": "shop", "id": 1, "members": {"h1": HANDLE}}
    assert diff("Cluster", cluster, cluster, {"drift": [], "lagging_nodes": []}) == {}
    found = differences(SHAPES["bpfleet:index:Cluster"], cluster, {"drift": ["x"], "lagging_nodes": ["h1"]}, cluster)
    assert {path: change.input_diff for path, change in found.detailed.items()} == {
        "drift": False,
        "laggingNodes": False,
    }


def test_another_agent_is_a_change_of_a_node() -> None:
    shape = SHAPES["bpfleet:index:Node"]
    node = {"name": "h1", "address": "192.0.2.1"}
    assert list(differences(shape, node, {"agent": "old"}, node, "new").detailed) == ["agent"]
    assert not differences(shape, node, {"agent": "new"}, node, "new").detailed
    assert not differences(shape, node, {}, node, "new").detailed, "a state from before there was such an output"
    assert not differences(shape, node, {"agent": "old"}, node, None).detailed, "objects that are not built"


def test_a_member_more_is_one_key() -> None:
    old = {"name": "shop", "id": 1, "members": {"h1": HANDLE}}
    new = {**old, "members": {"h1": HANDLE, "h2": {**HANDLE, "name": "h2"}}}
    assert diff("Cluster", old, new) == {"members.h2": "ADD"}
    assert diff("Cluster", new, old) == {"members.h2": "DELETE"}
    assert diff("Cluster", old, {**old, "id": 2}) == {"id": "UPDATE_REPLACE"}


def members(*names: str) -> Dict[str, Any]:
    return {name: {"name": name, "address": "192.0.2.1", "ssh": {}} for name in names}


def seeds(names: tuple[str, ...], old: Any) -> list[str]:
    return sorted(cluster_handle({"name": "shop", "members": members(*names)}, old)["seeds"])


def test_seeds_are_sticky() -> None:
    first = cluster_handle({"name": "shop", "members": members("h2", "h3", "h4", "h5")}, None)
    assert sorted(first["seeds"]) == ["h2", "h3", "h4"]
    assert seeds(("h1", "h2", "h3", "h4", "h5"), first) == ["h2", "h3", "h4"], "a new member does not change them"
    assert seeds(("h1", "h3", "h4", "h5"), first) == ["h1", "h3", "h4"], "one that left is replaced"
    assert seeds(("h9",), first) == ["h9"]
