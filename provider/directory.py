"""Who is in a cluster and how each member is reached. Blocking; for worker threads.

Any member knows: it holds the cluster's document and every node's, with how a controller reaches it beside them. What
was learnt is remembered while the process lives, as a delete may come when all the seeds it knows are gone.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from bpfleet.agent.wire import DocumentsParams, DocumentsResult, Item
from bpfleet.errors import BpfleetError, Unreachable
from bpfleet.transport.target import Target

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet

SEEDS = 3
"""How many members a handle names."""

_UNREACHABLE_SECONDS = 60.0


@dataclass(frozen=True)
class Member:
    """A node of a cluster. `item`: its stored document. `forget`: its deletion may go on without it."""

    name: str
    target: Target
    item: Item

    @property
    def forget(self) -> bool:
        """Whether what is deleted may be forgotten where this node does not answer."""
        return self.item["metadata"].get("on_delete_unreachable") == "forget"


@dataclass(frozen=True)
class View:
    """A cluster as its own documents say it is."""

    name: str
    item: Item
    members: Mapping[str, Member]

    @property
    def cluster_id(self) -> int:
        """Number of the cluster."""
        return int(self.item["document"]["spec"]["id"])

    @property
    def targets(self) -> Dict[str, Target]:
        """How to reach each member."""
        return {name: member.target for name, member in self.members.items()}

    def with_node(self, target: Target, item: Item) -> View:
        """The same with one node's document and address replaced."""
        return replace(self, members={**self.members, target.name: Member(target.name, target, item)})


def target_of(name: str, spec: Mapping[str, Any], ssh: Mapping[str, Any]) -> Target:
    """How to reach a node: one way to say it, so that one host never has two connections."""
    return Target.from_metadata(name, ssh, str(spec["address"]))


def handle_target(handle: Mapping[str, Any]) -> Target:
    """How to reach the node that a handle names."""
    return target_of(str(handle["name"]), handle, handle.get("ssh") or {})


def view_of(name: str, items: List[Item]) -> Optional[View]:
    """The cluster of this name among one node's documents, or None if it does not know that cluster."""
    nodes = {item["document"]["name"]: item for item in items if item["document"]["kind"] == "node"}
    for item in items:
        document = item["document"]
        if document["kind"] == "cluster" and document["name"] == name:
            members = {
                member: _member(member, nodes[member]) for member in document["spec"]["members"] if member in nodes
            }
            return View(name, item, members)
    return None


def _member(name: str, item: Item) -> Member:
    return Member(name, target_of(name, item["document"]["spec"], item["metadata"].get("ssh") or {}), item)


class Directory:
    """What this process knows of clusters and of nodes that do not answer. Thread-safe."""

    def __init__(self, fleet: Callable[[], Fleet], pool: Executor) -> None:
        """`fleet` is called when a node is asked. `pool` asks several seeds at once; it must not be the one that
        `view` itself is called on."""
        self._fleet = fleet
        self._pool = pool
        self._lock = threading.Lock()
        self._views: Dict[str, View] = {}
        self._dead: Dict[Target, Tuple[float, BpfleetError]] = {}

    def remember(self, view: View) -> None:
        """From now on the cluster is like this."""
        with self._lock:
            self._views[view.name] = view

    def forget(self, cluster: str) -> None:
        """The cluster is gone."""
        with self._lock:
            self._views.pop(cluster, None)

    def known(self, cluster: str) -> Optional[View]:
        """What is remembered, without asking anybody."""
        with self._lock:
            return self._views.get(cluster)

    def view(self, cluster: str, seeds: Mapping[str, Target]) -> Optional[View]:
        """The cluster as remembered, or as the first of `seeds` to answer tells it.

        None if every seed answers and none knows such a cluster. Raises Unreachable (or what else kept a seed from
        answering) where that cannot be said.
        """
        found = self.known(cluster)
        if found is not None:
            return found
        failures: Dict[str, BpfleetError] = {}
        asked = {self._pool.submit(self.ask, target, ["cluster", "node"]): name for name, target in seeds.items()}
        for future in as_completed(asked):
            items = future.result()
            if isinstance(items, BpfleetError):
                failures[asked[future]] = items
                continue
            found = view_of(cluster, items)
            if found is not None:
                self.remember(found)
                return found
        if failures:
            raise no_seed(cluster, failures)
        return None

    def ask(self, target: Target, kinds: Optional[List[str]] = None) -> Union[List[Item], BpfleetError]:
        """The documents of these kinds (default: all) that a node holds, or why it does not say."""
        answer = self._documents(target, {"kinds": kinds} if kinds else {})
        return answer if isinstance(answer, BpfleetError) else answer["items"]

    def digest(self, target: Target) -> Union[str, BpfleetError]:
        """The digest of all documents that a node holds, or why it does not say."""
        answer = self._documents(target, {"kinds": ["cluster"]})
        return answer if isinstance(answer, BpfleetError) else answer["digest"]

    def _documents(self, target: Target, params: DocumentsParams) -> Union[DocumentsResult, BpfleetError]:
        dead = self.dead(target)
        if dead is not None:
            return dead
        try:
            answer: DocumentsResult = self._fleet().call(target, "documents", params)
        except BpfleetError as error:
            self.note(target, error)
            return error
        return answer

    def note(self, target: Target, error: BpfleetError) -> None:
        """Remember that a node does not answer, so that not every batch waits for it anew."""
        if isinstance(error, Unreachable):
            with self._lock:
                self._dead[target] = (time.monotonic() + _UNREACHABLE_SECONDS, error)

    def dead(self, target: Target) -> Optional[BpfleetError]:
        """Why this node does not answer, if that was found a short while ago."""
        with self._lock:
            until, error = self._dead.get(target, (0.0, None))
            return error if time.monotonic() < until else None


def no_seed(cluster: str, failures: Mapping[str, BpfleetError]) -> BpfleetError:
    """The error when nobody can say who is in a cluster."""
    reasons = "; ".join(str(error.at(node=name)) for name, error in failures.items())
    first = next(iter(failures.values()))
    return type(first)(
        f"no seed of cluster {cluster} tells who its members are: {reasons}",
        resource=f"cluster/{cluster}",
        remedy="Bring one of these nodes back, or run `pulumi up` once with a member that answers",
    )
