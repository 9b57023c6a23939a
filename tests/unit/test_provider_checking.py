"""Check: bad inputs as failures at leaf paths, in Pulumi's names; good ones normalised."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime import rpc

from bpfleet.emit.shapes import SHAPES
from provider.checking import check_inputs
from provider.values import from_pulumi, to_pulumi

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMbt4ZYOuU6lWTxGnT7ykfe1Ln7QPb"
NODE: Dict[str, Any] = {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workloadCidrs": ["10.0.1.0/24"]}
HANDLE: Dict[str, Any] = {"name": "h1", "address": "192.0.2.1", "ssh": {}}
SHOP: Dict[str, Any] = {"cluster": "shop", "seeds": {"h1": HANDLE}}
CLUSTER: Dict[str, Any] = {"id": 1, "members": {"h1": HANDLE}}
POLICY: Dict[str, Any] = {"cluster": SHOP, "selector": {"role": "web"}}


def failures(kind: str, values: Dict[str, Any], name: str = "one") -> Dict[str, str]:
    return dict(check_inputs(SHAPES[f"bpfleet:index:{kind}"], name, to_pulumi(values))[1])


def checked(kind: str, values: Dict[str, Any], name: str = "one") -> Dict[str, Any]:
    inputs, failed = check_inputs(SHAPES[f"bpfleet:index:{kind}"], name, to_pulumi(values))
    assert failed == []
    return from_pulumi(inputs)[0]


def test_defaults_are_filled_in_and_values_normalised() -> None:
    inputs = checked("Node", {**NODE, "workloadCidrs": ["fd00:1::/64", "10.0.1.0/24"], "address": "2001:DB8::1"})
    assert inputs["name"] == "one" and inputs["onDeleteUnreachable"] == "fail"
    assert inputs["ssh"] == {"port": 22, "user": "root"}
    assert inputs["workloadCidrs"] == ["10.0.1.0/24", "fd00:1::/64"] and inputs["address"] == "2001:db8::1"
    assert checked("Cluster", CLUSTER)["routing"] == {"mode": "vxlan", "port": 8472, "directDelivery": True}


def test_a_given_name_wins() -> None:
    assert checked("Node", {**NODE, "name": "h1"}, "Host One")["name"] == "h1"


def test_unknowns_fit_everywhere() -> None:
    inputs = checked("Node", {**NODE, "address": rpc.UNKNOWN, "devices": rpc.UNKNOWN})
    assert repr(inputs["address"]) == repr(inputs["devices"]) == "UNKNOWN"
    assert repr(checked("Cluster", {"id": 1, "members": rpc.UNKNOWN})["members"]) == "UNKNOWN"


@pytest.mark.parametrize(
    ("kind", "values", "path", "words"),
    [
        ("Node", {**NODE, "adress": "x"}, "adress", "Did you mean address?"),
        ("Node", {**NODE, "workload_cidrs": []}, "workload_cidrs", "Did you mean workloadCidrs?"),
        ("Node", {"address": "192.0.2.1", "devices": [{"name": "eth0"}]}, "workloadCidrs", "Give workloadCidrs"),
        ("Node", {**NODE, "workloadCidrs": ["10.0.1.1/24"]}, "workloadCidrs[0]", "host bits set"),
        ("Node", {**NODE, "ssh": {"port": 0}}, "ssh.port", "Use 1 to 65535"),
        ("Node", {**NODE, "ssh": {"hostKey": "nonsense"}}, "ssh.hostKey", "public key line"),
        ("Node", {**NODE, "onDeleteUnreachable": "maybe"}, "onDeleteUnreachable", "Use fail or forget"),
        ("Cluster", {**CLUSTER, "id": 256}, "id", "Use 1 to 255"),
        ("Cluster", {**CLUSTER, "members": {}}, "members", "at least 1"),
        ("Cluster", {**CLUSTER, "members": {"h2": HANDLE}}, "members.h2", "is the handle of h1"),
        ("Cluster", {**CLUSTER, "members": ["h1"]}, "members", "`handle`"),
        ("Policy", {**POLICY, "cluster": "shop"}, "cluster", "`handle`"),
        ("Policy", {**POLICY, "ingress": [{"ports": [{"port": 80}, {"port": 70000}]}]}, "ingress[0].ports[1].port",
         "70000 is out of range"),
        ("Policy", {**POLICY, "egress": [{"peers": [{"entity": "world", "labels": {}}]}]}, "egress[0].peers[0]",
         "exactly one of labels, entity"),
        ("Identity", {"cluster": SHOP, "labels": {"a.b": "!"}}, 'labels["a.b"]', "is not allowed"),
        ("Identity", {"cluster": SHOP, "labels": {}, "number": 70000}, "number", "unknown field"),
        ("Endpoint", {"cluster": SHOP, "node": "h1", "identity": "web", "addresses": [], "attach": {"netns": "w"}},
         "addresses", "at least 1"),
    ],
)  # fmt: skip
def test_bad_inputs(kind: str, values: Dict[str, Any], path: str, words: str) -> None:
    found = failures(kind, values)
    assert list(found) == [path], found
    assert words in found[path]


def test_a_logical_name_that_does_not_fit_asks_for_a_name() -> None:
    assert "needs a `name`" in failures("Node", NODE, "Host 1")["name"]


def test_everything_wrong_is_told_at_once() -> None:
    found = failures("Node", {"address": "x", "devices": [], "ssh": {"port": 0}})
    assert sorted(found) == ["address", "devices", "ssh.port", "workloadCidrs"]


def test_secrets_are_not_echoed_and_stay_secret() -> None:
    ssh = {"hostKey": PropertyValue("not-a-key", is_secret=True), "port": PropertyValue(22.0)}
    values = {**to_pulumi(NODE), "ssh": PropertyValue(ssh)}
    _, failed = check_inputs(SHAPES["bpfleet:index:Node"], "one", values)
    assert [path for path, _ in failed] == ["ssh.hostKey"] and "not-a-key" not in failed[0][1]
    values["address"] = PropertyValue("hidden", is_secret=True)
    _, failed = check_inputs(SHAPES["bpfleet:index:Node"], "one", values)
    path, reason = failed[0]
    assert path != "address", "the engine would print the value of a property of that name"
    assert "hidden" not in reason
    values = {**to_pulumi(NODE), "ssh": PropertyValue({"hostKey": PropertyValue(KEY, is_secret=True)})}
    inputs, failed = check_inputs(SHAPES["bpfleet:index:Node"], "one", values)
    assert not failed
    assert inputs["ssh"].value["hostKey"].is_secret  # type: ignore[call-overload,index,union-attr]
