"""The policy map of an identity (a *subject*), from the policies that select it.

All endpoints of one identity share one map; bpf/include/bpfleet/policy.h says what is in it. An entry is found by peer
(an identity, an entity, a class of outside addresses, or any) and by port, interval of ports, protocol, or neither.
Where rules meet in one entry, deny comes before allow and then the lowest rule id.

Where audit policies select the subject, there are two sets of entries for a direction: what is enforced, as though
those policies were not there, and what would be, as though they were enforced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from bpfleet.compile.intervals import PortSet
from bpfleet.compile.limits import limits_of
from bpfleet.compile.policy import ANY, DIRECTIONS, Resolved, Rule
from bpfleet.compile.prefixes import PrefixSet
from bpfleet.compile.rules import Content, assign_ids
from bpfleet.errors import InvalidInput
from bpfleet.model import identity
from bpfleet.model.document import Document
from bpfleet.model.resources import DEFAULT_LIMITS
from bpfleet.model.state import Row, RuleName, Table

DIRECTION_NUMBERS = {"ingress": 0, "egress": 1}
RANGE, AUDIT = 2, 4
"""Bits beside the direction in a key: the port is an interval's number; the entry is of what would be enforced."""

ALLOW, DENY = 1, 2
ACTION_NUMBERS = {"allow": ALLOW, "deny": DENY}
HEADER_PEER = 0xFFFFFFFF
HEADER, HEADER_PREFIXES, HEADER_PORTS = 0, 1, 2
"""The protocol of a header entry says which of a direction's headers it is."""

# Which look-ups can hit in a direction: one bit for each shape of key. The program skips the others.
EXACT_PEER_SHIFT, ANY_PEER_SHIFT = 0, 4
WITH_PORT, WITH_RANGE, WITH_PROTOCOL, WITH_NEITHER = 1, 2, 4, 8

HAS_PREFIXES, HAS_PORTS, HAS_AUDIT = 1, 2, 4
"""Flags of a header: look for a class, look for an interval, judge a second time by what would be enforced."""

POLICY_KEY = ("peer", "direction", "protocol", "port")
POLICY_VALUE = ("rule_id", "action", "shapes", "denies", "flags")

DEFAULT_DENY = "default deny"
UNSELECTED = "unselected: deny"
LOCAL_HOST = "allow_local_host"

_LOCAL_HOST_RULE = Rule((LOCAL_HOST,), "ingress", LOCAL_HOST, "allow", (identity.HOST,), (), ((ANY, ANY),), ())

_COUNTED = 4
"""How many times what a map holds is counted, to say how much is wanted; what is farther beyond is not even built."""

Key = Tuple[int, int, int, bool]  # peer, protocol, port, whether the port is an interval's number
Rank = Tuple[int, int]  # 0 for deny or 1 for allow, rule id


@dataclass(frozen=True)
class Settings:
    """What the cluster says for all endpoints."""

    deny_unselected: bool = False
    audit: bool = False
    allow_local_host: bool = False
    entries: int = DEFAULT_LIMITS["policy_entries"]
    """Most entries of one subject."""

    @classmethod
    def of(cls, cluster: Optional[Document]) -> Settings:
        """The settings in a cluster's document."""
        spec = cluster.spec if cluster is not None else {}
        return cls(
            deny_unselected=spec.get("unselected") == "deny",
            audit=spec.get("mode") == "audit",
            allow_local_host=spec.get("allow_local_host", False),
            entries=limits_of(cluster)["policy_entries"],
        )


@dataclass(frozen=True, eq=False)
class Side:
    """One direction of a subject, enforced or as it would be: its rules, and what it does by default.

    closed: what the id of its default deny is derived from; None if it is open.
    """

    direction: str
    audit: bool
    rules: Tuple[Rule, ...]
    closed: Optional[Content]
    prefixes: Optional[PrefixSet]
    ports: Optional[PortSet]

    @property
    def sets(self) -> Tuple[Union[PrefixSet, PortSet], ...]:
        """The prefix set and the port set, as far as it has them."""
        return tuple(one for one in (self.prefixes, self.ports) if one is not None)

    @property
    def code(self) -> int:
        """What its keys have for a direction."""
        return DIRECTION_NUMBERS[self.direction] | (AUDIT if self.audit else 0)


@dataclass(frozen=True, eq=False)
class Subject:
    """The policy map of an identity. Equal only to itself, so that it can be a cheap key for what is built from it."""

    table: Table


OPEN = Subject(Table(POLICY_KEY, POLICY_VALUE))
"""An identity about which no policy says anything: no map at all; both directions are open."""


def sides_of(number: int, policies: Sequence[Resolved], settings: Settings) -> Tuple[Side, ...]:
    """What the policies that select a subject, in order of name, mean for each direction."""
    if number == identity.HOST:
        settings = Settings(audit=settings.audit, entries=settings.entries)
    sides: List[Side] = []
    for direction in DIRECTIONS:
        said = [policy for policy in policies if direction in policy.closes or policy.rules_of(direction)]
        enforced = [] if settings.audit else [policy for policy in said if not policy.audit]
        deny = settings.deny_unselected
        if enforced or (deny and not settings.audit):
            sides.append(_side(direction, False, enforced, settings))
        if len(enforced) < len(said) or (deny and settings.audit):
            sides.append(_side(direction, True, said, settings))
    return tuple(sides)


def _side(direction: str, audit: bool, policies: Sequence[Resolved], settings: Settings) -> Side:
    closing = [policy.name for policy in policies if direction in policy.closes]
    closed: Optional[Content] = None
    if closing:
        closed = (DEFAULT_DENY, direction, *closing)
    elif settings.deny_unselected:
        closed = (UNSELECTED, direction)
    rules = [rule for policy in policies for rule in policy.rules_of(direction)]
    if closed and settings.allow_local_host and direction == "ingress":
        rules.append(_LOCAL_HOST_RULE)
    networks = [network for rule in rules for network in rule.networks]
    ranges = [one for rule in rules for one in rule.ranges]
    return Side(
        direction=direction,
        audit=audit,
        rules=tuple(rules),
        closed=closed,
        prefixes=PrefixSet(networks) if networks else None,
        ports=PortSet(ranges) if ranges else None,
    )


def number_sets(sides: Sequence[Side]) -> Dict[Content, int]:
    """The ids of all prefix sets and port sets."""
    return assign_ids(one.content for side in sides for one in side.sets)


def number_rules(policies: Sequence[Resolved], sides: Sequence[Side]) -> Tuple[Dict[Content, int], Dict[int, RuleName]]:
    """The id of every rule and of every default deny, and what each id stands for."""
    names: Dict[Content, RuleName] = {}
    for policy in policies:
        for rule in policy.rules:
            names.setdefault(
                rule.content,
                RuleName(policy.name, rule.direction, rule.path, rule.action, policy.description, policy.labels),
            )
    labels = {policy.name: policy.labels for policy in policies}
    for side in sides:
        if side.closed is not None and side.closed not in names:
            what, direction, *closing = side.closed
            held = _labels_of_all(labels[name] for name in closing)
            names[side.closed] = RuleName(", ".join(closing), direction, what, "deny", labels=held)
        if _LOCAL_HOST_RULE in side.rules[-1:]:
            names[_LOCAL_HOST_RULE.content] = RuleName("", "ingress", LOCAL_HOST, "allow")
    ids = assign_ids(names)
    return ids, {ids[content]: name for content, name in names.items()}


def _labels_of_all(found: Iterable[Mapping[str, str]]) -> Dict[str, str]:
    """The labels of several policies, whose values of one key are listed as their names are: no value holds a comma."""
    values: Dict[str, Set[str]] = {}
    for labels in found:
        for key, value in labels.items():
            values.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(held)) for key, held in sorted(values.items())}


def contents_of(sides: Sequence[Side]) -> Iterator[Content]:
    """All contents whose ids a subject's table holds."""
    for side in sides:
        if side.closed is not None:
            yield side.closed
        for rule in side.rules:
            yield rule.content


def subject_table(
    number: int,
    sides: Sequence[Side],
    ids: Mapping[Content, int],
    set_ids: Mapping[Content, int],
    limit: int = DEFAULT_LIMITS["policy_entries"],
    name: str = "",
) -> Subject:
    """The policy map of one identity, by `name` for people, which may be larger than the limit (capacity.py refuses it
    then). Raises InvalidInput if it would be larger by far."""
    rows: Dict[Row, Row] = {}
    audited = {side.direction for side in sides if side.audit}
    for side in sides:
        entries = _entries(name or str(number), side, ids, limit)
        shapes = denies = 0
        for (peer, protocol, port, ranged), (rank, rule_id) in entries.items():
            code = side.code | (RANGE if ranged else 0)
            rows[(peer, code, protocol, port)] = (rule_id, DENY if rank == 0 else ALLOW, 0, 0, 0)
            level = WITH_RANGE if ranged else WITH_PORT if port else WITH_PROTOCOL if protocol else WITH_NEITHER
            shape = level << (ANY_PEER_SHIFT if peer == ANY else EXACT_PEER_SHIFT)
            shapes |= shape
            denies |= shape if rank == 0 else 0
        flags = HAS_AUDIT if not side.audit and side.direction in audited else 0
        for flag, kind, one in (
            (HAS_PREFIXES, HEADER_PREFIXES, side.prefixes),
            (HAS_PORTS, HEADER_PORTS, side.ports),
        ):
            if one is not None:
                flags |= flag
                rows[(HEADER_PEER, side.code, kind, 0)] = (set_ids[one.content], 0, 0, 0, 0)
        default = (ids[side.closed], DENY) if side.closed is not None else (0, ALLOW)
        rows[(HEADER_PEER, side.code, HEADER, 0)] = (*default, shapes, denies, flags)
    for direction in audited - {side.direction for side in sides if not side.audit}:
        rows[(HEADER_PEER, DIRECTION_NUMBERS[direction], HEADER, 0)] = (0, ALLOW, 0, 0, HAS_AUDIT)
    if not rows:
        return OPEN
    return Subject(Table(POLICY_KEY, POLICY_VALUE, rows))


def _entries(name: str, side: Side, ids: Mapping[Content, int], limit: int) -> Dict[Key, Rank]:
    """The least of all ranks wins an entry."""
    entries: Dict[Key, Rank] = {}
    for rule in side.rules:
        candidate = (0 if rule.action == "deny" else 1, ids[rule.content])
        peers = _peers(side, rule)
        for protocol, port, ranged in _ports(side, rule):
            for peer in peers:
                key = (peer, protocol, port, ranged)
                known = entries.get(key)
                if known is None or candidate < known:
                    entries[key] = candidate
            if len(entries) > _COUNTED * limit:
                raise InvalidInput(
                    f"the map policy_entries of identity {name} has room for {limit} entries, more than "
                    f"{_COUNTED * limit} are needed for {side.direction} alone, counted up to policy "
                    f"{rule.content[0]}, {rule.path}",
                    resource=f"policy/{rule.content[0]}",
                    field=rule.path,
                    remedy="Name fewer peers and ports in one rule, or larger networks; or raise "
                    "limits.policy_entries of the cluster.",
                    details={"map": "policy_entries", "limit": limit, "needed": len(entries)},
                )
    return entries


def _peers(side: Side, rule: Rule) -> Sequence[int]:
    if side.prefixes is None or rule.peers == (ANY,):
        return rule.peers
    if identity.WORLD in rule.peers:
        return (*rule.peers, *side.prefixes.classes)
    classes = {number for network in rule.networks for number in side.prefixes.covered(network)}
    return (*rule.peers, *sorted(classes))


def _ports(side: Side, rule: Rule) -> Iterator[Tuple[int, int, bool]]:
    """(protocol, port, whether that is an interval's number) of each entry that a rule makes for one peer."""
    for protocol, port in rule.ports:
        yield protocol, port, False
    if side.ports is not None:
        for protocol, interval in side.ports.covered(rule.ranges):
            yield protocol, interval, True
