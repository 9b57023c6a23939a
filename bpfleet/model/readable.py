"""Loose input that no field could hold and over which whoever looks at it closely would stumble. Pure."""

from __future__ import annotations

from typing import Any, Iterator, List, Mapping, Tuple

DEPTH_LIMIT = 32
"""Mappings and lists inside each other, several times what any field needs: looking at fields is recursive."""

_NUMBER_LIMIT = 1 << 63
"""Python shows no number of thousands of digits, so no message could say what is wrong with one."""

Found = Tuple[str, str, str]
"""Path, what is wrong, remedy."""


def unreadable(value: Any) -> Iterator[Found]:
    """The first thing that is nested too deeply or refers to itself, a number beyond 64 bits, or such a key."""
    left: List[Tuple[Any, str, int]] = [(value, "", 0)]
    while left:
        item, path, depth = left.pop()
        if _is_huge(item):
            yield path, "is a number of more than 64 bits", "Use one that the field can hold."
            return
        if not isinstance(item, (Mapping, list, tuple)):
            continue
        if depth == DEPTH_LIMIT:
            what = f"is nested deeper than {DEPTH_LIMIT} mappings and lists, or refers to itself"
            yield path, what, "No field is so deep: remove it."
            return
        if not isinstance(item, Mapping):
            left.extend((inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(item))
            continue
        for key, inner in item.items():
            if _is_huge(key) or not isinstance(key, (str, int, float, type(None))):
                yield path, f"has a key that is no text but {type(key).__name__}", "Write keys as text."
                return
            left.append((inner, f"{path}.{key}" if path else str(key), depth + 1))


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not -_NUMBER_LIMIT <= value < _NUMBER_LIMIT
