"""Whether a state fits into the maps that the objects have room for. Pure."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from bpfleet.errors import InvalidInput
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.model.state import NodeState

_REMEDY = {
    "addresses": "Declare fewer endpoints, or split the cluster.",
    "blocked": "Block fewer, larger networks.",
    "failsafe": "List fewer failsafe ports.",
    "endpoints": "Move endpoints to other nodes.",
    "services": "Declare fewer frontends.",
    "backends": "Declare fewer services, or let them share backends.",
    "policies": "Use fewer different identities on this node.",
    "policy_entries": "Name fewer peers and ports in the policies that select this identity, or larger networks.",
    "port_sets": "Use fewer different combinations of port ranges in the policies that select endpoints here.",
    "port_intervals": "Use fewer port ranges in the policies that select one identity.",
    "prefix_sets": "Use fewer different combinations of CIDRs in the policies that select endpoints here.",
    "prefix_classes": "Use fewer or larger CIDRs in the policies that select one identity.",
}
_INNER_LIMITS = {
    "policies": ENUMS["policy_limit"]["entries"],
    "prefix_sets": ENUMS["policy_limit"]["prefixes"],
    "port_sets": ENUMS["policy_limit"]["intervals"],
}
"""Inner maps are made as large as they need to be, up to this."""


def check_capacity(want: NodeState, have: Optional[NodeState] = None) -> None:
    """Raises InvalidInput naming the first map that would be too full, before anything is changed.

    have: what the node holds, to say what is used now.
    """
    used = dict(_sizes(have)) if have is not None else {}
    for name, size in sorted(_sizes(want)):
        limit = _limit(name)
        if limit is not None and size > limit:
            kind = _inner_of(name) or name
            now = f"; {used[name]} are used now" if name in used else ""
            raise InvalidInput(
                f"the map {name} has room for {limit} entries, {size} are needed{now}",
                field=name,
                remedy=_REMEDY.get(kind, "Declare less for this node."),
                details={"map": name, "limit": limit, "needed": size, "used": used.get(name, 0)},
            )


def _sizes(state: NodeState) -> Iterator[Tuple[str, int]]:
    """Entries by map; an inner map is called by its outer one's name and its key in that."""
    for name, table in state.tables.items():
        yield name, len(table.rows)
    for name, inners in state.nested.items():
        yield name, len(inners)
        for key, inner in inners.items():
            yield f"{name}[{key}]", len(inner.rows)


def _inner_of(name: str) -> Optional[str]:
    """Of "policies[70001]" the inner map's name "policy_entries"; None for a map of its own."""
    outer, bracket, _ = name.partition("[")
    inner: Optional[str] = MAPS[outer].get("inner") if bracket and outer in MAPS else None
    return inner


def _limit(name: str) -> Optional[int]:
    outer, bracket, _ = name.partition("[")
    if bracket:
        return _INNER_LIMITS.get(outer)
    return int(MAPS[name]["max_entries"]) if name in MAPS else None
