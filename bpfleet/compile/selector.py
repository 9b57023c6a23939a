"""Finding identities, and nodes, by labels: by an index rather than by looking at each."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.model.policy_checks import DOES_NOT_EXIST, EXISTS, IN

Expressions = Sequence[Mapping[str, Any]]

_COMPARED = 50
"""Labels on either side of where one would stand that are looked at for one like it: comparing texts is slow, and
policies may name thousands of labels that no identity has yet."""


class LabelIndex:
    """Numbers (of identities, or what stands for nodes) by label.

    Built once for a set of them; a query costs the size of its smallest part.
    """

    def __init__(self, identities: Iterable[Tuple[int, Mapping[str, str]]]) -> None:
        self._numbers: Dict[Tuple[str, str], Set[int]] = {}
        self._with_key: Dict[str, Set[int]] = {}
        everything = set()
        for number, labels in identities:
            everything.add(number)
            for label in labels.items():
                self._numbers.setdefault(label, set()).add(number)
                self._with_key.setdefault(label[0], set()).add(number)
        self.everything: FrozenSet[int] = frozenset(everything)
        self._texts: List[str] = []

    def matching(self, selector: Mapping[str, str], expressions: Expressions = ()) -> FrozenSet[int]:
        """The numbers that have every label of `selector` and fulfil every expression.

        An empty selector without expressions matches all. The semantics of expressions are those of Kubernetes' label
        selectors: NotIn matches also what has no such label.
        """
        groups: List[Set[int]] = [self._numbers.get(label, set()) for label in selector.items()]
        refused: List[Set[int]] = []
        for expression in expressions:
            key, operator, values = expression["key"], expression["operator"], expression.get("values", ())
            if operator == EXISTS:
                groups.append(self._with_key.get(key, set()))
            elif operator == DOES_NOT_EXIST:
                refused.append(self._with_key.get(key, set()))
            else:
                having = set().union(*(self._numbers.get((key, value), set()) for value in values))
                (groups if operator == IN else refused).append(having)
        groups.sort(key=len)
        found: FrozenSet[int] = frozenset(groups[0].intersection(*groups[1:])) if groups else self.everything
        return found.difference(*refused)

    def nearest(self, selector: Mapping[str, str]) -> Optional[str]:
        """For a selector that matches nothing: the known label, as "key=value", most like one it asks for.

        Among very many labels only those that begin alike are compared.
        """
        if len(self._texts) < len(self._numbers):
            self._texts = sorted(f"{key}={value}" for key, value in self._numbers)
        for key, value in selector.items():
            if (key, value) in self._numbers:
                continue
            text = f"{key}={value}"
            at = bisect_left(self._texts, text)
            near = difflib.get_close_matches(text, self._texts[max(0, at - _COMPARED) : at + _COMPARED], 1, 0.5)
            if near:
                return near[0]
        return None


def selector_text(selector: Mapping[str, str], expressions: Expressions = ()) -> str:
    """A selector for people: "app=web, tier In (a, b)"; "{}" for one that asks nothing."""
    parts = [f"{key}={value}" for key, value in sorted(selector.items())]
    for expression in expressions:
        values = f" ({', '.join(expression['values'])})" if expression.get("values") else ""
        parts.append(f"{expression['key']} {expression['operator']}{values}")
    return ", ".join(parts) or "{}"
