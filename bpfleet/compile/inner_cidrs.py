"""CIDRs that can mean nobody but endpoints or a node, and so mean nobody: for people who expect them to. Pure."""

from __future__ import annotations

import bisect
import ipaddress
from typing import Any, Dict, List, Mapping, Tuple

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

    def owners(self, cidr: str) -> List[str]:
        """The nodes whose networks and addresses the CIDR lies in, or is made up of; none if it holds anything else."""
        network = ipaddress.ip_network(cidr)
        first, last = _ends(network)
        # Of what begins no later than the CIDR, only the last can reach into it.
        place = max(0, bisect.bisect_right(self._networks, (network.version, first, _NO_ADDRESS)) - 1)
        owners: Dict[str, None] = {}
        for at in range(place, len(self._networks)):
            version, start, end, name = self._networks[at]
            if version != network.version or start > first or end < first:
                return []
            owners[name] = None
            first = end + 1
            if last < first:
                return list(owners)
        return []


def policy_warnings(item: Resolved, own: OwnNetworks) -> Tuple[str, ...]:
    """What to say of a policy's CIDR peers."""
    owned = ((path, cidr, own.owners(cidr)) for path, cidr in item.cidrs)
    return tuple(
        f"policy/{item.name}, {path}: {cidr} is {_whose(names)}, {_NEVER}" for path, cidr, names in owned if names
    )


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


def _ends(network: Any) -> Tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)
