"""Read: what the nodes hold, compared with each other and with the state. Blocking parts are for worker threads.

Reads in flight together share one look at the cluster's stores, which is good for a few seconds and until this process
changes something.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from bpfleet.agent.wire import Item
from bpfleet.errors import BpfleetError
from bpfleet.model.document import Document
from bpfleet.transport.target import Target
from provider.clusters import Store, stores_of
from provider.directory import View
from provider.runtime import Runtime
from provider.writing import together

_FRESH_SECONDS = 5.0


@dataclass(frozen=True)
class Snapshot:
    """A cluster's members and what each holds, or why it did not say."""

    view: Optional[View]
    stores: Mapping[str, Store]
    failures: Mapping[str, BpfleetError]


@dataclass(frozen=True)
class Found:
    """A document as the nodes hold it. drift: a line for each node that differs. silent: nodes that did not answer."""

    item: Item
    drift: List[str]
    silent: Mapping[str, BpfleetError]


class Reader:
    """Snapshots of clusters. Methods are for the event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._snapshots: Dict[str, Tuple[float, asyncio.Task[Snapshot]]] = {}

    def outdate_all(self) -> None:
        """Something was changed: look again next time."""
        self._snapshots.clear()

    async def snapshot(self, cluster: str, seeds: Mapping[str, Target]) -> Snapshot:
        """The cluster now, or a moment ago. Raises Unreachable where no seed answers."""
        now = time.monotonic()
        until, task = self._snapshots.get(cluster, (0.0, None))
        if task is None or now > until:
            task = asyncio.create_task(self._runtime.run(self._look, cluster, dict(seeds)))
            self._snapshots[cluster] = (now + _FRESH_SECONDS, task)
        return await asyncio.shield(task)

    def _look(self, cluster: str, seeds: Dict[str, Target]) -> Snapshot:
        view = self._runtime.directory.view(cluster, seeds)
        if view is None:
            return Snapshot(None, {}, {})
        stores, failures = self._stores(view.targets)
        return Snapshot(view, stores, failures)

    def _stores(self, targets: Mapping[str, Target]) -> Tuple[Dict[str, Store], Dict[str, BpfleetError]]:
        """What each holds. Of those that say that they hold the same only one is asked for it: they rarely differ."""
        directory, runtime = self._runtime.directory, self._runtime
        stores: Dict[str, Store] = {}
        failures: Dict[str, BpfleetError] = {}
        alike: Dict[str, List[str]] = {}
        for node, answer in sorted(runtime.each(targets, directory.digest).items()):
            if isinstance(answer, BpfleetError):
                failures[node] = answer.at(node=node)
            else:
                alike.setdefault(answer, []).append(node)
        groups = list(alike.values())
        while groups:
            told, silent = stores_of(directory, runtime, {nodes[0]: targets[nodes[0]] for nodes in groups})
            failures.update(silent)
            for nodes in groups:
                stores.update(dict.fromkeys(nodes, told[nodes[0]]) if nodes[0] in told else {})
            groups = [nodes[1:] for nodes in groups if nodes[0] in silent and nodes[1:]]
        return stores, failures


def find(snapshot: Snapshot, key: str, declared: Optional[Document]) -> Optional[Found]:
    """A document among the members' stores; None if every member answers and none has it.

    Where members differ, what is declared counts if any member has it, else what most have: so that a refresh shows
    the difference and the next update repairs it. Raises what kept nodes from answering if no other has the document.
    """
    held = {node: store[key] for node, store in snapshot.stores.items() if key in store}
    if not held:
        if snapshot.failures:
            raise together(snapshot.failures, key)
        return None
    hashes = {node: hash_of(item) for node, item in held.items()}
    commonest = Counter(sorted(hashes.values())).most_common(1)[0][0]
    chosen = declared.hash if declared is not None and declared.hash in hashes.values() else commonest
    drift = []
    for node in sorted(snapshot.stores):
        if node not in held:
            drift.append(f"{node} does not have it")
        elif hashes[node] != chosen:
            drift.append(f"{node} holds another version of it")
    item = next(held[node] for node in sorted(held) if hashes[node] == chosen)
    return Found(item, drift, snapshot.failures)


def hash_of(item: Item) -> str:
    """Content hash of a stored item's document."""
    document: Mapping[str, Any] = item["document"]
    return Document(document["kind"], document["name"], document["spec"]).hash
