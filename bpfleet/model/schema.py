"""What a resource type is made of: typed fields as data.

The types here are the vocabulary in which `resources.py` writes the one schema. `check` turns loose input into a
normalised spec (addresses and CIDRs in canonical form, defaults filled in, set-like lists sorted) or a list of
problems, each at the path of a leaf. A value that is not known yet (a preview) is `UNKNOWN` and fits every type.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from bpfleet.model.readable import unreadable


class _Unknown:
    """The type of `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
"""Stands for a value that a preview does not know yet."""


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no text holds: characters that move a terminal's cursor, end a line, turn the direction of writing, or are none
at all. With them one line could pass itself off as another."""


@dataclass(frozen=True)
class Text:
    """A string of one line; `pattern` must match all of it and `rule` says in words what it may hold."""

    pattern: str = ""
    rule: str = ""
    choices: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Integer:
    """A whole number from `least` to `most`, both included."""

    least: int
    most: int


@dataclass(frozen=True)
class Boolean:
    """True or false."""


@dataclass(frozen=True)
class Address:
    """An IPv4 or IPv6 address, normalised to its canonical form: without a link's name behind it, and no IPv4 in IPv6
    notation."""


@dataclass(frozen=True)
class Cidr:
    """A network in CIDR form without host bits, written as an `Address` is."""


@dataclass(frozen=True)
class ListOf:
    """A list. A `set_like` one is kept sorted, because its order means nothing. In such a one, and in a `distinct` one,
    the same twice is a mistake."""

    item: Type
    set_like: bool = False
    least: int = 0
    distinct: bool = False


@dataclass(frozen=True)
class MapOf:
    """A mapping from strings that match `key` to values of one type."""

    value: Type
    key: Text = Text()


@dataclass(frozen=True)
class Object:
    """A mapping with fixed fields.

    exactly_one: names of fields of which one and only one must be given.
    only_with: (field, other field, its values): the field may be given only where the other has one of the values.
    beside: (field, other field): the field may be given only where the other is given too.
    checks: what no type can say; see `Check`.
    """

    name: str
    doc: str
    fields: Tuple[Field, ...]
    exactly_one: Tuple[str, ...] = ()
    only_with: Tuple[Tuple[str, str, Tuple[str, ...]], ...] = ()
    beside: Tuple[Tuple[str, str], ...] = ()
    checks: Tuple[Check, ...] = ()


Type = Union[Text, Integer, Boolean, Address, Cidr, ListOf, MapOf, Object]


@dataclass(frozen=True)
class Field:
    """One field of a resource, or of an object in it.

    metadata: how a node is reached, or the handle of a cluster: never part of the document or its hash.
    computed: an output of the resource rather than an input (such as an identity's number).
    handles: a list of names that a Pulumi program writes as a map from name to the named resource's handle, so that
        the engine knows the order and a new item shows as one key.
    replaces: a change cannot be made in place; the resource is replaced.
    """

    name: str
    type: Type
    doc: str
    required: bool = False
    default: Any = None
    replaces: bool = False
    secret: bool = False
    metadata: bool = False
    computed: bool = False
    handles: Optional[Object] = None


@dataclass(frozen=True)
class Problem:
    """One thing wrong with input: the path of the leaf field, what is wrong, and what to do."""

    path: str
    what: str
    remedy: str = ""
    unknown_field: bool = False


Check = Callable[[Mapping[str, Any]], Iterable[Problem]]
"""What the fields of one mapping must fulfil together, paths below that mapping. It is asked only where each field by
itself is good, and skips what is `UNKNOWN`."""


def check(
    fields: Sequence[Field],
    values: Mapping[str, Any],
    exactly_one: Sequence[str] = (),
    checks: Sequence[Check] = (),
) -> Tuple[Dict[str, Any], List[Problem]]:
    """Normalise `values` by `fields`. The result is usable only where the list of problems is empty.

    exactly_one, checks: as of an `Object`.
    """
    problems = [Problem(*found) for found in unreadable(values)]
    if problems:
        return {}, problems
    _check_alternatives(exactly_one, values, "", problems)
    result = _check_fields(fields, values, "", problems)
    if not problems:
        problems.extend(_where_written(fields, values, result, problem) for one in checks for problem in one(result))
    return result, problems


def _where_written(
    fields: Sequence[Field], values: Mapping[str, Any], result: Mapping[str, Any], problem: Problem
) -> Problem:
    """A check's problem about an item of a list that was sorted, at the place that the item had before."""
    found = re.match(r"(\w+)\[(\d+)\]", problem.path)
    kind = next((field.type for field in fields if found and field.name == found[1]), None)
    if not (found and isinstance(kind, ListOf) and kind.set_like):
        return problem
    checked = [_check_value(kind.item, item, "", []) for item in values[found[1]]]
    place = checked.index(result[found[1]][int(found[2])])
    return replace(problem, path=f"{found[1]}[{place}]{problem.path[found.end() :]}")


def _check_fields(
    fields: Sequence[Field], values: Mapping[str, Any], prefix: str, problems: List[Problem]
) -> Dict[str, Any]:
    known = {field.name: field for field in fields}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            remedy = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
            problems.append(Problem(prefix + str(name), f"unknown field {name}", remedy, unknown_field=True))
    result: Dict[str, Any] = {}
    for field in fields:
        value = values.get(field.name)
        if value is None:
            value = field.default
        if value is None:
            if field.required:
                problems.append(Problem(prefix + field.name, "is missing", f"Give {field.name}: {field.doc}"))
            continue
        result[field.name] = _check_value(field.type, value, prefix + field.name, problems)
    return result


def _check_value(kind: Type, value: Any, path: str, problems: List[Problem]) -> Any:
    if value is UNKNOWN:
        return value
    if isinstance(kind, Text):
        return _check_text(kind, value, path, problems)
    if isinstance(kind, Integer):
        return _check_integer(kind, value, path, problems)
    if isinstance(kind, Boolean):
        if not isinstance(value, bool):
            problems.append(
                Problem(path, f"must be true or false, not {_kind_of(value)}", "Write true or false, unquoted.")
            )
        return value
    if isinstance(kind, (Address, Cidr)):
        return _check_network(kind, value, path, problems)
    if isinstance(kind, ListOf):
        return _check_list(kind, value, path, problems)
    if not isinstance(value, Mapping):
        problems.append(Problem(path, f"must be a mapping, not {_kind_of(value)}", "Write it as keys with values."))
        return value
    if isinstance(kind, MapOf):
        for key in value:
            _check_text(kind.key, key, f"{path}.{key}", problems)
        return {str(key): _check_value(kind.value, item, f"{path}.{key}", problems) for key, item in value.items()}
    before = len(problems)
    _check_alternatives(kind.exactly_one, value, path, problems)
    result = _check_fields(kind.fields, value, path + ".", problems)
    bad = {problem.path for problem in problems[before:]}
    for name, other, allowed in kind.only_with:
        if f"{path}.{other}" in bad:
            continue  # what it is meant to be is not known
        if result.get(name) is not None and result.get(other) not in (*allowed, UNKNOWN):
            what = f"cannot be given with {other} {result.get(other)}, which has no {name}s"
            problems.append(Problem(f"{path}.{name}", what, f"Leave it out, or use {other} {_either(allowed)}."))
    for name, other in kind.beside:
        if result.get(name) is not None and result.get(other) is None:
            problems.append(Problem(f"{path}.{name}", f"is given without {other}", f"Give {other} beside it."))
    if len(problems) == before:
        for one in kind.checks:
            problems.extend(replace(problem, path=f"{path}.{problem.path}") for problem in one(result))
    return result


def _check_alternatives(
    alternatives: Sequence[str], value: Mapping[str, Any], path: str, problems: List[Problem]
) -> None:
    given = [name for name in alternatives if value.get(name) is not None]
    if alternatives and len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "has none of its alternatives"
        problems.append(Problem(path or alternatives[0], what, f"Give exactly one of {', '.join(alternatives)}."))


def _check_text(kind: Text, value: Any, path: str, problems: List[Problem]) -> Any:
    control = CONTROL.search(value) if isinstance(value, str) else None
    if not isinstance(value, str):
        problems.append(
            Problem(
                path,
                f"must be a string, not {_kind_of(value)}",
                "Write it as text; quote it if YAML takes it for a number, for true or false, or for nothing.",
            )
        )
    elif control is not None:
        problems.append(
            Problem(
                path,
                f"{value!r} has the control character {control[0]!r} at position {control.start()}",
                "Write it as one line without escape codes; in YAML, >- leaves no line break at the end.",
            )
        )
    elif kind.choices and value not in kind.choices:
        problems.append(Problem(path, f"{value!r} is not one of the choices", f"Use {_either(kind.choices)}."))
    elif kind.pattern and not re.fullmatch(kind.pattern, value):
        problems.append(Problem(path, f"{value!r} is not allowed", f"It must be {kind.rule}."))
    return value


def _check_integer(kind: Integer, value: Any, path: str, problems: List[Problem]) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        given = value if isinstance(value, float) else _kind_of(value)
        problems.append(Problem(path, f"must be a whole number, not {given}", f"Use {kind.least} to {kind.most}."))
    elif not kind.least <= value <= kind.most:
        problems.append(Problem(path, f"{value} is out of range", f"Use {kind.least} to {kind.most}."))
    return value


def _check_network(kind: Union[Address, Cidr], value: Any, path: str, problems: List[Problem]) -> Any:
    parse = ipaddress.ip_address if isinstance(kind, Address) else ipaddress.ip_network
    noun = "an IPv4 or IPv6 address" if isinstance(kind, Address) else "a network such as 10.0.1.0/24"
    if not isinstance(value, str):
        problems.append(Problem(path, f"must be {noun}, not {_kind_of(value)}", "Write it as text."))
        return value
    try:
        parsed = parse(value)
    except ValueError as error:
        problems.append(Problem(path, f"{value!r} is not {noun}", str(error)))
        return value
    mapped = _mapped(parsed)
    if mapped:
        # Maps and packets have one form for IPv4: this would be a second name of the same.
        problems.append(Problem(path, f"{value!r} is {mapped} in IPv6 notation", f"Write {mapped}."))
    elif "%" in value:
        bare = parse(re.sub("%[^/]*", "", value))
        what = f"{value!r} is of one link of one host, which no packet says and no other node knows"
        problems.append(Problem(path, what, f"Write {bare}."))
    return str(parsed)


def _mapped(parsed: Any) -> str:
    """The IPv4 address or network that an IPv6 one stands for (RFC 4291, 2.5.5.2); empty for others."""
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or "")
    if isinstance(parsed, ipaddress.IPv6Network) and parsed.prefixlen >= 96:
        mapped = parsed.network_address.ipv4_mapped
        return f"{mapped}/{parsed.prefixlen - 96}" if mapped else ""
    return ""


def _check_list(kind: ListOf, value: Any, path: str, problems: List[Problem]) -> Any:
    if not isinstance(value, (list, tuple)):
        problems.append(
            Problem(path, f"must be a list, not {_kind_of(value)}", "Write it as a list, also with one item.")
        )
        return value
    items = [_check_value(kind.item, item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
    if len(items) < kind.least:
        problems.append(Problem(path, f"needs at least {kind.least} item{'s' if kind.least > 1 else ''}"))
    if not (kind.set_like or kind.distinct) or any(contains_unknown(item) for item in items):
        return items
    seen: Dict[str, int] = {}
    for index, item in enumerate(items):
        first = seen.setdefault(repr(item), index)
        if first != index:
            problems.append(Problem(f"{path}[{index}]", f"repeats {path}[{first}]", "Remove one of the two."))
    return sorted(items, key=repr) if kind.set_like else items


def contains_unknown(value: Any) -> bool:
    """Whether any leaf of a checked value is `UNKNOWN`."""
    if isinstance(value, Mapping):
        return any(contains_unknown(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(contains_unknown(item) for item in value)
    return value is UNKNOWN


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else ", ".join(choices[:-1]) + " or " + choices[-1]


def _kind_of(value: Any) -> str:
    names: Dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def camel(name: str) -> str:
    """`workload_cidrs` -> `workloadCidrs`: the form in which Pulumi programs write a field."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def walk_fields(fields: Sequence[Field]) -> List[Tuple[Object, Optional[Field]]]:
    """Every `Object` type below `fields`, each once, outermost first, with the field that introduced it."""
    found: List[Tuple[Object, Optional[Field]]] = []

    def visit(kind: Type, field: Optional[Field]) -> None:
        if isinstance(kind, ListOf):
            visit(kind.item, field)
        elif isinstance(kind, MapOf):
            visit(kind.value, field)
        elif isinstance(kind, Object) and all(kind is not known for known, _ in found):
            found.append((kind, field))
            for inner in kind.fields:
                visit(inner.type, inner)

    for field in fields:
        visit(field.type, field)
    return found
