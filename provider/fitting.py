"""Whether a cluster's documents, as far as they are known, are more than its limits have room for. Pure.

More documents never make fewer entries, so what does not fit now never will. (A CIDR group that is not there yet is the
exception, and policies that name one are left out.) Compiling tells exactly what each map would hold; as that takes its
time, documents are counted as they come, and compiled only where the counts say that a map may be too full.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.limits import limits_of
from bpfleet.compile.policy import groups_named
from bpfleet.compile.topology import declared_facts
from bpfleet.errors import BpfleetError, InvalidInput
from bpfleet.loader.capacity import blame, overfull
from bpfleet.model.document import Document, DocumentSet

_PORTS_ANY, _PORTS_RANGE = 3, 4
"""Entries for a port of any protocol; and about as many for a range, which others cut into intervals."""

Count = Tuple[str, str]


@dataclass(frozen=True)
class _Bounds:
    """About the most entries that any identity has: of its policies, and of its CIDRs."""

    entries: int
    cidrs: int
    subjects: int
    """Nodes, and identities with endpoints on each: nothing is compiled for others."""


class Fitting:
    """Counts of one cluster's documents."""

    def __init__(self) -> None:
        self._counts: Counter[Count] = Counter()
        self._fitted = _Bounds(0, 0, 0)

    def count(self, document: Document) -> None:
        """It is one of the cluster's documents from now on."""
        self._counts.update(_counts(document))

    def forget(self, document: Document) -> None:
        """It is none any more."""
        self._counts.subtract(_counts(document))
        self._fitted = _Bounds(0, 0, 0)

    def refusal(
        self, cluster: Document, nodes: Sequence[Document], documents: Callable[[], List[Document]], key: str
    ) -> Optional[BpfleetError]:
        """The first map that has no room, at `key` if that fills it. nodes: members; documents: all but nodes."""
        limits, bounds = limits_of(cluster), self._bounds(nodes)
        full = [node for node in nodes if self._counts["endpoints", node.name] > limits["endpoints"]]
        everywhere = (
            len(cluster.spec.get("blocked_cidrs", ())) > limits["blocked_cidrs"]
            or self._counts["frontends", ""] > limits["frontends"]
            or self._counts["addresses", ""] + len(nodes) > limits["addresses"]
        )
        tight = bounds.entries > limits["policy_entries"] or bounds.cidrs > limits["cidrs"]
        suspects = list(nodes) if tight and bounds != self._fitted else full or list(nodes[:1] if everywhere else ())
        if not suspects:
            return None
        known = _without_waiting([*documents(), *nodes])
        compiler = Compiler()
        for node in suspects:
            error = _overfull(compiler, known, node, key)
            if error is not None:
                return error.at(node=node.name)
        self._fitted = bounds
        return None

    def _bounds(self, nodes: Sequence[Document]) -> _Bounds:
        def total(what: str) -> int:
            return self._counts[what, ""]

        cidrs = total("cidrs") + total("groups named") * total("group cidrs")
        return _Bounds(
            total("entries") + total("entries by identity") * total("identities") + total("entries by class") * cidrs,
            cidrs,
            len(nodes) + sum(1 for (what, _), count in self._counts.items() if what == "subjects" and count > 0),
        )


def _overfull(compiler: Compiler, documents: DocumentSet, node: Document, key: str) -> Optional[BpfleetError]:
    try:  # an endpoint that still waits for its device needs room too
        compiled = compiler.compile(documents, declared_facts(documents, node))
    except InvalidInput as error:  # one identity's entries, of which the compiler stops making more
        return error
    full = overfull(compiled.state, identities=compiled.identities)
    return blame(full[0], compiled, {key}) if full else None


def _without_waiting(documents: List[Document]) -> DocumentSet:
    """All but the policies that name a CIDR group which is not there: until it is, that may mean more than it will."""
    groups = {document.name for document in documents if document.kind == "cidr_group"}
    return DocumentSet(
        document for document in documents if document.kind != "policy" or groups.issuperset(groups_named(document))
    )


def _counts(document: Document) -> Counter[Count]:
    spec = document.spec
    found: Counter[Count] = Counter()
    if document.kind == "endpoint":
        found["endpoints", spec["node"]] += 1
        found["subjects", f"{spec['node']} {spec['identity']}"] += 1
        found["addresses", ""] += len(spec["addresses"])
    elif document.kind == "service":
        found["frontends", ""] += len(spec["frontends"])
    elif document.kind == "identity":
        found["identities", ""] += 1
    elif document.kind == "cidr_group":
        found["group cidrs", ""] += len(spec["cidrs"])
    elif document.kind == "policy":
        for direction in ("ingress", "egress"):
            for rule in spec.get(direction, ()):
                _count_rule(rule, found)
    return found


def _count_rule(rule: Mapping[str, Any], found: Counter[Count]) -> None:
    ports = sum(
        _PORTS_RANGE if "end_port" in port or "type" in port else _PORTS_ANY if port["protocol"] == "any" else 1
        for port in rule.get("ports", ({"protocol": "tcp"},))
    )
    for peer in rule.get("peers", ({"labels": {}},)):
        if "labels" in peer or peer.get("entity") == "cluster":
            found["entries by identity", ""] += ports
        found["entries", ""] += ports
        if "cidr" in peer:
            found["cidrs", ""] += 1 + len(peer.get("except", ()))
        if "cidr_group" in peer:
            found["groups named", ""] += 1
        if "cidr" in peer or "cidr_group" in peer or peer.get("entity") == "world":
            found["entries by class", ""] += ports
