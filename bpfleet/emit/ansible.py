"""Ansible's argument specs and module documentation, from the model.

Every module is documentation only: what it does is done by the action plugin of its name. Each resource type has one;
what is written by hand here is what no resource has (state, ownership, confirmation, results) and the examples.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Sequence

import yaml

import bpfleet
from bpfleet.emit.ansible_texts import COMMON, EXAMPLES, OTHERS, RETURNS, SYNOPSES
from bpfleet.model.resources import RESOURCES, Resource
from bpfleet.model.schema import Address, Boolean, Cidr, Field, Integer, ListOf, MapOf, Object, Text, Type

DIRECTORY = "ansible_collection/plugins"
_LICENSE = """\
# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Generated from bpfleet/model by `python -m bpfleet.emit`; do not edit.
"""

Options = Dict[str, Dict[str, Any]]
"""Options of a module as its documentation has them, by name."""


def ansible_files() -> Dict[str, str]:
    """Text of every generated file of the collection, by path below the repository's root."""
    modules = {resource.kind: _resource_module(resource) for resource in RESOURCES.values()}
    modules.update({name: _module(name, OTHERS[name]["options"], OTHERS[name]) for name in OTHERS})
    files = {f"{DIRECTORY}/modules/{name}.py": text for name, text in modules.items()}
    files[f"{DIRECTORY}/plugin_utils/argument_specs.py"] = _argument_specs()
    return dict(sorted(files.items()))


def declared_fields(resource: Resource) -> List[Field]:
    """The fields of a resource that a task gives: those of the document, and how a node is reached."""
    fields = [field for field in resource.spec_fields if not field.computed]
    return fields + [field for field in resource.fields if field.name == "ssh"]


def resource_options(resource: Resource) -> Options:
    """Options of a resource's module."""
    options: Options = {
        "name": {
            "description": [
                f"Name of the {resource.kind}: {resource.name.rule}.",
                "Other documents refer to it by this name.",
            ],
            "type": "str",
            "required": True,
        }
    }
    if resource.kind != "cluster":
        options["cluster"] = COMMON["cluster"]
    for field in declared_fields(resource):
        options[field.name] = _option(field, top=True)
    options.update({name: COMMON[name] for name in ("state", "this_node", "deadline")})
    return options


def _option(field: Field, top: bool = False) -> Dict[str, Any]:
    description = [field.doc]
    if field.required and top:
        description.append("Required if O(state=present).")
    if field.name == "members":
        description.append("Names of node documents, which usually are names of inventory hosts.")
    if field.name == "ssh":
        description.append("Filled in from the inventory for a node that it has; not part of the document's content.")
    entry: Dict[str, Any] = {"description": description, **_type(field.type)}
    if field.required and not top:
        entry["required"] = True
    if field.default is not None and field.default != {}:
        entry["default"] = field.default
    if field.secret:
        entry["no_log"] = True
    elif "key" in field.name:
        # A path and a public key: without this Ansible would take them for secrets by their names.
        entry["no_log"] = False
    return entry


def _type(kind: Type) -> Dict[str, Any]:
    if isinstance(kind, ListOf):
        item = _type(kind.item)
        entry = {"type": "list", "elements": item.pop("type")}
        return {**entry, **item}
    if isinstance(kind, Object):
        entry = {"type": "dict", "suboptions": {field.name: _option(field) for field in kind.fields}}
        if kind.exactly_one:
            entry["mutually_exclusive"] = [list(kind.exactly_one)]
            entry["required_one_of"] = [list(kind.exactly_one)]
        return entry
    if isinstance(kind, MapOf):
        return {"type": "dict"}
    if isinstance(kind, Integer):
        return {"type": "int"}
    if isinstance(kind, Boolean):
        return {"type": "bool"}
    if isinstance(kind, (Address, Cidr)):
        return {"type": "str"}
    assert isinstance(kind, Text)
    return {"type": "str", **({"choices": list(kind.choices)} if kind.choices else {})}


# Argument specs


def _argument_specs() -> str:
    specs = {resource.kind: _spec(resource_options(resource), resource) for resource in RESOURCES.values()}
    specs.update({name: _spec(module["options"], None, module) for name, module in OTHERS.items()})
    return (
        f'{_LICENSE}"""Argument specs of the modules, for the action plugins that validate them."""\n\n'
        "from __future__ import annotations\n\nfrom typing import Any\n\n"
        f"ARGUMENT_SPECS: dict[str, dict[str, Any]] = {_literal(specs)}\n"
    )


def _literal(value: Any, depth: int = 0) -> str:
    """Python text of plain data, an item a line, as the formatter leaves it."""
    if isinstance(value, (dict, list, tuple)) and value:
        start, end = {dict: ("{", "}"), list: ("[", "]"), tuple: ("(", ")")}[type(value)]
        margin = "    " * (depth + 1)
        if isinstance(value, dict):
            items = [f"{_literal(key)}: {_literal(item, depth + 1)}" for key, item in value.items()]
        else:
            items = [_literal(item, depth + 1) for item in value]
        return start + "\n" + "".join(f"{margin}{item},\n" for item in items) + "    " * depth + end
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _spec(options: Options, resource: Resource | None, module: Dict[str, Any] | None = None) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"argument_spec": {name: _argument(option) for name, option in options.items()}}
    if resource is not None:
        required = [field.name for field in declared_fields(resource) if field.required]
        entry["required_if"] = [("state", "present", required)]
        if resource.exactly_one:
            entry["required_if"].append(("state", "present", list(resource.exactly_one), True))
            entry["mutually_exclusive"] = [list(resource.exactly_one)]
    for key in ("required_one_of", "mutually_exclusive"):
        if module is not None and key in module:
            entry[key] = module[key]
    return entry


def _argument(option: Dict[str, Any]) -> Dict[str, Any]:
    kept = {key: value for key, value in option.items() if key not in ("description", "suboptions")}
    if "suboptions" in option:
        kept["options"] = {name: _argument(inner) for name, inner in option["suboptions"].items()}
    return kept


# Modules


def _resource_module(resource: Resource) -> str:
    return _module(
        resource.kind,
        resource_options(resource),
        {
            "short_description": f"Put or delete one {resource.kind} document",
            "description": [resource.doc, *SYNOPSES["resource"]],
            "check_mode": "full",
            "diff_mode": "full",
            "returns": "change",
        },
    )


def _module(name: str, options: Options, texts: Dict[str, Any]) -> str:
    documentation = {
        "module": name,
        "short_description": texts["short_description"],
        "version_added": _first_version(),
        "description": texts["description"],
        "options": {key: _documented(option) for key, option in options.items()},
        "attributes": {
            "check_mode": {"support": texts["check_mode"], "description": SYNOPSES["check_mode"]},
            "diff_mode": {"support": texts["diff_mode"], "description": SYNOPSES["diff_mode"]},
            "platform": {"platforms": "Linux", "support": "full", "description": SYNOPSES["platform"]},
        },
        "requirements": ["Python 3.9 or later, libbpf 1.1 or later and Linux 6.1 or later on the host"],
        "author": ["bpfleet contributors (@bpfleet)"],
    }
    return (
        f'#!/usr/bin/python\n{_LICENSE}"""Documentation of bpfleet.fleet.{name}; the action plugin of this name does '
        'the work."""\n\nfrom __future__ import annotations\n\n'
        f"DOCUMENTATION = {_yaml(documentation)}\n"
        f'EXAMPLES = r"""\n{EXAMPLES[name].strip()}\n"""\n\n'
        f"RETURN = {_yaml(RETURNS[texts['returns']])}"
    )


def _first_version() -> str:
    return bpfleet.__version__


def _documented(option: Dict[str, Any]) -> Dict[str, Any]:
    hidden = ("no_log", "mutually_exclusive", "required_one_of")
    kept = {key: value for key, value in option.items() if key not in hidden}
    kept["description"] = list(_sentences(option))
    if "suboptions" in option:
        kept["suboptions"] = {name: _documented(inner) for name, inner in option["suboptions"].items()}
    return kept


def _sentences(option: Dict[str, Any]) -> Sequence[str]:
    texts = list(option["description"])
    for names in option.get("required_one_of", []):
        texts.append(f"Exactly one of {', '.join(f'V({name})' for name in names)} must be given.")
    return texts


def _yaml(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    return f'r"""\n---\n{text}"""\n'


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key, as ansible-lint wants them; no anchors for what occurs twice."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True
