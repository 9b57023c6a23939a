"""What the program of this run declares, as far as it was checked: contradictions, and what no map has room for. Pure.

A preview asks no host. But what contradicts itself among the documents of one program, or is more than the cluster's
limits, is known without one. Only what is wholly known counts, and only what no further document can put right: so what
is refused here would be refused by an update, while an update may refuse more (documents of others, the hosts' state).

Documents come one by one, so each is compared with those alone that claim something which it claims too.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Container, Dict, Hashable, Iterator, List, Mapping, Optional, Set, Tuple

from bpfleet.compile.validate import lasting_conflicts, place_of
from bpfleet.emit.shapes import Shape
from bpfleet.errors import BpfleetError, Conflict, NumberTaken
from bpfleet.model.document import Document, DocumentSet, canonical_json
from bpfleet.model.identity import candidates
from bpfleet.model.schema import UNKNOWN, contains_unknown
from provider.differing import cluster_name
from provider.fitting import Fitting
from provider.writing import seen_from

Claim = Tuple[Hashable, ...]
_ANY_ID = 1
"""Stands for a cluster's id where the cluster itself is not known, to give its identities numbers."""


class _Fleet:
    """Documents of one cluster by key, and who claims what. Nodes belong to clusters by their members only."""

    def __init__(self) -> None:
        self.documents: Dict[str, Document] = {}
        self.claimed: Dict[Claim, Set[str]] = defaultdict(set)
        self.fitting = Fitting()
        self.cluster: Optional[Document] = None
        self.bare_cluster: Optional[Document] = None
        """Without what may be long and concerns members only."""

    def put(self, document: Document) -> None:
        """Replaces the one of this key."""
        self.drop(document.key)
        self.documents[document.key] = document
        for claim in _claims(document):
            self.claimed[claim].add(document.key)
        self.fitting.count(document)
        if document.kind == "cluster":
            self.cluster = document
            spec = {name: value for name, value in document.spec.items() if name != "blocked_cidrs"}
            self.bare_cluster = Document(document.kind, document.name, spec)

    def drop(self, key: str) -> None:
        """It is gone, if it was there."""
        old = self.documents.pop(key, None)
        if old is None:
            return
        for claim in _claims(old):
            self.claimed[claim].discard(key)
        self.fitting.forget(old)
        if old.kind == "cluster":
            self.cluster = self.bare_cluster = None

    def numbered(self, document: Document, used: Container[int] = ()) -> Document:
        """An identity with a number that it could have; others as they are."""
        if document.kind != "identity":
            return document
        cluster_id = self.cluster.spec["id"] if self.cluster is not None else _ANY_ID
        number = next(one for one in candidates(cluster_id, document.spec["labels"]) if one not in used)
        return Document("identity", document.name, {**document.spec, "number": number})

    def all_numbered(self) -> List[Document]:
        """All documents, no number twice."""
        used: Set[int] = set()
        found = []
        for document in self.documents.values():
            found.append(self.numbered(document, used))
            if document.kind == "identity":
                used.add(found[-1].spec["number"])
        return found


class Program:
    """The documents of the resources that were checked, by URN."""

    def __init__(self) -> None:
        self._places: Dict[str, Tuple[Optional[str], str]] = {}
        self._fleets: Dict[str, _Fleet] = defaultdict(_Fleet)
        self._nodes: Dict[str, Document] = {}

    def see(self, urn: str, cluster: Optional[str], document: Document) -> None:
        """The resource `urn` is this document; `cluster`: the one it belongs to, or is. None for nodes."""
        self.forget(urn)
        self._places[urn] = (cluster, document.key)
        if cluster is None:
            self._nodes[document.name] = document
        else:
            self._fleets[cluster].put(document)

    def forget(self, urn: str) -> None:
        """Nothing is known of the resource `urn` any more."""
        cluster, key = self._places.pop(urn, (None, ""))
        if cluster is not None:
            self._fleets[cluster].drop(key)
        else:
            self._nodes.pop(key.partition("/")[2], None)

    def refusal(self, urn: str) -> Optional[BpfleetError]:
        """Why no update can make what the program says of `urn` so, if that is known."""
        if urn not in self._places:
            return None
        cluster, key = self._places[urn]
        if cluster is None:
            return next(filter(None, (self._of_member(name, key) for name in sorted(self._fleets))), None)
        return self._conflict(cluster, key) or self._overfull(cluster, key)

    def _of_member(self, cluster: str, key: str) -> Optional[BpfleetError]:
        """The same for a node, as a member of a cluster that was seen already."""
        if key.partition("/")[2] not in self._members(cluster):
            return None
        return self._conflict(cluster, key) or self._overfull(cluster, key)

    def _members(self, cluster: str) -> List[str]:
        document = self._fleets[cluster].cluster
        return list(document.spec["members"]) if document is not None else []

    def _conflict(self, cluster: str, key: str) -> Optional[BpfleetError]:
        if key == f"cluster/{cluster}":
            for other in sorted(set(self._fleets) - {cluster}):
                for name in sorted(set(self._members(cluster)).intersection(self._members(other))):
                    return Conflict(
                        f"belongs to cluster/{other} as well",
                        node=name,
                        resource=key,
                        field=f"members.{name}",
                        remedy="A node belongs to one cluster: take it out of one of the two",
                    )
        others: Set[str] = {key}
        if key.startswith("cluster/"):  # its members meet here
            others.update(f"node/{name}" for name in self._members(cluster) if name in self._nodes)
        for error in lasting_conflicts(DocumentSet(self._related(cluster, key))):
            if isinstance(error, NumberTaken):
                continue  # numbers are chosen by an update
            if error.resource in others:
                return error
            if error.details.get("other") == key:
                return seen_from(key, str(error.resource), error)
        return None

    def _related(self, cluster: str, key: str) -> Iterator[Document]:
        """The document, and all with which it could be at odds."""
        fleet = self._fleets[cluster]
        members = [self._nodes[name] for name in self._members(cluster) if name in self._nodes]
        kind, _, name = key.partition("/")
        if kind in ("cluster", "node"):
            if fleet.cluster is not None:
                yield fleet.cluster
            yield from members
            claims = {claim for member in members for claim in _claims(member)}
            claims.update(("on", member.name) for member in members if kind == "cluster" or member.name == name)
        else:
            if fleet.bare_cluster is not None:
                yield fleet.bare_cluster
            document = fleet.documents[key]
            claims = set(_claims(document))
            on = document.spec.get("node")
            yield from (one for one in members if one.name == on or not claims.isdisjoint(_claims(one)))
            claims.discard(("on", on))
        for one in sorted({one for claim in claims for one in fleet.claimed.get(claim, ())}):
            if one != f"cluster/{cluster}":
                yield fleet.numbered(fleet.documents[one])

    def _overfull(self, cluster: str, key: str) -> Optional[BpfleetError]:
        fleet = self._fleets[cluster]
        document = fleet.cluster
        if document is None:
            return None
        nodes = [self._nodes[name] for name in self._members(cluster) if name in self._nodes]
        return fleet.fitting.refusal(document, nodes, fleet.all_numbered, key)


def _claims(document: Document) -> Iterator[Claim]:
    """By what a document can be at odds with another: two that claim one thing are compared."""
    spec = document.spec
    if document.kind == "endpoint":
        yield from (("address", address) for address in spec["addresses"])
        yield ("place", spec["node"], *place_of(spec["attach"]))
        yield ("on", spec["node"])
    elif document.kind == "node":
        yield ("address", spec["address"])
    elif document.kind == "identity":
        yield ("labels", canonical_json(spec["labels"]))
    elif document.kind == "service":
        yield from (("address", frontend["address"]) for frontend in spec["frontends"])
        yield from (("address", backend["address"]) for backend in spec["backends"] if "address" in backend)


def cluster_of(shape: Shape, inputs: Mapping[str, Any]) -> Optional[str]:
    """The cluster that a resource is, or is in; None for nodes."""
    if shape.kind == "cluster":
        return str(inputs["name"])
    return None if shape.kind == "node" else str(inputs["cluster"]["cluster"])


def known_document(shape: Shape, inputs: Mapping[str, Any]) -> Optional[Document]:
    """The document that checked inputs declare, an identity's without its number; None if not all of it is known."""
    spec = {
        one.name: inputs[one.name]
        for one in shape.resource.spec_fields
        if one.name in inputs and not (shape.kind == "cluster" and one.name == "members")
    }
    if contains_unknown([spec, inputs["name"], cluster_name(inputs.get("cluster"))]):
        return None
    if shape.kind == "cluster":
        if inputs["members"] is UNKNOWN:
            return None
        spec["members"] = sorted(inputs["members"])
    return Document(shape.kind, str(inputs["name"]), spec)
