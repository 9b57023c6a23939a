"""Whether a state fits into the maps, before anything is changed. Pure.

New entries are put before old ones go (plan.py), so a map must hold both for a moment: its peak.

What counts is the room that a map will have: a change makes those whose limit was changed anew (resize.py), before it
needs the room if they grow, after it if they shrink. Other maps than `connections` that programs fill keep the size
they were made with, whatever the cluster declares since. None overflows: some forget the idlest entry.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Collection, Dict, Iterator, KeysView, List, Mapping, Optional, Tuple

from bpfleet.errors import InvalidInput
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.state import Compiled, NodeState, RuleName, Table

LIMITS: Dict[str, str] = {
    "addresses": "addresses",
    "backends": "frontends",
    "blocked": "blocked_cidrs",
    "connections": "connections",
    "endpoints": "endpoints",
    "flow_slots": "flows",
    "flows": "flows",
    "policies": "endpoints",
    "policies_staged": "endpoints",
    "policy_entries": "policy_entries",
    "port_sets": "endpoints",
    "prefix_sets": "endpoints",
    "prefix_classes": "cidrs",
    "services": "frontends",
    "translations": "translations",
}
"""By map the field of the cluster's limits that makes it larger."""

CONNECTIONS = "connections"
"""Programs fill it, and it is made anew all the same (resize.py)."""

KEPT = frozenset({"translations", "flows", "flow_slots"})
"""Other maps that programs fill. One that is there keeps its size until the node restarts: programs are replaced hook
after hook, and what is noted in one map meanwhile would not be found in the other."""

_REMEDY = {
    "addresses": "Declare fewer endpoints, split the cluster",
    "blocked": "Block fewer, larger networks",
    "endpoints": "Move endpoints to other nodes",
    "services": "Declare fewer frontends",
    "backends": "Declare fewer services, let them share backends",
    "policies": "Use fewer different identities on this node",
    "policy_entries": "Name fewer peers and ports in the policies that select this identity, or larger networks",
    "port_sets": "Use fewer different combinations of port ranges in the policies that select endpoints here",
    "prefix_sets": "Use fewer different combinations of CIDRs in the policies that select endpoints here",
    "prefix_classes": "Use fewer or larger CIDRs in the policies that select one identity",
    "failsafe": "List fewer failsafe ports",
}

_GROWN_BY = {
    "addresses": ("endpoint", "node", "cluster"),
    "endpoints": ("endpoint",),
    "policies": ("endpoint", "policy"),
    "policy_entries": ("policy", "cidr_group", "identity", "endpoint"),
    "port_sets": ("policy", "endpoint"),
    "prefix_sets": ("policy", "cidr_group", "endpoint"),
    "prefix_classes": ("cidr_group", "policy", "endpoint"),
    "services": ("service",),
    "backends": ("service",),
    "blocked": ("cluster",),
    "failsafe": ("cluster",),
}
"""By map the kinds of documents that put entries into it, the likeliest first. An endpoint brings its identity's
policies to the node."""

_NOTHING: KeysView[Any] = {}.keys()
_FIRST_CLASS = 1 << 24  # enum policy_peer


@dataclass(frozen=True)
class Usage:
    """One map: entries in it now, entries that are wanted, the most while the change is made, and room for them. Of
    inner maps, which are made anew, the fullest one counts; `key` is then its key in the outer map."""

    map: str
    used: int
    wanted: int
    peak: int
    limit: int
    key: Optional[int] = None

    def to_json(self) -> Dict[str, object]:
        """Plain data; `key` only where there is one."""
        return {name: value for name, value in vars(self).items() if value is not None}


def usage(want: NodeState, have: Optional[NodeState] = None) -> List[Usage]:
    """Every map that the state fills, in order of name; of inner maps those that may not be as large as they like."""
    have = have if have is not None else NodeState()
    used = {name: keys for name, _, keys in _contents(have)}
    return [
        Usage(name, len(there), len(keys), len(keys | there if key is None else keys), _limit(name, want, have), key)
        for name, key, keys in sorted(_contents(want), key=lambda item: item[0])
        for there in (used.get(name, _NOTHING),)
        if key is None or name in want.sizes
    ]


def overfull(
    want: NodeState, have: Optional[NodeState] = None, identities: Mapping[int, str] = MappingProxyType({})
) -> List[InvalidInput]:
    """An error for each map that would not hold what is wanted. Without `have` nothing is said of what is used now.

    identities: names by number, for people.
    """
    return [
        _error(one, want, have, identities)
        for one in usage(want, have)
        if one.wanted > one.limit or one.peak > _room(one, have)
    ]


def overfull_once_arrived(
    arrived: NodeState, have: NodeState, identities: Mapping[int, str] = MappingProxyType({})
) -> List[InvalidInput]:
    """As overfull, of the state that is wanted once every device is there that endpoints wait for: nobody is asked then
    whether it fits."""
    full = [one for one in usage(arrived, have) if one.wanted > one.limit]
    return [_error(one, arrived, have, identities, " once what endpoints wait for is there") for one in full]


def resized(want: NodeState, have: NodeState) -> Dict[str, int]:
    """By map that is there and is to have another size, the entries it is to have room for."""
    return {
        name: size
        for name, size in sorted(want.sizes.items())
        if name not in KEPT and have.sizes.get(name, size) != size
    }


def needs_room(want: NodeState, have: NodeState) -> bool:
    """Whether a map that is there is too small for the change."""
    return any(one.peak > have.sizes.get(one.map, one.peak) for one in usage(want, have) if one.key is None)


def check_capacity(want: NodeState, have: Optional[NodeState] = None) -> None:
    """Raises InvalidInput naming the first map that would not hold the state itself.

    Whoever puts back what was there is asked no more than that: something must be in force.
    """
    for one in usage(want, have):
        if one.wanted > one.limit:
            raise _error(one, want, have)


def kept_sizes(want: NodeState, have: NodeState, cluster: Optional[str]) -> List[str]:
    """In words, the maps that keep another size than `cluster` declares, and what changes that."""
    return [
        f"cluster/{cluster}{', limits.' + LIMITS[name] if name in LIMITS else ''}: map {name} has room for "
        f"{have.sizes[name]} entries, {size} are declared: it keeps its size, and what it holds, until the node "
        "restarts. Restart the node to have a map of the declared size"
        for name, size in sorted(want.sizes.items())
        if name in KEPT and have.sizes.get(name, size) != size
    ]


def blame(error: InvalidInput, compiled: Compiled, changed: Collection[str]) -> InvalidInput:
    """The same error at the document that filled the map, or lowered its limit, of those that are changed; if none of
    them did, at the one that fills most of it."""
    name, key = str(error.details["map"]), error.details.get("key")
    counted = _by_policy(name, key, compiled)
    ranked = [f"policy/{policy}" for policy, _ in counted.most_common()]
    kinds = _GROWN_BY.get(name, ())
    others = sorted(
        (document for document in changed if document.partition("/")[0] in kinds),
        key=lambda document: (kinds.index(document.partition("/")[0]), document),
    )
    filling = [document for document in ranked if document in changed]
    culprits = filling or others
    lowered = [document for document in changed if document.startswith("cluster/") and name in LIMITS]
    if lowered and ("was" in error.details or not culprits):
        return InvalidInput(
            error.what, resource=lowered[0], field=f"limits.{LIMITS[name]}", remedy=error.remedy, details=error.details
        )
    fillers = filling or ranked or others
    if not fillers:
        return error
    more = "" if len(fillers) == 1 else f" and {len(fillers) - 1} more"
    entries = f" ({counted[fillers[0].partition('/')[2]]} entries)" if fillers[0] in ranked else ""
    candidates = culprits or ranked
    return InvalidInput(
        f"{error.what}; filled by {fillers[0]}{entries}{more}",
        resource=candidates[0],
        field=error.field,
        remedy=error.remedy,
        details={**error.details, "documents": candidates},
    )


def _error(
    one: Usage,
    want: NodeState,
    have: Optional[NodeState],
    identities: Mapping[int, str] = MappingProxyType({}),
    when: str = "",
) -> InvalidInput:
    of = "" if one.key is None else f" of {_owner(one.map, one.key, identities)}"
    limit = LIMITS.get(one.map)
    remedy = _REMEDY.get(one.map, "Declare less for this node")
    if limit is not None:
        remedy += f"; or raise limits.{limit} of the cluster"
    was = have.sizes.get(one.map, one.limit) if have is not None else one.limit
    room = one.limit if one.wanted > one.limit else max(one.limit, was)
    has = "has" if room == was else "is to have"
    lowered = {"was": was} if one.wanted > one.limit and was > one.limit else {}
    why = f"{one.wanted} are needed{when}" + (f"; {one.used} are used now" if have is not None else "")
    if one.wanted <= one.limit:
        why = f"{one.peak} are needed while {one.wanted} take the place of {one.used}"
        remedy = f"Remove in one change and add in the next; or: {remedy[0].lower()}{remedy[1:]}"
    return InvalidInput(
        f"the map {one.map}{of} {has} room for {room} entries, {why}",
        field=one.map,
        remedy=remedy + ".",
        details={"needed": one.wanted, **lowered, **one.to_json()},
    )


def _owner(name: str, key: int, identities: Mapping[int, str]) -> str:
    return f"identity {identities.get(key, key)}" if name == "policy_entries" else f"set {key}"


def _contents(state: NodeState) -> Iterator[Tuple[str, Optional[int], KeysView[Any]]]:
    """(map, key, keys of its entries); of the inner maps of one outer map the largest, with its key."""
    for name, table in state.tables.items():
        if name in MAPS and MAPS[name]["type"] != "array":
            yield name, None, table.rows.keys()
    for name, inners in state.nested.items():
        yield name, None, inners.keys()
        if inners and MAPS[MAPS[name]["inner"]]["type"] != "array":
            key = max(sorted(inners), key=lambda one: len(inners[one].rows))
            yield MAPS[name]["inner"], key, inners[key].rows.keys()


def _limit(name: str, want: NodeState, have: NodeState) -> int:
    declared = want.sizes.get(name, int(MAPS[name]["max_entries"]))
    return have.sizes.get(name, declared) if name in KEPT else declared


def _room(one: Usage, have: Optional[NodeState]) -> int:
    """What a map has room for while the change is made."""
    return max(one.limit, have.sizes.get(one.map, 0)) if have is not None else one.limit


def _by_policy(name: str, key: object, compiled: Compiled) -> Counter[str]:
    """How many of an inner map's entries each policy makes."""
    policies = compiled.state.nested.get("policies", {})
    counted: Counter[str] = Counter()
    if name == "policy_entries":
        counted.update(_policies_of(policies[int(str(key))], compiled.rules))
    elif name == "prefix_classes":
        for table in policies.values():
            if any(row[0] == 0xFFFFFFFF and row[2] == 1 and value[0] == key for row, value in table.rows.items()):
                counted.update(_policies_of(table, compiled.rules, _FIRST_CLASS))
    return counted


def _policies_of(table: Table, rules: Mapping[int, RuleName], least_peer: int = 0) -> Iterator[str]:
    for row, value in table.rows.items():
        if least_peer <= row[0] < 0xFFFFFFFF and value[0] in rules and rules[value[0]].policy:
            yield rules[value[0]].policy
