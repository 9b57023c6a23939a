"""Check: a program's inputs against the schema. Pure; no node is asked."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

from pulumi.provider.experimental.property_value import PropertyValue

from bpfleet.emit.shapes import SHAPES, Shape
from bpfleet.model.schema import UNKNOWN, Field, MapOf, Object, Problem, camel, check, walk_fields
from provider.values import (
    Secrets,
    from_model,
    from_pulumi,
    key_step,
    pulumi_path,
    schema_secrets,
    secret_texts,
    to_model,
    to_pulumi,
    without_secrets,
)


def check_inputs(
    shape: Shape, logical_name: str, news: Mapping[str, PropertyValue]
) -> Tuple[Dict[str, PropertyValue], List[Tuple[str, str]]]:
    """Normalised inputs for the state, and failures as (property path, reason).

    The inputs are of use only where there is no failure. What came in secret goes out secret.
    """
    given, secrets = from_pulumi(news)
    values, problems = to_model(shape.inputs, given)
    values.setdefault("name", logical_name)
    checked, found = check(shape.inputs, values, shape.resource.exactly_one, shape.resource.checks)
    problems += [_in_pulumi_words(shape, values, problem) for problem in found]
    if not found:
        problems += _handle_problems(shape, checked)
    hidden = secret_texts(news)
    failures = [(unechoed(problem.path, secrets), without_secrets(hidden, _reason(problem))) for problem in problems]
    secrets |= schema_secrets(shape.inputs)
    return to_pulumi(from_model(shape.inputs, checked), secrets), failures


def unechoed(path: str, secrets: Secrets) -> str:
    """`path`, so that the engine does not find a secret there: it prints the value if that is a whole property."""
    return f"{path} (secret)" if any(secret[0] == path for secret in secrets) else path


def _reason(problem: Problem) -> str:
    return f"{problem.what}. {problem.remedy}" if problem.remedy else problem.what


def _in_pulumi_words(shape: Shape, values: Mapping[str, Any], problem: Problem) -> Problem:
    path = pulumi_path(shape.inputs, values, problem.path)
    remedy = pulumi_words(problem.remedy)
    field = next((field for field in shape.inputs if field.name == problem.path), None)
    if field is not None and _takes_handle(field):
        what = "the cluster's" if field.name == "cluster" else "each node's"
        remedy = f"Give {what} output `handle`, such as ${{name.handle}} in YAML or name.handle in Python."
    elif problem.path == "name":
        remedy += " A Pulumi name that does not fit needs a `name` beside it."
    return Problem(path, pulumi_words(problem.what), remedy.strip(), problem.unknown_field)


def _takes_handle(field: Field) -> bool:
    kind = field.type.value if isinstance(field.type, MapOf) else field.type
    return isinstance(kind, Object) and kind.name.endswith("Handle")


def _handle_problems(shape: Shape, checked: Mapping[str, Any]) -> List[Problem]:
    """What a map of handles must fulfil besides its type."""
    problems: List[Problem] = []
    for field in shape.inputs:
        if field.handles is None:
            continue
        members = checked.get(field.name)
        if members == {}:
            problems.append(Problem(camel(field.name), "needs at least 1 item", "Give the handle of a node."))
        for key, handle in members.items() if isinstance(members, Mapping) else ():
            name = handle.get("name") if isinstance(handle, Mapping) else UNKNOWN
            if name is not UNKNOWN and name != key:
                path = camel(field.name) + key_step(key)
                problems.append(Problem(path, f"is the handle of {name}", f"Write {name} as its key."))
    return problems


def _all_names() -> Dict[str, str]:
    names: Dict[str, str] = {}
    for shape in SHAPES.values():
        fields = list(shape.fields)
        for kind, _ in walk_fields(shape.fields):
            fields.extend(kind.fields)
        names.update({field.name: camel(field.name) for field in fields if "_" in field.name})
    return names


_NAMES = _all_names()
_NAME = re.compile(r"\b(" + "|".join(sorted(_NAMES, key=len, reverse=True)) + r")\b")


def pulumi_words(text: str) -> str:
    """A message of the model's with its field names as Pulumi programs write them."""
    return _NAME.sub(lambda match: _NAMES[match.group()], text)
