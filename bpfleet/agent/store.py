"""The document store: one file for each generation, holding every document with its owner and metadata.

A generation's file is written once and never changed; which one counts is the journal's word. So a change of the
documents is as atomic as the journal's replacement, and the last confirmed generation is always whole on disk.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple, cast

from bpfleet.agent.files import Files, failed
from bpfleet.agent.journal import Head, start_anew
from bpfleet.agent.wire import Item, Refusal
from bpfleet.errors import BpfleetError, HostFailed, InvalidInput, NotOwner, NumberTaken
from bpfleet.model.document import Document, DocumentSet, parse_document, problems_of

GENERATIONS_KEPT = 5
"""Files of confirmed generations kept, the current one included."""


@dataclass(frozen=True)
class Stored:
    """One document with its owner and metadata."""

    document: Document
    owner: str
    metadata: Mapping[str, Any]

    def to_item(self) -> Item:
        """The wire and file form."""
        return {"document": self.document.to_json(), "owner": self.owner, "metadata": dict(self.metadata)}

    @functools.cached_property
    def text(self) -> str:
        """`to_item` as it stands in a generation's file. Kept: most items are the same in the next generation."""
        return json.dumps(self.to_item(), separators=(",", ":"), ensure_ascii=False)


class Contents:
    """What one generation holds: the items by key, and their documents as a set. Immutable."""

    def __init__(self, items: Mapping[str, Stored], documents: Optional[DocumentSet] = None) -> None:
        self.items = items
        self.documents = documents if documents is not None else DocumentSet(item.document for item in items.values())

    def to_bytes(self, head: Head) -> bytes:
        """The file's contents."""
        start = json.dumps({"generation": head.generation, "documents_digest": head.documents_digest})
        items = ",".join(self.items[key].text for key in sorted(self.items))
        return f'{start[:-1]},"items":[{items}]}}'.encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contents) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


EMPTY = Contents({})


class Store:
    """The generations on disk."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._directory = files.root / "generations"
        self._loaded: Tuple[Tuple[int, Optional[str]], Contents] = ((0, None), EMPTY)

    def path(self, generation: int) -> Path:
        """The file of a generation."""
        return self._directory / f"{generation:08d}.json"

    def load(self, head: Head) -> Contents:
        """What the generation holds; HostFailed if its file is gone, damaged or not what the journal says."""
        key = (head.generation, head.transaction)
        if head.generation == 0:
            return EMPTY
        if self._loaded[0] == key:
            return self._loaded[1]
        path = self.path(head.generation)
        try:
            data = json.loads(path.read_bytes())
            items = [_stored(item) for item in data["items"]]
        except FileNotFoundError as problem:
            raise self._damaged(path, "it is gone") from problem
        except OSError as problem:
            raise failed("read", path, problem) from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise self._damaged(path, repr(problem)) from problem
        contents = Contents({item.document.key: item for item in items})
        if contents.documents.digest != head.documents_digest:
            raise self._damaged(path, "its digest is not the journal's")
        self._loaded = (key, contents)
        return contents

    def _damaged(self, path: Path, why: str) -> HostFailed:
        return HostFailed(f"{path} is damaged: {why}", remedy=start_anew(self._files.root), file=str(path))

    def older(self, generation: int) -> Iterator[Contents]:
        """What the kept generations before this one hold, newest first; one that cannot be read ends it."""
        for path in reversed(self._paths()):
            if int(path.stem) < generation:
                try:
                    items = [_stored(item) for item in json.loads(path.read_bytes())["items"]]
                except (OSError, ValueError, KeyError, TypeError):
                    return
                yield Contents({item.document.key: item for item in items})

    def write(self, head: Head, contents: Contents, data: bytes) -> None:
        """Write the generation's file; `data` is `contents.to_bytes(head)`."""
        self._files.write(self.path(head.generation), data)
        self._loaded = ((head.generation, head.transaction), contents)

    def prune(self, current: int) -> None:
        """Remove files of generations other than the last few up to `current`."""
        for path in self._paths():
            number = int(path.stem)
            if number > current or number <= current - GENERATIONS_KEPT:
                self._files.remove(path)

    def clear(self) -> None:
        """Remove every generation, and what was left of those that were never written to the end."""
        if self._directory.is_dir():
            for path in sorted(self._directory.iterdir()):
                self._files.remove(path)
            self._directory.rmdir()
        self._loaded = ((0, None), EMPTY)

    def _paths(self) -> List[Path]:
        return sorted(path for path in self._directory.glob("*.json") if path.stem.isdigit())


def _stored(item: Mapping[str, Any]) -> Stored:
    data = item["document"]
    # Stored documents were checked when they came in.
    return Stored(Document(data["kind"], data["name"], data["spec"]), item["owner"], item["metadata"])


def change(
    base: Contents, puts: Iterable[Mapping[str, Any]], deletes: Iterable[str], owner: str, *, replace_all: bool
) -> Tuple[Contents, List[Refusal]]:
    """`base` with the items put and the keys deleted, and every refusal of one document by itself or by its owner.

    The contents are without the refused documents. With replace_all they are exactly the puts.
    """
    refused: List[Refusal] = []
    items: Dict[str, Stored] = {} if replace_all else dict(base.items)
    for key in deletes:
        old = items.get(key)
        if old is None:
            continue
        if old.owner != owner:
            refused.append(refusal(_not_owner(key, old.owner, owner)))
        else:
            del items[key]
    new: List[Stored] = []
    seen = set()
    for item in puts:
        data = item.get("document")
        problems = problems_of(data) if isinstance(data, Mapping) else [InvalidInput("an item has no document")]
        if problems:
            refused.extend(refusal(problem) for problem in problems)
            continue
        document = parse_document(cast(Mapping[str, Any], data))
        stored = Stored(document, str(item.get("owner") or owner), item.get("metadata") or {})
        old = items.get(document.key)
        if document.key in seen:
            error = InvalidInput("is put twice in one change", resource=document.key, remedy="Put it once.")
            refused.append(refusal(error))
        elif old is not None and old.owner != stored.owner:
            refused.append(refusal(_not_owner(document.key, old.owner, stored.owner)))
        else:
            new.append(stored)
        seen.add(document.key)
    changed = {stored.document.key: stored for stored in new}
    items.update(changed)
    taken = _numbers_taken(items, changed)
    refused.extend(refusal(error) for error in taken)
    for error in taken:
        del items[str(error.resource)]
    if replace_all:
        return Contents(items), refused
    documents = base.documents.changed(
        (items[key].document for key in changed if key in items),
        (key for key in base.items if key not in items),
    )
    return Contents(items, documents), refused


def differing(old: Contents, new: Contents) -> Set[str]:
    """Keys of what was put, deleted or replaced between the two, be it the document, its owner or its metadata."""
    before, after = old.items, new.items
    return {
        key for key in {*before, *after} if before.get(key) is not after.get(key) and before.get(key) != after.get(key)
    }


def _numbers_taken(items: Mapping[str, Stored], changed: Mapping[str, Stored]) -> List[NumberTaken]:
    """Compare and set: a number that other labels hold already is refused, and who holds it is told."""
    if not any(stored.document.kind == "identity" for stored in changed.values()):
        return []
    identities = [stored.document for stored in items.values() if stored.document.kind == "identity"]
    # What was there before comes first, so that the newcomer is the one that is refused.
    identities.sort(key=lambda document: (document.key in changed, document.key))
    holders: Dict[int, Document] = {}
    found: List[NumberTaken] = []
    for document in identities:
        number = document.spec["number"]
        holder = holders.setdefault(number, document)
        if holder is not document:
            found.append(
                NumberTaken(
                    f"number {number} belongs to the labels of {holder.key}",
                    remedy="Take the next candidate number.",
                    resource=document.key,
                    field="number",
                    details={"number": number, "other": holder.key, "labels": holder.spec["labels"]},
                )
            )
    return found


def _not_owner(key: str, owner: str, asking: str) -> NotOwner:
    return NotOwner(
        f"belongs to {owner}, not to {asking}",
        resource=key,
        remedy=f"Change or delete it where it is declared ({owner}), or choose another name.",
        details={"owner": owner, "asking": asking},
    )


def refusal(error: BpfleetError) -> Refusal:
    """One refused document, as stage answers it."""
    return {"document": error.resource or "", "error": error.to_wire()}


def refusals(errors: Iterable[BpfleetError], changed: Collection[str]) -> List[Refusal]:
    """Errors about several documents as refusals of those that were changed.

    A conflict has two sides; the one that was there before is not to blame.
    """
    found = []
    for error in errors:
        key, other = error.resource or "", str(error.details.get("other", ""))
        found.append({**refusal(error), "document": other if key not in changed and other in changed else key})
    return cast(List[Refusal], found)
