"""Documents onto all members of a cluster, as one transaction a node. Blocking; for worker threads.

A document that any node refuses fails by itself: the rest is tried again without it. An identity whose number is taken
is tried again with its next one. A node that does not answer, or fails, is named in the results of all documents; the
other nodes go on.
"""

from __future__ import annotations

import itertools
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set

from bpfleet.agent.wire import Item
from bpfleet.errors import BpfleetError, Conflict, NumberTaken
from bpfleet.model.identity import candidates
from bpfleet.transport.outcome import Changes, Committed, Failed, Outcome, Refusal, Refused, Unchanged, Unreached
from bpfleet.transport.target import Target
from provider.directory import Directory, View

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet

NUMBERS_TRIED = 16
"""How many numbers an identity is offered beyond those known to be taken, before giving up."""


@dataclass(frozen=True)
class Put:
    """A document to put. An identity's `spec` has no number yet."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """ "kind/name"."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Delete:
    """A document to delete, by its key ("kind/name")."""

    key: str


@dataclass
class Result:
    """What became of one document.

    error: it was refused, or no node took it. lagging: nodes that did not take it, while others did. warnings: for
    the user, besides `Writer.warnings`. spec: as it was put.
    """

    error: Optional[BpfleetError] = None
    lagging: Dict[str, BpfleetError] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)
    spec: Dict[str, Any] = field(default_factory=dict)


def transact(
    fleet: Fleet,
    directory: Directory,
    targets: Mapping[str, Target],
    changes: Mapping[str, Changes],
    cancelled: threading.Event,
) -> Dict[str, Outcome]:
    """`Fleet.transact`, without waiting again for nodes that just now did not answer."""
    dead = {name: error for name, target in targets.items() if (error := directory.dead(target)) is not None}
    alive = {name: target for name, target in targets.items() if name not in dead}
    outcomes: Dict[str, Outcome] = {name: Unreached(error) for name, error in dead.items()}
    if alive:
        outcomes.update(fleet.transact(alive, {name: changes[name] for name in alive}, cancelled))
    for name, outcome in outcomes.items():
        if isinstance(outcome, Unreached):
            directory.note(targets[name], outcome.error)
    return outcomes


class Writer:
    """One owner's changes to one cluster."""

    def __init__(self, fleet: Fleet, directory: Directory, view: View, owner: str, cancelled: threading.Event) -> None:
        self._fleet = fleet
        self._directory = directory
        self._view = view
        self._owner = owner
        self._cancelled = cancelled
        self._numbers: Dict[str, Iterator[int]] = {}
        self._used: Set[int] = set()
        self.warnings: List[str] = []
        """What the nodes say of all their documents after the last `write`."""

    def write(self, puts: Sequence[Put], deletes: Sequence[Delete]) -> Dict[str, Result]:
        """Put and delete; results by key."""
        results = {key: Result() for key in [*(put.key for put in puts), *(delete.key for delete in deletes)]}
        waiting_puts = {put.key: put for put in puts}
        waiting_deletes = {delete.key for delete in deletes}
        specs = self._specs(puts)
        # Every round but the last takes at least one document out, or offers one identity its next number.
        for _ in range(len(results) + NUMBERS_TRIED * len(self._numbers) + 1):
            if not waiting_puts and not waiting_deletes:
                return results
            items = [self._item(put, specs[key]) for key, put in waiting_puts.items()]
            changes = Changes(items, sorted(waiting_deletes), self._owner)
            targets = self._view.targets
            outcomes = transact(self._fleet, self._directory, targets, dict.fromkeys(targets, changes), self._cancelled)
            refusals = [
                refusal for outcome in outcomes.values() if isinstance(outcome, Refused) for refusal in outcome.refusals
            ]
            if not refusals:
                self.warnings = _warnings(outcomes)
                for key in (*waiting_puts, *waiting_deletes):
                    _conclude(results[key], key, outcomes)
                    results[key].spec = dict(specs.get(key, {}))
                return results
            for key, error in _blamed(refusals, {*waiting_puts, *waiting_deletes}).items():
                if isinstance(error, NumberTaken) and self._renumber(key, specs):
                    continue
                results[key].error = error
                waiting_puts.pop(key, None)
                waiting_deletes.discard(key)
        for key in (*waiting_puts, *waiting_deletes):
            results[key].error = Conflict("no free number was found", resource=key, remedy="Run the same again")
        return results

    def _item(self, put: Put, spec: Mapping[str, Any]) -> Item:
        document = {"kind": put.kind, "name": put.name, "spec": dict(spec)}
        return {"document": document, "owner": self._owner, "metadata": dict(put.metadata)}

    def _specs(self, puts: Sequence[Put]) -> Dict[str, Dict[str, Any]]:
        """The spec of each put by key, identities with a number: their present one, or the first that is free."""
        specs = {put.key: dict(put.spec) for put in puts}
        identities = [put for put in puts if put.kind == "identity"]
        if not identities:
            return specs
        present = self._identities()
        used = self._used = {int(spec["number"]) for spec in present.values()}
        for put in identities:
            labels = dict(put.spec["labels"])
            old = present.get(put.name)
            numbers = candidates(self._view.cluster_id, labels)
            free = (number for number in numbers if number not in used)
            self._numbers[put.key] = itertools.islice(free, NUMBERS_TRIED)
            if old is not None and old["labels"] == labels:
                specs[put.key]["number"] = int(old["number"])
            else:
                specs[put.key]["number"] = next(self._numbers[put.key])
                used.add(specs[put.key]["number"])
        return specs

    def _renumber(self, key: str, specs: Dict[str, Dict[str, Any]]) -> bool:
        number = next(self._numbers.get(key, iter(())), None)
        if number is None:
            return False
        self._used.add(number)  # or the next one of this batch would be offered the same
        specs[key]["number"] = number
        return True

    def _identities(self) -> Dict[str, Dict[str, Any]]:
        """Specs of the cluster's identities by name, as the first member to answer holds them."""
        failures: List[BpfleetError] = []
        for member in self._view.members.values():
            items = self._directory.ask(member.target, ["identity"])
            if not isinstance(items, BpfleetError):
                return {item["document"]["name"]: item["document"]["spec"] for item in items}
            failures.append(items)
        if failures:
            raise failures[0]
        return {}


def _conclude(result: Result, key: str, outcomes: Mapping[str, Outcome]) -> None:
    """Fill in what the nodes made of a document that none refused."""
    taken = 0
    for name, outcome in outcomes.items():
        if isinstance(outcome, (Committed, Unchanged)):
            taken += 1
        elif isinstance(outcome, (Failed, Unreached)):
            result.lagging[name] = outcome.error.at(node=name)
    if not taken and result.lagging:
        result.error = together(result.lagging, key)


def _warnings(outcomes: Mapping[str, Outcome]) -> List[str]:
    """Every warning once, whoever gives it. A document that waits has no effect yet, which is worth one too."""
    said = [
        [*outcome.warnings, *(f"{item['document']}: waits: {item['reason']}" for item in outcome.waiting)]
        for outcome in outcomes.values()
        if isinstance(outcome, (Committed, Unchanged))
    ]
    return list(dict.fromkeys(itertools.chain.from_iterable(said)))


def is_about(warning: str, key: str) -> bool:
    """Whether a node's warning concerns this document; a warning starts with the key of what it is about."""
    return warning.startswith((f"{key},", f"{key}:", f"{key} "))


def waits_for(warning: str, key: str) -> bool:
    """Whether a node's warning says that a document waits for the one with this key."""
    kind, _, name = key.partition("/")
    said = "CIDR group" if kind == "cidr_group" else kind
    return f": waits: {said} {name} has " in warning


def together(errors: Mapping[str, BpfleetError], key: str) -> BpfleetError:
    """One error for what no node took. All the same class: that class; otherwise the root."""
    if len(errors) == 1:
        return next(iter(errors.values())).at(resource=key)
    kinds = {type(error) for error in errors.values()}
    cls = kinds.pop() if len(kinds) == 1 else BpfleetError
    return cls("; ".join(str(error) for error in errors.values()), resource=key)


def seen_from(document: str, refused: str, error: BpfleetError) -> BpfleetError:
    """The conflict of `refused`, told of the document that was changed rather than of the one that was there. Of the
    field only the first part counts for both, and that only if they are of one kind."""
    alike = document.partition("/")[0] == refused.partition("/")[0] and error.field is not None
    return type(error)(
        f"conflicts with {refused}: {error.what}",
        resource=document,
        field=re.split(r"[.\[]", str(error.field))[0] if alike else None,
        node=error.where.get("node"),
        remedy=f"Change this one, or {refused}.",
        details={**error.details, "other": refused},
    )


def _blamed(refusals: Sequence[Refusal], waiting: Set[str]) -> Dict[str, BpfleetError]:
    """Which of our documents a refusal stops: the one it names, the other one of a conflict, or else all."""
    blamed: Dict[str, BpfleetError] = {}
    for refusal in refusals:
        other = refusal.error.details.get("other")
        if refusal.document in waiting:
            blamed.setdefault(refusal.document, refusal.error)
        elif other in waiting:
            blamed.setdefault(str(other), seen_from(str(other), refusal.document, refusal.error))
    if not blamed:
        return dict.fromkeys(waiting, refusals[0].error)
    return blamed
