"""JSON Schema (draft 2020-12) of documents, for editors and other tools.

It says what one document may hold. What no schema can say (two endpoints with one address, …) the nodes check.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence

from bpfleet.model.resources import RESOURCES, Resource
from bpfleet.model.schema import Address, Boolean, Cidr, Field, Integer, ListOf, MapOf, Object, Text, Type, walk_fields


def document_schema() -> Dict[str, Any]:
    """The schema as plain JSON data."""
    definitions: Dict[str, Any] = {}
    for resource in RESOURCES.values():
        for kind, _ in walk_fields(resource.spec_fields):
            definitions[kind.name] = _object(kind.doc, kind.fields, kind.exactly_one)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.",
        "title": "bpfleet document",
        "description": "One declared resource, as nodes keep it.",
        "oneOf": [_document(resource) for resource in RESOURCES.values()],
        "$defs": dict(sorted(definitions.items())),
    }


def _document(resource: Resource) -> Dict[str, Any]:
    return {
        "title": resource.type_name,
        "description": resource.doc,
        "type": "object",
        "properties": {
            "kind": {"const": resource.kind},
            "name": _type(resource.name),
            "spec": _object(resource.doc, resource.spec_fields, resource.exactly_one),
        },
        "required": ["kind", "name", "spec"],
        "additionalProperties": False,
    }


def _object(doc: str, fields: Sequence[Field], exactly_one: Sequence[str] = ()) -> Dict[str, Any]:
    entry: Dict[str, Any] = {
        "description": doc,
        "type": "object",
        "properties": {field.name: _field(field) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }
    if exactly_one:
        entry["oneOf"] = [{"required": [name]} for name in exactly_one]
    return entry


def _field(field: Field) -> Dict[str, Any]:
    entry = {**_type(field.type), "description": field.doc}
    if field.default is not None:
        entry["default"] = field.default
    return entry


def _type(kind: Type) -> Dict[str, Any]:
    if isinstance(kind, Object):
        return {"$ref": f"#/$defs/{kind.name}"}
    if isinstance(kind, ListOf):
        entry: Dict[str, Any] = {"type": "array", "items": _type(kind.item)}
        if kind.set_like:
            entry["uniqueItems"] = True
        if kind.least:
            entry["minItems"] = kind.least
        return entry
    if isinstance(kind, MapOf):
        names = {"propertyNames": {"pattern": f"^(?:{kind.key.pattern})$"}} if kind.key.pattern else {}
        return {"type": "object", "additionalProperties": _type(kind.value), **names}
    if isinstance(kind, Integer):
        return {"type": "integer", "minimum": kind.least, "maximum": kind.most}
    if isinstance(kind, Boolean):
        return {"type": "boolean"}
    if isinstance(kind, Address):
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
    if isinstance(kind, Cidr):
        return {"type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"}
    return _text(kind)


def _text(kind: Text) -> Dict[str, Any]:
    if kind.choices:
        return {"type": "string", "enum": list(kind.choices)}
    return {"type": "string", **({"pattern": f"^(?:{kind.pattern})$"} if kind.pattern else {})}
