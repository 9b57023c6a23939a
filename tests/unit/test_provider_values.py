"""Pulumi's values to plain data and back; names by schema; where secrets stay secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime import rpc

from bpfleet.emit.shapes import SHAPES
from bpfleet.model.schema import UNKNOWN
from provider.values import from_model, from_pulumi, pulumi_path, secret_texts, to_model, to_pulumi, without_secrets

NODE = SHAPES["bpfleet:index:Node"]
POLICY = SHAPES["bpfleet:index:Policy"]
CLUSTER = SHAPES["bpfleet:index:Cluster"]

plain = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=8) | st.just(UNKNOWN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), plain, max_size=4))
def test_round_trip(values: dict[str, Any]) -> None:
    wrapped = PropertyValue.unmarshal_map(PropertyValue.marshal_map(to_pulumi(values)))
    back, secrets = from_pulumi(wrapped)
    assert back == values
    assert not secrets


def test_unknowns_are_the_sentinel_in_both_directions() -> None:
    values, _ = from_pulumi({"address": PropertyValue(rpc.UNKNOWN)})
    assert values["address"] is UNKNOWN
    assert to_pulumi(values)["address"].value == rpc.UNKNOWN


def test_numbers_arrive_as_whole_numbers_and_nulls_not_at_all() -> None:
    values, _ = from_pulumi({"id": PropertyValue(7.0), "x": PropertyValue(1.5), "gone": PropertyValue(None)})
    assert values == {"id": 7, "x": 1.5} and isinstance(values["id"], int)


def test_nested_secrets_stay_where_they_are() -> None:
    ssh = PropertyValue({"host": PropertyValue("h"), "hostKey": PropertyValue("k", is_secret=True)})
    values, secrets = from_pulumi({"ssh": ssh, "list": PropertyValue([PropertyValue("a", is_secret=True)])})
    assert secrets == {("ssh", "hostKey"), ("list",)}
    back = to_pulumi(values, secrets)
    assert back["ssh"].value["hostKey"].is_secret and not back["ssh"].value["host"].is_secret  # type: ignore[call-overload,index,union-attr]
    assert back["list"].is_secret


def test_names_change_by_schema_and_keys_do_not() -> None:
    given_values = {"workloadCidrs": ["10.0.0.0/24"], "ssh": {"privateKeyFile": "k"}}
    values, problems = to_model(NODE.inputs, given_values)
    assert values == {"workload_cidrs": ["10.0.0.0/24"], "ssh": {"private_key_file": "k"}} and not problems
    assert from_model(NODE.inputs, values) == given_values
    labels = {"selector": {"some_key": "v", "someKey": "w"}}
    assert to_model(POLICY.inputs, labels)[0] == labels
    assert from_model(POLICY.inputs, labels) == labels


@pytest.mark.parametrize(
    ("values", "path", "remedy"),
    [
        ({"workload_cidrs": []}, "workload_cidrs", "Did you mean workloadCidrs?"),
        ({"ssh": {"hostkey": ""}}, "ssh.hostkey", "Did you mean hostKey?"),
        (
            {"nonsense": 1},
            "nonsense",
            "Known fields: name, address, devices, workloadCidrs, labels, ssh, onDeleteUnreachable.",
        ),
    ],
)
def test_unknown_fields_are_reported_in_pulumis_names(values: dict[str, Any], path: str, remedy: str) -> None:
    renamed, problems = to_model(NODE.inputs, values)
    assert [(problem.path, problem.remedy, problem.unknown_field) for problem in problems] == [(path, remedy, True)]
    assert path not in renamed


@pytest.mark.parametrize(
    ("fields", "values", "path", "expected"),
    [
        (NODE, {}, "workload_cidrs[1]", "workloadCidrs[1]"),
        (NODE, {}, "ssh.private_key_file", "ssh.privateKeyFile"),
        (POLICY, {"selector": {"a.b": "", "c_d": ""}}, "selector.a.b", 'selector["a.b"]'),
        (POLICY, {"selector": {"c_d": ""}}, "selector.c_d", "selector.c_d"),
        (CLUSTER, {"members": {"h.1": {}}}, "members.h.1.ssh.host_key", 'members["h.1"].ssh.hostKey'),
        (POLICY, {"ingress": [{"peers": [{"labels": {"x_y": 1}}]}]}, "ingress[0].peers[0].labels.x_y",
         "ingress[0].peers[0].labels.x_y"),
    ],
)  # fmt: skip
def test_paths(fields: Any, values: dict[str, Any], path: str, expected: str) -> None:
    assert pulumi_path(fields.inputs, values, path) == expected


def test_secrets_are_left_out_of_messages_where_they_are_words_of_their_own() -> None:
    secret = {"role": PropertyValue("web", is_secret=True), "cidr": PropertyValue("10.0.0.0/8", is_secret=True)}
    ports = PropertyValue([PropertyValue(5432.0)], is_secret=True)
    hidden = secret_texts({"selector": PropertyValue(secret), "ports": ports, "name": PropertyValue("policy")})
    assert hidden == {"web", "10.0.0.0/8", "5432"}
    text = "policy: role=web is no webserver; 10.0.0.0/8 is not 110.0.0.0/8, nor 5432 15432"
    told = "policy: role=[secret] is no webserver; [secret] is not 110.0.0.0/8, nor [secret] 15432"
    assert without_secrets(hidden, text) == told
