"""What `bpfleet observe -o json` wrote, read again: lines of that shape only, by the same filters as live ones."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from bpfleet.errors import InvalidInput
from bpfleet.observe.filters import Filter, Known, check_for_history, matcher

_YEAR_10000 = 253_402_300_800
_DEEPEST = 8
"""Lists and objects within each other that a line may have; ours have 3."""

Check = Callable[[Any, str], None]
"""Takes a value and its path in the line. ValueError, which names the path, for a value of another shape."""


def _is(what: str, test: Callable[[Any], bool]) -> Check:
    def check(value: Any, path: str) -> None:
        if not test(value):
            raise ValueError(f"{path} is no {what}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and (not value or bool(ipaddress.ip_address(value)))
    except ValueError:
        return False


_moment = _is("time in seconds since the epoch", lambda value: _is_number(value) and 0 <= value < _YEAR_10000)
_count = _is("count", lambda value: isinstance(value, int) and _is_number(value) and 0 <= value < 1 << 64)
_text = _is("text", lambda value: isinstance(value, str))
_address = _is("address", _is_address)
_object = _is("object", lambda value: isinstance(value, dict))


@dataclass(frozen=True)
class _Shape:
    """An object with fields that must be there, and others that may; what else it has is of newer versions."""

    needed: Mapping[str, Check] = field(default_factory=dict)
    known: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, value: Any, path: str) -> None:
        _object(value, path)
        for name, check in self.needed.items():
            if name not in value:
                raise ValueError(f"{_inside(path, name)} is missing")
            check(value[name], _inside(path, name))
        for name, check in self.known.items():
            if name in value:
                check(value[name], _inside(path, name))


def _each(check: Check) -> Check:
    """Every field of an object."""

    def checks(value: Any, path: str) -> None:
        _object(value, path)
        for name, item in value.items():
            check(item, _inside(path, name))

    return checks


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_COUNTS = dict.fromkeys(("packets", "bytes", "answer_packets", "answer_bytes"), _count)
_END = _Shape(
    known={
        "address": _address,
        "port": _count,
        "identity": _count,
        "identity_name": _text,
        "labels": _each(_text),
        "endpoint": _text,
        "node": _text,
    }
)
_JUDGED: dict[str, Check] = {
    "verdict": _text,
    "direction": _text,
    "protocol": _text,
    "source": _END,
    "destination": _END,
}
_SAID: dict[str, Check] = {
    **dict.fromkeys(("node", "reason", "policy", "rule", "description", "gone", "changed", "hook"), _text),
    **dict.fromkeys(("rule_id", "length"), _count),
    "policy_labels": _each(_text),
    "icmp": _Shape({"type": _count, "code": _count}),
}
_EVENT = _Shape({"time": _moment, **_JUDGED}, _SAID)
_FLOW = _Shape({"first_seen": _moment, "last_seen": _moment, **_JUDGED, **_COUNTS}, _SAID)
_NOTICE = _Shape({"time": _moment}, {"node": _text, "lost": _count, "clock": _moment, "kept_from": _moment})
_END_OF_HISTORY = _Shape(
    {"time": _moment, "kept": _count, "limit": _count},
    {"node": _text, "did_not_fit": _each(_Shape(_COUNTS)), "retired": _each(_count)},
)


def read_lines(file: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """The lines of a file that `-o json` wrote; InvalidInput, naming the line, for anything else."""
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            line = _parsed(text)
            _check(line)
        except ValueError as problem:
            raise InvalidInput(
                f"line {number} of {name} is no event: {problem}",
                field="input-file",
                remedy="Give a file that `bpfleet observe -o json` wrote, as it wrote it.",
            ) from None
        yield line


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _check(line: Any) -> None:
    """ValueError, which says what is wrong, for what is no line of ours."""
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    _check_plain(line, _DEEPEST)
    if "packets" in line or "verdict" in line:
        (_FLOW if "packets" in line else _EVENT)(line, "")
        if line["verdict"] == "dropped":
            _Shape({"reason": _text})(line, "")
        if line.get("policy"):
            _Shape({"rule": _text})(line, "")
    else:
        (_END_OF_HISTORY if ends_history(line) else _NOTICE)(line, "")


def _check_plain(value: Any, levels: int) -> None:
    """ValueError for what cannot be shown, in whatever field it is."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("it has what is no text in UTF-8") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number without end")
    elif isinstance(value, (dict, list)):
        if not levels:
            raise ValueError("it is nested too deep")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_plain(item, levels - 1)


def check_filters(lines: Iterable[Mapping[str, Any]], filters: Iterable[Filter], known: Known) -> None:
    """InvalidInput if there are flows, and a filter is by what the history does not keep."""
    if any("packets" in line for line in lines):
        check_for_history(filters, known)


def replayed(
    lines: list[dict[str, Any]],
    filters: list[Filter],
    since: float | None,
    until: float | None,
    last: int,
) -> list[dict[str, Any]]:
    """What of recorded lines the options let through, in order of time, with those about what is missing."""
    keep = matcher(filters)

    def is_wanted(line: Mapping[str, Any]) -> bool:
        if ends_history(line):  # about it as a whole, whatever of it is asked for
            return True
        first, final = ("last_seen", "first_seen") if "packets" in line else ("time", "time")
        if (since is not None and line[first] < since) or (until is not None and line[final] > until):
            return False
        return keep(line) if "verdict" in line else "lost" in line

    return newest(sorted((line for line in lines if is_wanted(line)), key=when), last)


def ends_history(line: Mapping[str, Any]) -> bool:
    """Whether it says what a node's history does not hold."""
    return "kept" in line and "verdict" not in line


def when(line: Mapping[str, Any]) -> float:
    """The time by which lines are in order."""
    return float(line["last_seen"] if "packets" in line else line["time"])


def newest(lines: list[dict[str, Any]], last: int) -> list[dict[str, Any]]:
    """The newest `last` events of lines in order of time (all, if negative), with the losses and notices."""
    told = [line for line in lines if "verdict" in line]
    if last < 0 or len(told) <= last:
        return lines
    chosen = {id(line) for line in (told[-last:] if last else [])}
    return [line for line in lines if "verdict" not in line or id(line) in chosen]
