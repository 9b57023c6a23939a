"""Rule ids: 32 bits of a hash of what a rule says: the same on every node and after any history.

Two contents with one hash are told apart by probing in an order that depends on the contents alone.
"""

from __future__ import annotations

import hashlib
from typing import Dict, Iterable, Tuple

Content = Tuple[str, ...]

NO_RULE = 0
_BITS = 32


def assign_ids(contents: Iterable[Content]) -> Dict[Content, int]:
    """A number from 1 to 2^32-1 for each distinct content, never one for two."""
    ids: Dict[Content, int] = {}
    taken: Dict[int, Content] = {}
    clashes = []
    for content in sorted(set(contents)):
        number = hash32(content)
        if number == NO_RULE or number in taken:
            clashes.append(content)
            continue
        ids[content] = number
        taken[number] = content
    for content in clashes:
        attempt = 1
        number = hash32((*content, str(attempt)))
        while number == NO_RULE or number in taken:
            attempt += 1
            number = hash32((*content, str(attempt)))
        ids[content] = number
        taken[number] = content
    return ids


def digest_of(text: str) -> str:
    """Hex SHA-256, to name something long by its content."""
    return hashlib.sha256(text.encode()).hexdigest()


_known: Dict[Content, int] = {}
_KNOWN_MOST = 1 << 16


def hash32(content: Content) -> int:
    """32 bits of SHA-256 over the parts, remembered because a compilation asks for thousands of the same."""
    number = _known.get(content)
    if number is None:
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        number = _known[content] = hash32_of_text("\0".join(content))
    return number


def hash32_of_text(text: str) -> int:
    """32 bits of SHA-256 of a text, not remembered: what is long and asked for once."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: _BITS // 8], "big")
