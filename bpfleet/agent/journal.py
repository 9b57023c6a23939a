"""The journal: one small file that says which generation is confirmed and which transaction is under way.

It is replaced whole, so a crash leaves either the old one or the new one, and with it an old or a new node:

    nothing   -> applying   the generation's file is written, the kernel is about to change
    applying  -> applied    the kernel holds it; it awaits its confirmation until the deadline
    applied   -> committed  (entry.confirmed is the new head, no transaction)
    applied   -> putting back  it may not be confirmed any more: the kernel is about to change again
    applying, putting back -> rolled back  (entry.confirmed is the old head, no transaction)

A transaction that is only staged lives in its process's memory and is not in here.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from bpfleet.agent.files import Files, failed
from bpfleet.errors import HostFailed

APPLYING = "applying"
APPLIED = "applied"
PUTTING_BACK = "putting back"
FORMAT = 1
ENTRIES_KEPT = 100


@dataclass(frozen=True)
class Head:
    """One generation, as far as hello needs it. Generation 0 is the empty one."""

    generation: int = 0
    transaction: Optional[str] = None
    node: Optional[str] = None
    cluster: Optional[str] = None
    documents_digest: str = ""
    state_digest: Optional[str] = None


@dataclass(frozen=True)
class Transaction:
    """One that is under way. Times are seconds since the boot `boot_id`; `applied_ticks` is in clock ticks. `reason`:
    why it is put back."""

    state: str
    head: Head
    owner: str
    pid: int
    boot_id: str
    deadline_seconds: float
    applied_ticks: int = 0
    deadline: float = 0.0
    reason: str = ""

    @property
    def id(self) -> str:
        """Its name, as stage gave it."""
        return str(self.head.transaction)


@dataclass(frozen=True)
class Journal:
    """The whole file. `revision` counts its replacements; `writes` is the total that hello shows."""

    confirmed: Head
    transaction: Optional[Transaction] = None
    revision: int = 0
    writes: int = 0
    entries: Tuple[Mapping[str, Any], ...] = field(default=())

    def noting(self, event: str, head: Head, **more: Any) -> Journal:
        """With one more entry, newest last; the oldest beyond a hundred go."""
        entry = {
            "time": round(time.time(), 3),
            "event": event,
            "transaction": head.transaction,
            "generation": head.generation,
            **more,
        }
        return replace(self, entries=(*self.entries, entry)[-ENTRIES_KEPT:])


class JournalFile:
    """Reads and replaces the journal. Reading an unchanged file again costs one stat."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.path = files.root / "journal.json"
        self._stamp: Optional[Tuple[int, int, int]] = None
        self._journal: Optional[Journal] = None

    def read(self) -> Journal:
        """The journal on disk; a new one where there is none. HostFailed for one that cannot be understood."""
        try:
            found = self.path.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._journal is None or stamp != self._stamp:
                self._journal = _from_json(json.loads(self.path.read_bytes()))
                self._stamp = stamp
        except FileNotFoundError:
            self._stamp, self._journal = None, Journal(Head(documents_digest=empty_digest()))
        except OSError as problem:
            raise failed("read", self.path, problem) from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise HostFailed(
                f"the journal {self.path} cannot be understood: {problem!r}",
                remedy=f"It is damaged, or a newer agent wrote it. Use that one, or: {start_anew(self.path.parent)}",
                file=str(self.path),
            ) from problem
        return self._journal

    def write(self, journal: Journal) -> Journal:
        """Replace it; answers it as written. `journal.writes` must already count this write."""
        journal = replace(journal, revision=journal.revision + 1)
        data = json.dumps({"format": FORMAT, **asdict(journal)}, separators=(",", ":"), sort_keys=True).encode()
        self._files.write(self.path, data)
        found = self.path.stat()
        self._stamp, self._journal = (found.st_ino, found.st_mtime_ns, found.st_size), journal
        return journal


def _from_json(data: Dict[str, Any]) -> Journal:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}, this agent knows {FORMAT}")
    transaction = data["transaction"]
    if transaction is not None:
        transaction = Transaction(**{**transaction, "head": Head(**transaction["head"])})
    return Journal(
        confirmed=Head(**data["confirmed"]),
        transaction=transaction,
        revision=data["revision"],
        writes=data["writes"],
        entries=tuple(data["entries"]),
    )


def start_anew(root: Path) -> str:
    """What to do where a file of the agent's cannot be used. No tool can clear such a node: each asks it first what it
    holds."""
    return (
        f"Remove {root / 'journal.json'} on the host, which then counts as empty, and apply again "
        "(pulumi up --refresh, or the playbook)."
    )


def empty_digest() -> str:
    """Digest of no documents (as DocumentSet().digest, without importing the model for it)."""
    return "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
