"""Pulumi's package schema, from the model."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

import bpfleet
from bpfleet.emit.shapes import SHAPES, Shape
from bpfleet.model.schema import Boolean, Field, Integer, ListOf, MapOf, Object, Text, Type, camel, walk_fields

PACKAGE = "bpfleet"
_GENERATED = "Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit."
_PYTHON_README = """# pulumi_bpfleet

Declares bpfleet's resources in Pulumi programs written in Python. Its version is the plugin's.
This folder is generated from provider/schema.json by `make generate`; do not edit. examples/quickstart-python is a
whole program, docs/pulumi.md says how the provider behaves.
"""


def package_schema() -> Dict[str, Any]:
    """The whole schema as plain JSON data, as `pulumi package get-schema` prints it."""
    return {
        "name": PACKAGE,
        "displayName": "bpfleet",
        "version": bpfleet.__version__,
        "description": "Networking, identity-based policy and flow visibility in eBPF for fleets of plain Linux hosts.",
        "attribution": _GENERATED,
        "license": "Apache-2.0",
        "keywords": ["pulumi", "kind/native", "category/network", "ebpf"],
        "meta": {"moduleFormat": "(.*)"},
        "language": {
            "python": {"pyproject": {"enabled": True}, "respectSchemaVersion": True, "readme": _PYTHON_README},
            "nodejs": {"respectSchemaVersion": True},
        },
        "config": {},
        "provider": {"description": "Reaches every node over SSH from where the plugin runs; it has no settings."},
        "types": _types(),
        "resources": {token: _resource(shape) for token, shape in SHAPES.items()},
    }


def type_token(name: str) -> str:
    """Token of an object or enumeration type."""
    return f"{PACKAGE}:index:{name}"


def _resource(shape: Shape) -> Dict[str, Any]:
    """A resource's entry. Every input is an output as well, as Pulumi wants it; `name` is always known there."""
    owner = shape.resource.type_name
    required = [field.name for field in shape.fields if field.required or field.default is not None]
    return {
        "description": shape.resource.doc + _alternatives(shape.resource.exactly_one),
        "inputProperties": {camel(field.name): _property(owner, field) for field in shape.inputs},
        "requiredInputs": sorted(camel(field.name) for field in shape.inputs if field.required),
        "properties": {camel(field.name): _property(owner, field, output=True) for field in shape.fields},
        "required": sorted(camel(name) for name in {*required, "name"}),
    }


def _property(owner: str, field: Field, output: bool = False) -> Dict[str, Any]:
    entry = _reference(owner, field, field.type)
    entry["description"] = field.doc
    if field.default is not None and not isinstance(field.default, dict) and not output:
        entry["default"] = field.default
    if field.secret:
        entry["secret"] = True
    if field.replaces:
        entry["willReplaceOnChanges"] = True
    return entry


def _reference(owner: str, field: Optional[Field], kind: Type) -> Dict[str, Any]:
    if isinstance(kind, Object):
        return {"$ref": f"#/types/{type_token(kind.name)}"}
    if isinstance(kind, ListOf):
        return {"type": "array", "items": _reference(owner, field, kind.item)}
    if isinstance(kind, MapOf):
        return {"type": "object", "additionalProperties": _reference(owner, field, kind.value)}
    if isinstance(kind, Integer):
        return {"type": "integer"}
    if isinstance(kind, Boolean):
        return {"type": "boolean"}
    if isinstance(kind, Text) and kind.choices and field is not None:
        return {"type": "string", "$ref": f"#/types/{type_token(_enumeration(owner, field))}"}
    return {"type": "string"}


def _enumeration(owner: str, field: Field) -> str:
    name = camel(field.name)
    return owner + name[0].upper() + name[1:]


def _types() -> Dict[str, Any]:
    """Every object type and enumeration that a resource uses, by token."""
    owners: Dict[str, Tuple[str, Tuple[Field, ...]]] = {}
    types: Dict[str, Any] = {}
    for shape in SHAPES.values():
        owners[shape.resource.type_name] = (shape.resource.type_name, shape.fields)
        for kind, _ in walk_fields(shape.fields):
            owners[kind.name] = (kind.name, kind.fields)
            types[type_token(kind.name)] = {
                "type": "object",
                "description": kind.doc + _alternatives(kind.exactly_one),
                "properties": {camel(field.name): _property(kind.name, field) for field in kind.fields},
                "required": sorted(camel(field.name) for field in kind.fields if field.required),
            }
    for owner, fields in owners.values():
        for field in fields:
            if isinstance(field.type, Text) and field.type.choices:
                types[type_token(_enumeration(owner, field))] = {
                    "type": "string",
                    "description": field.doc,
                    "enum": [{"name": _enum_name(choice), "value": choice} for choice in field.type.choices],
                }
    return dict(sorted(types.items()))


def _enum_name(choice: str) -> str:
    return "".join(part[0].upper() + part[1:] for part in choice.split("-"))


def _alternatives(exactly_one: Sequence[str]) -> str:
    if not exactly_one:
        return ""
    return f" Exactly one of {', '.join(camel(name) for name in exactly_one)} must be given."
