"""What both halves of the group `survival` need: lab hosts as targets, and documents put on them by a transaction."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from bpfleet.lab import Host, Lab
from bpfleet.model.identity import candidates
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed
from bpfleet.transport.target import Target

OWNER = "bench:survival"
CLUSTER = "survival"

Documents = List[Dict[str, Any]]


def document(kind: str, name: str, **spec: Any) -> Dict[str, Any]:
    """A document as it is written."""
    return {"kind": kind, "name": name, "spec": spec}


def identity(name: str, labels: Mapping[str, str]) -> Dict[str, Any]:
    """An identity with the number that its labels make it prefer."""
    return document("identity", name, labels=dict(labels), number=next(candidates(1, labels)))


def host_target(lab: Lab, host: Host) -> Target:
    """How to reach a lab's host."""
    return Target(host.name, host.address, private_key_file=str(lab.private_key), host_key=host.host_key)


def node(host: Host) -> Dict[str, Any]:
    """The node that a lab's host is."""
    return document("node", host.name, **host.node_spec)


def change(fleet: Fleet, targets: Mapping[str, Target], puts: Sequence[Mapping[str, Any]]) -> Dict[str, Committed]:
    """One transaction on all targets. Raises RuntimeError unless it was made and confirmed on each."""
    items: Any = [
        {
            "document": one,
            "owner": OWNER,
            "metadata": {"ssh": targets[one["name"]].to_metadata()} if one["name"] in targets else {},
        }
        for one in puts
    ]
    committed: Dict[str, Committed] = {}
    for name, outcome in fleet.transact(targets, Changes(items, [], OWNER)).items():
        if not isinstance(outcome, Committed):
            raise RuntimeError(f"{name}: {outcome}")
        committed[name] = outcome
    return committed
