"""CIDRs that can mean nobody but endpoints or a node, and so mean nobody: for people who expect them to. Pure."""

from __future__ import annotations

import bisect
import ipaddress
from typing import Any, List, Mapping, Optional, Tuple

from bpfleet.compile.policy import Resolved
from bpfleet.model.document import Document

_NO_ADDRESS = 1 << 128
"""Above every address."""
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

    def owner(self, cidr: str) -> Optional[str]:
        """The node in one of whose networks the CIDR lies, or whose address it is."""
        network = ipaddress.ip_network(cidr)
        first, last = _ends(network)
        # Of what begins no later than the CIDR, only the last can reach to its end.
        place = bisect.bisect_right(self._networks, (network.version, first, _NO_ADDRESS)) - 1
        if place < 0:
            return None
        version, _, end, name = self._networks[place]
        return name if version == network.version and last <= end else None


def policy_warnings(item: Resolved, own: OwnNetworks) -> Tuple[str, ...]:
    """What to say of a policy's CIDR peers."""
    owners = ((path, cidr, own.owner(cidr)) for path, cidr in item.cidrs)
    return tuple(
        f"policy/{item.name}, {path}: {cidr} is of node {name} and its endpoints, {_NEVER}"
        for path, cidr, name in owners
        if name is not None
    )


def group_warnings(group: Document, own: OwnNetworks) -> Tuple[str, ...]:
    """What to say of a CIDR group: once, however many of its networks it is about and policies name it."""
    owned = [(cidr, own.owner(cidr)) for cidr in group.spec["cidrs"]]
    inner = [(cidr, name) for cidr, name in owned if name is not None]
    if not inner:
        return ()
    cidr, name = inner[0]
    what = f"{cidr} is of node {name} and its endpoints"
    if len(inner) > 1:
        what = f"{cidr} and {len(inner) - 1} more are of nodes and their endpoints (the first of {name})"
    return (f"{group.key}, cidrs: {what}, {_NEVER}",)


def _ends(network: Any) -> Tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)
