"""Generated files match the model, and say what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import jsonschema
import pytest

from bpfleet.emit.files import generated, out_of_date, write
from bpfleet.emit.json_schema import document_schema
from bpfleet.emit.pulumi import package_schema
from bpfleet.emit.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]


def test_committed_files_are_what_the_model_generates() -> None:
    assert out_of_date(ROOT) == [], "run `python -m bpfleet.emit`"


def test_writing_changes_only_what_is_out_of_date(tmp_path: Path) -> None:
    assert sorted(write(tmp_path)) == sorted(generated())
    (tmp_path / "docs/reference/node.md").write_text("old")
    (tmp_path / "provider/schema.json").unlink()
    assert out_of_date(tmp_path) == ["provider/schema.json", "docs/reference/node.md"]
    assert write(tmp_path) == ["provider/schema.json", "docs/reference/node.md"]
    assert write(tmp_path) == []


def references(value: Any) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_of_the_pulumi_schema_leads_to_a_type() -> None:
    schema = package_schema()
    for reference in references(schema):
        assert reference.removeprefix("#/types/") in schema["types"], reference


def test_pulumi_schema_has_inputs_outputs_and_replacement() -> None:
    resources = package_schema()["resources"]
    names = ("Cluster", "Node", "Identity", "Endpoint", "CidrGroup", "Policy", "Service")
    assert set(resources) == {f"bpfleet:index:{name}" for name in names}
    identity = resources["bpfleet:index:Identity"]
    assert "number" not in identity["inputProperties"] and "number" in identity["required"]
    assert identity["requiredInputs"] == ["cluster", "labels"]
    assert identity["inputProperties"]["name"]["willReplaceOnChanges"]
    node = resources["bpfleet:index:Node"]
    assert node["inputProperties"]["workloadCidrs"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "Networks of its endpoints' addresses. No two nodes' may overlap.",
    }
    members = resources["bpfleet:index:Cluster"]["inputProperties"]["members"]
    assert members["additionalProperties"] == {"$ref": "#/types/bpfleet:index:NodeHandle"}
    for token, shape in SHAPES.items():
        assert "drift" in resources[token]["required"], shape.kind


NODE = {
    "kind": "node",
    "name": "h1",
    "spec": {"address": "192.0.2.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.1.0/24"]},
}
POLICY = {
    "kind": "policy",
    "name": "web",
    "spec": {"selector": {"role": "web"}, "ingress": [{"peers": [{"entity": "world"}], "ports": [{"port": 80}]}]},
}
BAD: Dict[str, Dict[str, Any]] = {
    "unknown kind": {**NODE, "kind": "nodes"},
    "unknown field": {**NODE, "spec": {**NODE["spec"], "adress": "192.0.2.1"}},  # type: ignore[dict-item]
    "metadata field": {**NODE, "spec": {**NODE["spec"], "ssh": {}}},  # type: ignore[dict-item]
    "bad name": {**NODE, "name": "H1"},
    "port out of range": {**POLICY, "spec": {"selector": {}, "ingress": [{"ports": [{"port": 70000}]}]}},
    "both alternatives": {
        **POLICY,
        "spec": {"selector": {}, "egress": [{"peers": [{"entity": "world", "labels": {}}]}]},
    },
    "no devices": {**NODE, "spec": {**NODE["spec"], "devices": []}},  # type: ignore[dict-item]
}


@pytest.mark.parametrize("document", [NODE, POLICY], ids=["node", "policy"])
def test_json_schema_takes_good_documents(document: Dict[str, Any]) -> None:
    jsonschema.validate(document, document_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("document", BAD.values(), ids=list(BAD))
def test_json_schema_refuses_bad_documents(document: Dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, document_schema(), cls=jsonschema.Draft202012Validator)


def test_json_schema_is_valid_itself() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json.dumps(document_schema())))
