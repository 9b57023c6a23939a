"""Documents: one declared resource each, as canonical JSON with a content hash; and sets of them.

A `DocumentSet` is immutable. Making a changed one shares the unchanged documents, and its per-kind fingerprints are
kept up incrementally, so that whoever caches by input (the compiler) pays for what changed only.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from bpfleet.errors import InvalidInput, UnknownField
from bpfleet.model.readable import unreadable
from bpfleet.model.resources import RESOURCES
from bpfleet.model.schema import Field, Problem, check

_FINGERPRINT_BITS = 256


def canonical_json(value: Any) -> str:
    """The one text form of a JSON value: sorted keys, no white space, no escapes beyond what JSON needs."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Document:
    """One declared resource. `spec` must be treated as read-only; `hash` is hex SHA-256 of the canonical JSON."""

    __slots__ = ("hash", "kind", "name", "spec")

    def __init__(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        self.kind = kind
        self.name = name
        self.spec = spec
        self.hash = hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def key(self) -> str:
        """ "kind/name": unique within a cluster."""
        return f"{self.kind}/{self.name}"

    def to_json(self) -> Dict[str, Any]:
        """Plain JSON data, also the wire form."""
        return {"kind": self.kind, "name": self.name, "spec": dict(self.spec)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"Document({self.key} {self.hash[:12]})"


def parse_document(data: Mapping[str, Any]) -> Document:
    """The checked, normalised document in loose JSON data; raises InvalidInput for the first problem.

    `problems_of` gives all problems at once.
    """
    problems = problems_of(data)
    if problems:
        raise problems[0]
    kind = str(data["kind"])
    spec, _ = check(RESOURCES[kind].spec_fields, data.get("spec") or {})
    return Document(kind, str(data["name"]), spec)


def problems_of(data: Mapping[str, Any]) -> List[InvalidInput]:
    """Everything wrong with one document by itself, each naming resource, field and remedy."""
    if not isinstance(data, Mapping):
        return [InvalidInput("a document must be a mapping", remedy="Give kind, name and spec.")]
    kind, name = data.get("kind"), data.get("name")
    for path, what, remedy in unreadable(data):
        field = path[len("spec.") :] if path.startswith("spec.") else path
        whose = f"{kind}/{name}" if isinstance(kind, str) and isinstance(name, str) else ""
        return [InvalidInput(what, resource=whose, field=field, remedy=remedy)]
    if not isinstance(kind, str) or kind not in RESOURCES:
        kinds = ", ".join(RESOURCES)
        return [InvalidInput(f"{kind!r} is not a kind of resource", field="kind", remedy=f"Use one of {kinds}.")]
    resource = f"{kind}/{name}"
    found: List[InvalidInput] = []
    for extra in sorted(map(str, set(data) - {"kind", "name", "spec"})):
        found.append(UnknownField(f"unknown field {extra}", resource=resource, field=extra, remedy="Remove it."))
    name_field = Field("name", RESOURCES[kind].name, "the resource's name", required=True)
    _, name_problems = check([name_field], {"name": name})
    spec = data.get("spec")
    if not isinstance(spec, Mapping):
        found.append(InvalidInput("must be a mapping", resource=resource, field="spec", remedy="Give the fields."))
        spec_problems: List[Problem] = []
    else:
        shape = RESOURCES[kind]
        _, spec_problems = check(shape.spec_fields, spec, shape.exactly_one, shape.checks)
        known = {problem.path for problem in spec_problems}
        spec_problems += [problem for problem in _empty_fields(spec, "") if problem.path not in known]
    for problem in [*name_problems, *spec_problems]:
        error = UnknownField if problem.unknown_field else InvalidInput
        found.append(error(problem.what, resource=resource, field=problem.path, remedy=problem.remedy))
    return found


def _empty_fields(value: Any, path: str) -> Iterator[Problem]:
    """Fields that are written down and have no value. Left out, `peers` means any peer; written without its items, it
    must not."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if item is None:
                yield Problem(where, "is given without a value", "Give a value, or leave the field out.")
            else:
                yield from _empty_fields(item, where)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _empty_fields(item, f"{path}[{index}]")


class DocumentSet:
    """An immutable set of documents, at most one for each key."""

    __slots__ = ("_by_kind", "_fingerprints")

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        self._by_kind: Dict[str, Dict[str, Document]] = {kind: {} for kind in RESOURCES}
        self._fingerprints: Dict[str, int] = dict.fromkeys(RESOURCES, 0)
        for document in documents:
            self._replace(document.kind, document.name, document)

    def _replace(self, kind: str, name: str, document: Optional[Document]) -> None:
        group = self._by_kind[kind]
        old = group.pop(name, None)
        change = 0
        if old is not None:
            change -= int(old.hash, 16)
        if document is not None:
            change += int(document.hash, 16)
            group[name] = document
        self._fingerprints[kind] = (self._fingerprints[kind] + change) % (1 << _FINGERPRINT_BITS)

    def changed(self, puts: Iterable[Document] = (), deletes: Iterable[str] = ()) -> DocumentSet:
        """A new set with `puts` put and the keys in `deletes` ("kind/name") gone; a missing key is no error."""
        puts = list(puts)
        gone = [(kind, name) for kind, _, name in (key.partition("/") for key in deletes)]
        result = DocumentSet.__new__(DocumentSet)
        touched = {document.kind for document in puts} | {kind for kind, _ in gone}
        result._by_kind = {kind: dict(group) if kind in touched else group for kind, group in self._by_kind.items()}
        result._fingerprints = dict(self._fingerprints)
        for kind, name in gone:
            if kind in RESOURCES:
                result._replace(kind, name, None)
        for document in puts:
            result._replace(document.kind, document.name, document)
        return result

    def of_kind(self, kind: str) -> Mapping[str, Document]:
        """The documents of one kind by name, in no particular order."""
        return self._by_kind[kind]

    def get(self, key: str) -> Optional[Document]:
        """The document with this key ("kind/name"), or None."""
        kind, _, name = key.partition("/")
        return self._by_kind.get(kind, {}).get(name)

    def fingerprint(self, *kinds: str) -> Tuple[int, ...]:
        """Changes when a document of one of these kinds changes (a sum of hashes, for caches in one process)."""
        return tuple(self._fingerprints[kind] for kind in kinds)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all keys and hashes: equal for equal sets, whoever declared them in whatever order."""
        lines = sorted(f"{document.key} {document.hash}\n" for document in self)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __iter__(self) -> Iterator[Document]:
        for kind in RESOURCES:
            group = self._by_kind[kind]
            for name in sorted(group):
                yield group[name]

    def __len__(self) -> int:
        return sum(len(group) for group in self._by_kind.values())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DocumentSet) and self._by_kind == other._by_kind

    __hash__ = None  # type: ignore[assignment]
