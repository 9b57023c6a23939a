"""Pulumi's property values and plain data, either way.

Plain data here is what the model checks: dicts with the schema's names, lists, strings, numbers, and `UNKNOWN` for
what a preview does not know. Pulumi's names (camelCase) are turned by schema, so that keys of maps stay as they are.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Dict, FrozenSet, List, Mapping, Sequence, Set, Tuple, cast

from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime import rpc

from bpfleet.model.schema import UNKNOWN, Field, ListOf, MapOf, Object, Problem, Type, camel

Path = Tuple[str, ...]
Secrets = FrozenSet[Path]
"""Paths, in Pulumi's names, below which everything is secret. A secret inside a list makes the list one."""


def from_pulumi(values: Mapping[str, PropertyValue]) -> Tuple[Dict[str, Any], Secrets]:
    """Plain data, still with Pulumi's names, and where its secrets are. What is null is left out."""
    secrets: Set[Path] = set()
    return _plain_map(values, (), secrets), frozenset(secrets)


def _plain_map(values: Mapping[str, PropertyValue], path: Path, secrets: Set[Path]) -> Dict[str, Any]:
    return {key: _plain(item, (*path, key), secrets) for key, item in values.items() if item.value is not None}


def _plain(value: PropertyValue, path: Path, secrets: Set[Path]) -> Any:
    if value.is_secret:
        secrets.add(path)
    inner = value.value
    if isinstance(inner, str):
        return UNKNOWN if inner == rpc.UNKNOWN else inner
    if isinstance(inner, float):
        return int(inner) if inner.is_integer() else inner
    if isinstance(inner, Mapping):
        return _plain_map(inner, path, secrets)
    if isinstance(inner, Sequence):
        items = cast("Sequence[PropertyValue]", inner)
        if any(item.contains_secret() for item in items):
            secrets.add(path)
        return [_plain(item, path, set()) for item in items]
    return inner


def to_pulumi(values: Mapping[str, Any], secrets: Secrets = frozenset()) -> Dict[str, PropertyValue]:
    """Property values of plain data with Pulumi's names, secret where `secrets` says so."""
    return {key: _wrapped(item, (key,), secrets) for key, item in values.items()}


def _wrapped(value: Any, path: Path, secrets: Secrets) -> PropertyValue:
    secret = path in secrets
    if value is UNKNOWN:
        return PropertyValue(rpc.UNKNOWN, is_secret=secret)
    if isinstance(value, Mapping):
        fields = {key: _wrapped(item, (*path, key), secrets) for key, item in value.items()}
        return PropertyValue(fields, is_secret=secret)
    if isinstance(value, (list, tuple)):
        return PropertyValue([_wrapped(item, path, frozenset()) for item in value], is_secret=secret)
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return PropertyValue(value, is_secret=secret)


def secret_texts(values: Mapping[str, PropertyValue]) -> Set[str]:
    """Every string and number that is secret, to keep it out of messages."""
    found: Set[str] = set()

    def visit(value: PropertyValue, secret: bool) -> None:
        secret = secret or value.is_secret
        inner = value.value
        if isinstance(inner, str):
            if secret and inner and inner != rpc.UNKNOWN:
                found.add(inner)
        elif isinstance(inner, float):
            if secret:
                found.add(str(int(inner) if inner.is_integer() else inner))
        elif isinstance(inner, Mapping):
            for item in inner.values():
                visit(item, secret)
        elif isinstance(inner, Sequence):
            for item in cast("Sequence[PropertyValue]", inner):
                visit(item, secret)

    for value in values.values():
        visit(value, False)
    return found


def without_secrets(hidden: Set[str], text: str) -> str:
    """The text with these secrets left out, where they stand as words of their own."""
    for secret in sorted((secret for secret in hidden if secret in text), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[secret]", text)
    return text


def schema_secrets(fields: Sequence[Field], prefix: Path = ()) -> Secrets:
    """Paths of the fields that the schema itself calls secret (outside lists and maps)."""
    found: Set[Path] = set()
    for field in fields:
        path = (*prefix, camel(field.name))
        if field.secret:
            found.add(path)
        elif isinstance(field.type, Object):
            found |= schema_secrets(field.type.fields, path)
    return frozenset(found)


def to_model(fields: Sequence[Field], values: Mapping[str, Any]) -> Tuple[Dict[str, Any], List[Problem]]:
    """`values` with the schema's names; unknown fields are left out and reported, paths in Pulumi's names."""
    problems: List[Problem] = []
    return _renamed_fields(fields, values, "", problems), problems


def _renamed_fields(
    fields: Sequence[Field], values: Mapping[str, Any], prefix: str, problems: List[Problem]
) -> Dict[str, Any]:
    known = {camel(field.name): field for field in fields}
    result: Dict[str, Any] = {}
    for key, value in values.items():
        field = known.get(key)
        if field is None:
            near = difflib.get_close_matches(camel(key), list(known), 1)
            remedy = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
            problems.append(Problem(prefix + key, f"unknown field {key}", remedy, unknown_field=True))
        else:
            result[field.name] = _renamed(field.type, value, prefix + key, problems)
    return result


def _renamed(kind: Type, value: Any, path: str, problems: List[Problem]) -> Any:
    if isinstance(kind, Object) and isinstance(value, Mapping):
        return _renamed_fields(kind.fields, value, path + ".", problems)
    if isinstance(kind, MapOf) and isinstance(value, Mapping):
        return {key: _renamed(kind.value, item, path + key_step(key), problems) for key, item in value.items()}
    if isinstance(kind, ListOf) and isinstance(value, list):
        return [_renamed(kind.item, item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
    return value


def from_model(fields: Sequence[Field], values: Mapping[str, Any]) -> Dict[str, Any]:
    """`values` (with the schema's names) with Pulumi's names."""
    known = {field.name: field for field in fields}
    return {camel(name): _pulumi_names(known[name].type, value) for name, value in values.items()}


def _pulumi_names(kind: Type, value: Any) -> Any:
    if isinstance(kind, Object) and isinstance(value, Mapping):
        return from_model(kind.fields, value)
    if isinstance(kind, MapOf) and isinstance(value, Mapping):
        return {key: _pulumi_names(kind.value, item) for key, item in value.items()}
    if isinstance(kind, ListOf) and isinstance(value, (list, tuple)):
        return [_pulumi_names(kind.item, item) for item in value]
    return value


def key_step(key: str) -> str:
    """One step of a Pulumi property path into a map: `.key`, or `["the.key"]` where that would be read wrongly."""
    plain = key.replace("-", "").replace("_", "").isalnum()
    return f".{key}" if plain else f'["{key}"]'


def pulumi_path(fields: Sequence[Field], values: Mapping[str, Any], path: str) -> str:
    """A path as the model's checks write it, in Pulumi's names. `values` tells where a map's key ends."""
    for field in fields:
        if path == field.name or path.startswith((field.name + ".", field.name + "[")):
            rest = path[len(field.name) :]
            return camel(field.name) + _pulumi_rest(field.type, values.get(field.name), rest)
    return path


def _pulumi_rest(kind: Type, value: Any, rest: str) -> str:
    if not rest:
        return ""
    if isinstance(kind, ListOf) and rest.startswith("["):
        index, _, after = rest[1:].partition("]")
        item = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
        return f"[{index}]" + _pulumi_rest(kind.item, item, after)
    if isinstance(kind, Object) and rest.startswith("."):
        return "." + pulumi_path(kind.fields, value if isinstance(value, Mapping) else {}, rest[1:])
    if isinstance(kind, MapOf) and rest.startswith("."):
        keys = [str(key) for key in value] if isinstance(value, Mapping) else []
        fitting = [key for key in keys if rest[1:] == key or rest[1:].startswith((key + ".", key + "["))]
        key = max(fitting, key=len, default=rest[1:])
        item = value.get(key) if isinstance(value, Mapping) else None
        return key_step(key) + _pulumi_rest(kind.value, item, rest[1 + len(key) :])
    return rest
