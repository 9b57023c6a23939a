"""What hosts of a lab took, read on the hosts themselves past SSH: the agent's journal, sshd's log, the device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, List, Mapping

from bpfleet.agent.journal import ENTRIES_KEPT
from bpfleet.agent.wire import STATE_ROOT
from bpfleet.lab import Host, Lab

SSHD_LOG = "/var/log/sshd.log"
ENROLMENT = frozenset({"node", "cluster"})
"""A transaction that changes documents of these kinds only makes a host a member; the others change its datapath."""


@dataclass(frozen=True)
class Seen:
    """One host's totals so far. transactions: the kinds of documents that each one changed. cpu_seconds: of all its
    processes and what the kernel did for them."""

    transactions: List[FrozenSet[str]]
    connections: int
    received: int
    sent: int
    cpu_seconds: float
    documents: int
    documents_digest: str
    pending: bool


@dataclass(frozen=True)
class Took:
    """What one host took between two looks."""

    transactions: int
    enrolment: int
    connections: int
    bytes: int
    received: int
    cpu_seconds: float

    @property
    def connections_per_transaction(self) -> float:
        """SSH connections for each transaction, enrolment included; 0 where there was none."""
        return self.connections / self.transactions if self.transactions else 0.0


def look(lab: Lab) -> Dict[str, Seen]:
    """All hosts by name."""
    return {name: _seen(host) for name, host in lab.hosts.items()}


def between(before: Mapping[str, Seen], after: Mapping[str, Seen], documents: int) -> List[Took]:
    """What each host took from one look to the next.

    Raises RuntimeError unless now all hosts hold the same, as many documents as that, and nothing is pending.
    """
    held = {(seen.documents_digest, seen.documents, seen.pending) for seen in after.values()}
    if len(held) != 1 or {(seen.documents, seen.pending) for seen in after.values()} != {(documents, False)}:
        raise RuntimeError(f"the hosts do not hold the same {documents} documents: {held}")
    return [_took(before[name], seen) for name, seen in after.items()]


def _took(before: Seen, after: Seen) -> Took:
    new = after.transactions[len(before.transactions) :]
    received, sent = after.received - before.received, after.sent - before.sent
    return Took(
        transactions=len(new),
        enrolment=sum(kinds <= ENROLMENT for kinds in new),
        connections=after.connections - before.connections,
        bytes=received + sent,
        received=received,
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
    )


def _seen(host: Host) -> Seen:
    inside = Path("/proc", str(host.pid))
    root = inside / "root"
    state = root / STATE_ROOT.lstrip("/")
    journal = json.loads(text) if (text := _text(state / "journal.json")) else {"entries": [], "confirmed": {}}
    if len(journal["entries"]) >= ENTRIES_KEPT:
        raise RuntimeError(f"{host.name}: the journal is full, older transactions are not in it any more")
    head = journal["confirmed"]
    generation = _text(state / "generations" / f"{head.get('generation', 0):08d}.json")
    counters = _device(inside / "net" / "dev", host.device)
    return Seen(
        transactions=[frozenset(entry["changed"]) for entry in journal["entries"] if entry["event"] == "applied"],
        connections=_text(root / SSHD_LOG.lstrip("/")).count("Accepted "),
        received=counters[0],
        sent=counters[8],
        cpu_seconds=_cpu_seconds(host.cgroup),
        documents=len(json.loads(generation)["items"]) if generation else 0,
        documents_digest=head.get("documents_digest", ""),
        pending=journal.get("transaction") is not None,
    )


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _device(table: Path, name: str) -> List[int]:
    """Counters of a device as /proc/net/dev has them: bytes received first, bytes sent ninth. See proc(5)."""
    (line,) = [line for line in table.read_text().splitlines() if line.strip().startswith(f"{name}:")]
    return [int(word) for word in line.partition(":")[2].split()]


def _cpu_seconds(cgroup: Path) -> float:
    usage = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    return int(usage["usage_usec"]) / 1e6
