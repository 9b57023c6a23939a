"""The reference pages: one for each resource type, in Markdown."""

from __future__ import annotations

from typing import Dict, Iterable, List, Sequence

from bpfleet.emit.shapes import SHAPES, Shape
from bpfleet.model.schema import (
    Address,
    Boolean,
    Cidr,
    Field,
    Integer,
    ListOf,
    MapOf,
    Object,
    Type,
    camel,
    walk_fields,
)

_GENERATED = "<!-- Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit. -->"


def pages() -> Dict[str, str]:
    """Text of every page by its file name."""
    result = {f"{shape.kind}.md": _page(shape) for shape in SHAPES.values()}
    result["README.md"] = _index()
    return result


def _index() -> str:
    lines = [_GENERATED, "", "# Reference", "", "| resource | Pulumi type | what it is |", "|---|---|---|"]
    for token, shape in SHAPES.items():
        name = shape.resource.type_name
        lines.append(f"| [{name}]({shape.kind}.md) | `{token}` | {_cell(shape.resource.doc)} |")
    lines += [
        "",
        "Fields are written `workloadCidrs` in Pulumi and `workload_cidrs` in documents; the tables give the first, "
        "and the second where it differs.",
        "",
        "[document.schema.json](document.schema.json) is the JSON Schema of a document.",
        "",
    ]
    return "\n".join(lines)


def _page(shape: Shape) -> str:
    lines = [_GENERATED, "", f"# {shape.resource.type_name}", "", shape.resource.doc, ""]
    lines += [f"Pulumi: `{shape.resource.token}`. Document kind: `{shape.kind}`.", ""]
    lines += ["## Inputs", "", *_alternatives(shape.resource.exactly_one), *_table(shape.inputs)]
    lines += ["## Outputs", "", "Every input, and:", "", *_table(shape.outputs, inputs=False)]
    objects = walk_fields(shape.fields)
    if objects:
        lines += ["## Types", ""]
    for kind, _ in objects:
        lines += [f"### {kind.name}", "", kind.doc, ""]
        lines += [*_alternatives(kind.exactly_one), *_table(kind.fields)]
    return "\n".join(lines)


def _alternatives(exactly_one: Sequence[str]) -> List[str]:
    names = ", ".join(f"`{camel(name)}`" for name in exactly_one)
    return [f"Exactly one of {names} must be given.", ""] if names else []


def _table(fields: Sequence[Field], inputs: bool = True) -> List[str]:
    if not inputs:
        rows = [f"| {_name(field)} | {type_text(field.type)} | {_cell(field.doc)} |" for field in fields]
        return ["| name | type | meaning |", "|---|---|---|", *rows, ""]
    rows = [
        f"| {_name(field)} | {type_text(field.type)} | {_presence(field)} | {_cell(_meaning(field))} |"
        for field in fields
    ]
    return ["| name | type | given | meaning |", "|---|---|---|---|", *rows, ""]


def _name(field: Field) -> str:
    written = f"`{camel(field.name)}`"
    if camel(field.name) != field.name and not field.metadata and not field.computed:
        written += f" (`{field.name}`)"
    return written


def _presence(field: Field) -> str:
    if field.required:
        return "required"
    if field.default is None or field.default == {}:
        return "optional"
    return f"default `{field.default}`"


def _meaning(field: Field) -> str:
    notes = [field.doc]
    if field.replaces:
        notes.append("A change replaces the resource." if not field.metadata else "Another cluster replaces it.")
    if field.secret:
        notes.append("Kept secret.")
    if field.metadata and not field.computed and not field.replaces:
        notes.append("Not part of the document.")
    return " ".join(notes)


def type_text(kind: Type) -> str:
    """A type in words, with its limits."""
    if isinstance(kind, Object):
        return f"[{kind.name}](#{kind.name.lower()})"
    if isinstance(kind, ListOf):
        return ("set of " if kind.set_like else "list of ") + type_text(kind.item)
    if isinstance(kind, MapOf):
        return f"map of {type_text(kind.value)}"
    if isinstance(kind, Integer):
        return f"integer, {kind.least} to {kind.most}"
    if isinstance(kind, Boolean):
        return "boolean"
    if isinstance(kind, Address):
        return "IPv4 or IPv6 address"
    if isinstance(kind, Cidr):
        return "CIDR"
    if kind.choices:
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    return f"string: {_cell(kind.rule)}" if kind.rule else "string"


def _cell(text: str) -> str:
    return " ".join(_escape(text.split()))


def _escape(words: Iterable[str]) -> List[str]:
    return [word.replace("|", "\\|") for word in words]
