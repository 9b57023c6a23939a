"""Finding identities, and nodes, by labels: by an index rather than by looking at each."""

from __future__ import annotations

import difflib
from typing import Dict, FrozenSet, Iterable, Mapping, Optional, Set, Tuple


class LabelIndex:
    """Numbers (of identities, or what stands for nodes) by label.

    Built once for a set of them; a query costs the size of its smallest part.
    """

    def __init__(self, identities: Iterable[Tuple[int, Mapping[str, str]]]) -> None:
        self._numbers: Dict[Tuple[str, str], Set[int]] = {}
        everything = set()
        for number, labels in identities:
            everything.add(number)
            for label in labels.items():
                self._numbers.setdefault(label, set()).add(number)
        self.everything: FrozenSet[int] = frozenset(everything)

    def matching(self, selector: Mapping[str, str]) -> FrozenSet[int]:
        """The numbers that have every label of `selector`; all of them for an empty one."""
        if not selector:
            return self.everything
        groups = sorted((self._numbers.get(label, set()) for label in selector.items()), key=len)
        return frozenset(groups[0].intersection(*groups[1:]))

    def nearest(self, selector: Mapping[str, str]) -> Optional[str]:
        """For a selector that matches nothing: the known label, as "key=value", most like one it asks for."""
        known = [f"{key}={value}" for key, value in self._numbers]
        for key, value in selector.items():
            if (key, value) in self._numbers:
                continue
            near = difflib.get_close_matches(f"{key}={value}", known, 1, 0.5)
            if near:
                return near[0]
        return None
