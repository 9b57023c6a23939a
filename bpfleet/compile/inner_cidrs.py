"""CIDRs that can mean nobody but endpoints or a node, and so mean nobody: for people who expect them to. Pure."""

from __future__ import annotations

import bisect
import ipaddress
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Tuple

from bpfleet.compile.policy import Resolved
from bpfleet.model.document import Document

_NO_ADDRESS = 1 << 128
"""Above every address."""
_LISTED = 3
_NEVER = "which a CIDR never means; use labels or an entity"


class OwnNetworks:
    """Whose the workload CIDRs and addresses of the nodes are. They do not overlap (see validate.py)."""

    def __init__(self, nodes: Mapping[str, Document]) -> None:
        found: List[Tuple[int, int, int, str]] = []
        for name, node in nodes.items():
            for text in (*node.spec["workload_cidrs"], node.spec["address"]):
                network = ipaddress.ip_network(text)
                found.append((network.version, *_ends(network), name))
        self._networks = sorted(found)

    def owners(self, cidr: str, parts: Iterable[str] = ()) -> List[str]:
        """The nodes in whose networks and addresses a CIDR without some parts lies, or of whose it is made up; none if
        it holds anything else."""
        network = ipaddress.ip_network(cidr)
        owners: Dict[str, None] = {}
        for ends in _left(network, parts):
            found = self._owners(network.version, *ends)
            if not found:
                return []
            owners.update(dict.fromkeys(found))
        return list(owners)

    def _owners(self, of_ip: int, first: int, last: int) -> List[str]:
        """The same of all from one address to another."""
        # Of what begins no later than the CIDR, only the last can reach into it.
        place = max(0, bisect.bisect_right(self._networks, (of_ip, first, _NO_ADDRESS)) - 1)
        owners: Dict[str, None] = {}
        for at in range(place, len(self._networks)):
            version, start, end, name = self._networks[at]
            if version != of_ip or start > first or end < first:
                return []
            owners[name] = None
            first = end + 1
            if last < first:
                return list(owners)
        return []


def policy_warnings(item: Resolved, own: OwnNetworks) -> Tuple[str, ...]:
    """What to say of a policy's CIDR peers."""
    found: List[str] = []
    for path, cidr, parts in item.cidrs:
        names = own.owners(cidr, parts)
        if names:
            what = f"what is left of {cidr}" if parts else cidr
            found.append(f"policy/{item.name}, {path}: {what} is {_whose(names)}, {_NEVER}")
    return tuple(found)


def group_warnings(group: Document, own: OwnNetworks) -> Tuple[str, ...]:
    """What to say of a CIDR group: once, however many of its networks it is about and policies name it."""
    owned = ((cidr, own.owners(cidr)) for cidr in group.spec["cidrs"])
    inner = [(cidr, names) for cidr, names in owned if names]
    if not inner:
        return ()
    cidr, names = inner[0]
    what = f"{cidr} is {_whose(names)}"
    if len(inner) > 1:
        what = f"{cidr} and {len(inner) - 1} more are of nodes and their endpoints (the first of {_listed(names)})"
    return (f"{group.key}, cidrs: {what}, {_NEVER}",)


def _whose(names: List[str]) -> str:
    return (
        f"of node {names[0]} and its endpoints" if len(names) == 1 else f"of nodes {_listed(names)} and their endpoints"
    )


def _listed(names: List[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _left(network: Any, parts: Iterable[str]) -> Iterator[Tuple[int, int]]:
    """The first and last address of each run of addresses that parts of a network leave of it."""
    first, last = _ends(network)
    for start, end in sorted(_ends(ipaddress.ip_network(part)) for part in parts):
        if start > first:
            yield first, start - 1
        first = max(first, end + 1)
    if first <= last:
        yield first, last


def _ends(network: Any) -> Tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)
