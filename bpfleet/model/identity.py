"""Identity numbers: 24 bits, because they travel as the VNI of tunnel packets (RFC 7348).

Numbers below 65536 are not of any cluster; of those, 1 to 255 are reserved for entities. A cluster's identities have
its id in bits 16 to 23 and 16 bits of a hash of their labels below; the controller probes on until the number is free.
"""

from __future__ import annotations

import hashlib
from typing import Dict, Iterable, Iterator, Mapping

from bpfleet.model.document import canonical_json
from bpfleet.model.resources import ENTITY_NAMES

UNKNOWN = 0
HOST = 1
WORLD = 2
WAITING = 5
REMOTE_NODE = 6

RESERVED_NAMES: Dict[int, str] = dict(zip((UNKNOWN, HOST, WORLD, WAITING, REMOTE_NODE), ENTITY_NAMES))

_LOCAL_BITS = 16
_LOCAL_RESERVED = 256


def candidates(cluster_id: int, labels: Mapping[str, str]) -> Iterator[int]:
    """Every number an identity with these labels may have, best first.

    The first depends on the labels alone, so that numbers stay what they are when other identities come and go.
    """
    digest = hashlib.sha256(canonical_json(dict(labels)).encode()).digest()
    start = int.from_bytes(digest[:4], "big")
    size = (1 << _LOCAL_BITS) - _LOCAL_RESERVED
    for step in range(size):
        yield cluster_id << _LOCAL_BITS | (_LOCAL_RESERVED + (start + step) % size)


def decider(nodes: Iterable[str]) -> str:
    """Of the nodes that a controller reaches, the one that must have taken a number before any other is offered it.

    A node refuses a number that it knows as another identity's. If every controller begins at the same node, then of
    two that want one number for different labels, the second is refused before it has put it anywhere.
    """
    return min(nodes)


def cluster_of(number: int) -> int:
    """Id of the cluster that a number belongs to; 0 for reserved numbers."""
    return number >> _LOCAL_BITS


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether `labels` has every label of `selector`; an empty selector matches all labels."""
    return all(labels.get(key) == value for key, value in selector.items())
