"""Whether a state fits into the maps that the objects have room for. Pure."""

from __future__ import annotations

from bpfleet.errors import InvalidInput
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.state import NodeState

_REMEDY = {
    "addresses": "Declare fewer endpoints, or split the cluster.",
    "blocked": "Block fewer, larger networks.",
    "failsafe": "List fewer failsafe ports.",
    "endpoints": "Move endpoints to other nodes.",
    "policies": "Use fewer different identities on this node.",
}


def check_capacity(state: NodeState) -> None:
    """Raises InvalidInput naming the first map that would be too full, before anything is changed."""
    sizes = {**{name: len(table.rows) for name, table in state.tables.items()}}
    sizes.update({name: len(inners) for name, inners in state.nested.items()})
    for name, size in sorted(sizes.items()):
        limit = int(MAPS[name]["max_entries"]) if name in MAPS else size
        if size > limit:
            raise InvalidInput(
                f"the map {name} has room for {limit} entries, {size} are needed",
                field=name,
                remedy=_REMEDY.get(name, "Declare less for this node."),
                details={"map": name, "limit": limit, "needed": size},
            )
