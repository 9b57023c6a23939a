"""Asking many nodes at once, of which some may be away: whoever answers keeps nobody waiting for the others."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bpfleet.errors import BpfleetError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bpfleet.agent.wire import Hello
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

T = TypeVar("T")

PROMPT_SECONDS = 2.0
"""How long answers wait for another one. Of many nodes only a few are dialled at a time."""

PROVISIONED = "Name a node that was provisioned."


class Asked(Generic[T]):
    """A question to all nodes: `prompt` has the answers, or errors of the tree, that came soon, `late` the others."""

    def __init__(self, nodes: Iterable[Target], question: Callable[[Target], T]) -> None:
        self._told: queue.Queue[tuple[Target, T | BpfleetError]] = queue.Queue()
        self.waiting = {node.name: node for node in nodes}
        for node in self.waiting.values():
            threading.Thread(target=self._ask, args=(node, question), daemon=True).start()

    def _ask(self, node: Target, question: Callable[[Target], T]) -> None:
        try:
            self._told.put((node, question(node)))
        except BpfleetError as error:
            self._told.put((node, error))

    def prompt(self, seconds: float = PROMPT_SECONDS) -> list[tuple[Target, T | BpfleetError]]:
        """What comes until there was no answer for that time."""
        until: float | None = None
        found: list[tuple[Target, T | BpfleetError]] = []
        while self.waiting:
            try:
                node, answer = self._told.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            del self.waiting[node.name]
            if not isinstance(answer, BpfleetError):
                until = time.monotonic() + seconds
            found.append((node, answer))
        return found

    def late(self) -> Iterator[tuple[Target, T | BpfleetError]]:
        """The rest, as it comes."""
        while self.waiting:
            node, answer = self._told.get()
            del self.waiting[node.name]
            yield node, answer


def holding(fleet: Fleet, node: Target) -> Hello:
    """A node's hello. InvalidInput for a host that holds nothing of bpfleet, on which nothing is put then."""
    hello = fleet.installed(node)
    if hello is None:
        raise InvalidInput("holds nothing of bpfleet", node=node.name, remedy=PROVISIONED)
    return hello


def ask(fleet: Fleet, node: Target, method: str, params: Mapping[str, Any] | None = None) -> Any:
    """The answer of a node that holds something of bpfleet."""
    holding(fleet, node)
    return fleet.call(node, method, params)


def most_common(digests: Iterable[str]) -> str | None:
    """What most nodes hold: of two equally common digests the lower text, so that it does not depend on who answered
    first. None where nobody holds anything."""
    counts = Counter(digests)
    return min(counts, key=lambda digest: (-counts[digest], digest)) if counts else None
