# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared documents: inline in a task, or in YAML and JSON files; checked against the model, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import (
    BpfleetError,
    InvalidInput,
    UnknownField,
)
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.document import (
    parse_document,
    problems_of,
)
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.readable import unreadable
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.resources import RESOURCES
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.schema import check

SUFFIXES = (".yml", ".yaml", ".json")
PLACEHOLDER = "number"
"""The one field of a document that a person leaves out: it is allocated."""
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|[0-9]*\.[0-9]*([eE][-+]?[0-9]+)?|\.(inf|nan))", re.I)
"""One that every version of YAML reads alike."""
_ESCAPE = re.compile(r"\\(?:u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})|.)", re.S)
"""Of JSON, where a character beyond 16 bits is two of them (RFC 8259 7)."""


@dataclass
class Declared:
    """One document as declared. `place` says where, for people. An identity's spec may lack its number yet."""

    kind: str
    name: str
    spec: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def key(self) -> str:
        """ "kind/name"."""
        return f"{self.kind}/{self.name}"

    def item(self, owner: str) -> dict[str, Any]:
        """What is put on a node."""
        document = {"kind": self.kind, "name": self.name, "spec": self.spec}
        return {"document": document, "owner": owner, "metadata": self.metadata}


class Invalid(InvalidInput):
    """Everything that is wrong with what was declared."""

    def __init__(self, errors: list[BpfleetError]) -> None:
        super().__init__("; ".join(str(error) for error in errors), details={"errors": [e.to_wire() for e in errors]})
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def plain(value: Any) -> Any:
    """The same as data of JSON and of Python's own types (Ansible marks values by subclasses of them). Keys that are no
    text stay what they are, to be refused: `on` and `010` are True and 8 in YAML, and no label was meant to be."""
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, str) else key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def declare(inline: Iterable[Any], paths: Iterable[Path]) -> list[Declared]:
    """All documents of a task; raises Invalid with everything that is wrong in any of them."""
    errors: list[BpfleetError] = []
    found: list[Declared] = []
    for index, data in enumerate(inline):
        place = f"documents[{index}]"
        if not _is_unreadable(data, place, errors):
            found += _checked(plain(data), place, None, errors)
    for path in paths:
        for file in _files(path, errors):
            for data, node in _load(file, errors):
                found += _checked(data, str(file), node, errors)
    seen: dict[str, Declared] = {}
    for one in found:
        first = seen.setdefault(one.key, one)
        if first is not one:
            errors.append(
                InvalidInput(
                    f"is declared twice: in {first.place} and in {one.place}",
                    resource=one.key,
                    remedy="Declare it once.",
                )
            )
    if errors:
        raise Invalid(errors)
    return found


def declare_one(data: Mapping[str, Any]) -> Declared:
    """The document of a task that has but one; raises Invalid."""
    errors: list[BpfleetError] = []
    if not _is_unreadable(data, "", errors):
        found = _checked(plain(data), "", None, errors)
    if errors:
        raise Invalid(errors)
    return found[0]


def _files(path: Path, errors: list[BpfleetError]) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
    errors.append(
        InvalidInput("is not there", file=str(path), remedy="Give a file, or a directory of YAML or JSON files.")
    )
    return []


def _load(file: Path, errors: list[BpfleetError]) -> Iterator[tuple[Any, yaml.Node]]:
    """Each document in a file, with its YAML node (JSON is YAML). A list, and several YAML documents, are many."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            text = text.replace("\t", " ")  # white space between tokens, which YAML takes no tabs for
            text = _ESCAPE.sub(_in_one, text)
        tops = [top for top in yaml.compose_all(text, Loader=yaml.SafeLoader) if top is not None]
        # Before anything is constructed: that puts what `<<` merges into the nodes, where keys may well be repeated.
        for top in tops:
            errors.extend(_repeated_keys(top, file))
        for top in tops:
            for node in top.value if isinstance(top, yaml.SequenceNode) else [top]:
                data = _construct(node)
                if not _is_unreadable(data, _place(file, node.start_mark.line + 1), errors):
                    errors.extend(_misread_numbers(node, data, file))
                    yield plain(data), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(file, mark.line + 1) if mark else str(file)
        errors.append(InvalidInput(f"is not YAML: {error.problem}", file=place, remedy="Mend the file."))
    except RecursionError:
        errors.append(
            InvalidInput(
                "is nested too deeply, or refers to itself",
                file=str(file),
                remedy="No document is so deep: mend the file.",
            )
        )
    except (OSError, ValueError, yaml.YAMLError) as error:  # of values: numbers of thousands of digits, other encodings
        errors.append(InvalidInput(f"cannot be read: {error}", file=str(file), remedy="Mend the file."))


def _in_one(escape: re.Match[str]) -> str:
    """The same character as YAML writes it, which knows no halves."""
    high, low = escape["high"], escape["low"]
    return escape[0] if high is None else f"\\U{0x10000 + (int(high, 16) % 0x400 << 10) + int(low, 16) % 0x400:08x}"


def _is_unreadable(data: Any, place: str, errors: list[BpfleetError]) -> bool:
    """Whether there is something that nobody could look at, which is an error."""
    for path, what, remedy in unreadable(data):
        errors.append(InvalidInput(what, field=path, file=place or None, remedy=remedy))
        return True
    return False


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _repeated_keys(node: yaml.Node, file: Path) -> Iterator[BpfleetError]:
    """YAML takes the last of two equal keys; nobody means that."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, file)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                what = f"{name} is given twice (first in line {seen[name]})"
                yield InvalidInput(what, file=_place(file, line), remedy="Remove one of the two.")
            seen.setdefault(name, line)
            yield from _repeated_keys(value, file)


def _misread_numbers(node: yaml.Node, data: Any, file: Path) -> Iterator[BpfleetError]:
    """Numbers that this YAML (1.1) reads otherwise than people, and YAML 1.2, do: 010 is 8 to it, and 22:22 is 1342."""
    whose = ""
    if isinstance(data, Mapping) and isinstance(data.get("kind"), str) and isinstance(data.get("name"), str):
        whose = f"{data['kind']}/{data['name']}"
    for path, scalar in _scalars(node, ""):
        if scalar.tag not in _NUMBER_TAGS or _PLAIN_NUMBER.fullmatch(scalar.value):
            continue
        yield InvalidInput(
            f"{scalar.value} is the number {_construct(scalar)} in YAML",
            resource=whose,
            field=path[len("spec.") :] if path.startswith("spec.") else path,
            file=_place(file, scalar.start_mark.line + 1),
            remedy="Write it in decimal, without zeros before it, : and _; or in quotes, if it is text.",
        )


def _scalars(node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every value below, with its path."""
    if isinstance(node, yaml.ScalarNode):
        yield path, node
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _scalars(item, f"{path}[{index}]")
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, f"{path}.{key.value}" if path else str(key.value))


def _place(file: Path | str, line: int) -> str:
    return f"{file}:{line}"


def _checked(data: Any, place: str, node: yaml.Node | None, errors: list[BpfleetError]) -> list[Declared]:
    """The declared document if nothing is wrong with it; what is wrong goes to `errors`, with file and line."""

    def report(error: BpfleetError, path: str) -> None:
        if place:
            error.at(file=place if node is None else _place(place, _line(node, path)))
        errors.append(error)

    if not isinstance(data, dict):
        report(InvalidInput("a document must be a mapping", remedy="Give kind, name and spec."), "")
        return []
    metadata, before = _metadata(data, report), len(errors)
    body = {key: value for key, value in data.items() if key != "ssh"}
    filled = _with_placeholder(body)
    for problem in problems_of(filled):
        path = problem.field or ""
        report(problem, path if path in ("kind", "name", "spec") else _below_spec(body, path))
    if len(errors) > before:
        return []
    document = parse_document(filled)
    spec = dict(document.spec)
    if filled is not body:
        del spec[PLACEHOLDER]
    where = place if node is None else _place(place, node.start_mark.line + 1)
    return [Declared(document.kind, document.name, spec, metadata, where)]


def _below_spec(body: Mapping[str, Any], path: str) -> str:
    first = re.split(r"[.\[]", path, maxsplit=1)[0]
    return path if first in body and first not in (body.get("spec") or {}) else f"spec.{path}"


def _with_placeholder(body: dict[str, Any]) -> dict[str, Any]:
    """An identity without its number, with one that the model takes."""
    spec = body.get("spec")
    if body.get("kind") != "identity" or not isinstance(spec, dict) or spec.get(PLACEHOLDER) is not None:
        return body
    return {**body, "spec": {**spec, PLACEHOLDER: 1 << 16}}


def _metadata(data: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """How a node is reached stands beside its spec, as `ssh`."""
    if "ssh" not in data:
        return {}
    if data.get("kind") != "node":
        report(UnknownField("unknown field ssh", field="ssh", remedy="Only a node has it."), "ssh")
        return {}
    ssh = next(one for one in RESOURCES["node"].fields if one.name == "ssh")
    checked, problems = check((ssh,), {"ssh": data["ssh"]})
    for problem in problems:
        kind = UnknownField if problem.unknown_field else InvalidInput
        resource = f"node/{data.get('name')}"
        report(kind(problem.what, resource=resource, field=problem.path, remedy=problem.remedy), problem.path)
    return checked


_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _line(node: yaml.Node, path: str) -> int:
    """The line (from 1) of the deepest part of `path` ("spec.ingress[0].ports[1].port") that is there."""
    line = node.start_mark.line + 1
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            break
        found: yaml.Node | None = None
        position = step.end()
        if step.group(1) is not None and isinstance(node, yaml.SequenceNode):
            index = int(step.group(1))
            found = node.value[index] if index < len(node.value) else None
            line = found.start_mark.line + 1 if found is not None else line
        elif step.group(2) is not None and isinstance(node, yaml.MappingNode):
            # A key may itself hold dots ("app.kubernetes.io/name"): take the longest that fits.
            rest = path[step.start() :]
            fitting = [
                (key, value)
                for key, value in node.value
                if rest == key.value or rest.startswith((key.value + ".", key.value + "["))
            ]
            if fitting:
                key, found = max(fitting, key=lambda pair: len(pair[0].value))
                line, position = key.start_mark.line + 1, step.start() + len(key.value)
        if found is None:
            break
        node = found
        if path[position : position + 1] == ".":
            position += 1
    return line
