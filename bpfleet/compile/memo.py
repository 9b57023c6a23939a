"""Remembering a pure function's last answers by its inputs.

Compilation depends on current input only. What is remembered here can always be computed again and comes out equal; it
only saves the time when one document of thousands changed.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, Tuple, TypeVar

Answer = TypeVar("Answer")


class Memo:
    """One remembered answer for each slot. A slot is forgotten by `sweep` when two compilations did not ask for it."""

    def __init__(self) -> None:
        self._last: Dict[Hashable, Tuple[Hashable, Any]] = {}
        self._asked: Dict[Hashable, Tuple[Hashable, Any]] = {}

    def get(self, slot: Hashable, inputs: Hashable, build: Callable[[], Answer]) -> Answer:
        """The answer of `build` for these inputs: the remembered one if the slot's inputs are unchanged."""
        known = self._asked.get(slot) or self._last.get(slot)
        if known is None or known[0] != inputs:
            known = (inputs, build())
        self._asked[slot] = known
        answer: Answer = known[1]
        return answer

    def sweep(self) -> None:
        """End of a compilation: keep only what it asked for."""
        self._last, self._asked = self._asked, {}
