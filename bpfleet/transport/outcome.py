"""What a transaction asks of the nodes, and what became of it on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from bpfleet.agent import wire
from bpfleet.errors import BpfleetError


@dataclass(frozen=True)
class Changes:
    """Documents to put and keys ("kind/name") to delete, in one owner's name.

    replace_all: the node's store becomes exactly `puts` (a new member takes over a seed's store).
    """

    puts: Sequence[wire.Item] = ()
    deletes: Sequence[str] = ()
    owner: str = ""
    replace_all: bool = False


@dataclass(frozen=True)
class Refusal:
    """One document that a node does not take, and why."""

    document: str
    error: BpfleetError


@dataclass(frozen=True)
class Committed:
    """The change is made and confirmed. `waiting`: {"document", "reason"} of each that takes effect later."""

    generation: int
    documents_digest: str
    state_digest: str
    writes: int
    steps: Mapping[str, int]
    warnings: Sequence[str]
    waiting: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Unchanged:
    """Everything was as asked for already; nothing was written on the node."""

    documents_digest: str
    state_digest: str
    warnings: Sequence[str]
    waiting: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Refused:
    """Nothing was changed on this node: it refused documents, or (`refusals` empty) the nodes in `elsewhere` did."""

    refusals: Sequence[Refusal]
    elsewhere: Sequence[str] = ()


@dataclass(frozen=True)
class Failed:
    """The change was not made. rolled_back: the node is known to be at its last confirmed generation; otherwise it was
    told to go back there and not waited for, or does so by itself when the time to confirm is over."""

    error: BpfleetError
    rolled_back: bool = True


@dataclass(frozen=True)
class Unreached:
    """The node did not answer (`error` is an Unreachable). in_doubt: it was asked to apply before it fell silent."""

    error: BpfleetError
    in_doubt: bool = False


Outcome = Union[Committed, Unchanged, Refused, Failed, Unreached]
