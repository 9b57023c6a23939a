"""Which policy maps are in force while policies change; bpf/include/bpfleet/generation.h says how a change goes.

A state that was read has under POLICIES what is in force, whatever lies where, and under STAGED what a change left
behind that did not come to its end: nothing of it is wanted.
"""

from __future__ import annotations

from typing import Dict, Mapping

from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.model.state import Table

POLICIES = "policies"
STAGED = "policies_staged"
GENERATION = "generation"

IS_STAGED: int = ENUMS["generation_word"]["staged"]
STEP: int = ENUMS["generation_word"]["step"]
_WORD = 1 << 32


def switched(word: int) -> int:
    """The word of the next generation, with what is staged."""
    return (word + STEP) % _WORD | IS_STAGED


def settled(word: int) -> int:
    """The word of the same generation, once nothing needs to be looked up among what is staged."""
    return word & ~IS_STAGED


def in_force(policies: Mapping[int, Table], staged: Mapping[int, Table], word: int) -> Dict[int, Table]:
    """The policy map of each subject that has one, for programs that read `word`."""
    if not word & IS_STAGED:
        return dict(policies)
    both = {**policies, **staged}
    return {subject: table for subject, table in both.items() if table.rows or subject not in staged}
