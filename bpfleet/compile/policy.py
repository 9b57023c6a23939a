"""From policies to the policy maps of the identities that live on the node.

All endpoints of one identity (a *subject*) share one map. A map holds an entry for each (peer, direction, protocol,
port) that some rule names, 0 standing for "any", and for each closed direction a header (see
bpf/include/bpfleet/policy.h). Where rules meet in one entry, deny comes before allow and then the lowest rule id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.compile.rules import Content, assign_ids, hash32
from bpfleet.compile.selector import LabelIndex
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet, canonical_json
from bpfleet.model.resources import PORT_PROTOCOLS, PROTOCOL_NUMBERS
from bpfleet.model.state import Row, RuleName, Table

DIRECTIONS = ("ingress", "egress")
DIRECTION_NUMBERS = {"ingress": 0, "egress": 1}
ALLOW, DENY = 1, 2
ACTION_NUMBERS = {"allow": ALLOW, "deny": DENY}
ANY = 0
HEADER_PEER = 0xFFFFFFFF

# Which look-ups can hit in a direction: one bit for each shape of key. The program skips the others.
EXACT_PEER_SHIFT, ANY_PEER_SHIFT = 0, 3
WITH_PORT, WITH_PROTOCOL, WITH_NEITHER = 1, 2, 4

DEFAULT_DENY = "default deny"

POLICY_KEY = ("peer", "direction", "protocol", "port")
POLICY_VALUE = ("rule_id", "action", "classes")

PortKey = Tuple[int, int]  # protocol number, port; 0 is any


@dataclass(frozen=True)
class Rule:
    """One rule of a policy, resolved: which entries it makes. `content` is what its id is derived from."""

    content: Content
    direction: str
    path: str
    action: str
    peers: Tuple[int, ...]
    ports: Tuple[PortKey, ...]


@dataclass(frozen=True, eq=False)
class Nodes:
    """The cluster's nodes by their labels, as numbers of no meaning; `own` is that of the node compiled for."""

    index: LabelIndex
    own: int

    @staticmethod
    def of(documents: DocumentSet, own: str) -> Nodes:
        """The members that have documents."""
        known = documents.of_kind("node")
        members = {name for one in documents.of_kind("cluster").values() for name in one.spec["members"]}
        names = sorted(members.intersection(known))
        index = LabelIndex((number, known[name].spec.get("labels", {})) for number, name in enumerate(names))
        return Nodes(index, names.index(own) if own in names else -1)


@dataclass(frozen=True, eq=False)
class Resolved:
    """A policy against the identities and nodes there are: its subjects (HOST for this node itself), its rules, the
    directions it closes, and warnings.

    Equal only to itself, so that it can be a cheap key for what is built from it.
    """

    name: str
    description: str
    subjects: FrozenSet[int]
    closes: Tuple[str, ...]
    rules: Tuple[Rule, ...]
    warnings: Tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Subject:
    """The policy map of an identity, and its revision: a content-derived number that changes when the map does.

    Equal only to itself, as above.
    """

    table: Table
    revision: int


OPEN = Subject(Table(POLICY_KEY, POLICY_VALUE), 1)
"""An identity that no policy selects: no map at all; both directions are open."""


def resolve(document: Document, index: LabelIndex, nodes: Nodes) -> Resolved:
    """A policy's subjects and rules as numbers."""
    spec = document.spec
    field, known, noun = ("selector", index, "identity")
    if "node_selector" in spec:
        field, known, noun = ("node_selector", nodes.index, "node")
    subjects = known.matching(spec[field])
    warnings: List[str] = []
    if not subjects:
        warnings.append(_no_match(document, field, spec[field], known, noun))
    if known is nodes.index:
        subjects = frozenset([identity.HOST] if nodes.own in subjects else [])
    rules: List[Rule] = []
    closes = tuple(direction for direction in DIRECTIONS if direction in spec)
    for direction in closes:
        for position, rule in enumerate(spec[direction]):
            path = f"{direction}[{position}]"
            peers, peer_warnings = _peers(document, path, rule.get("peers"), index)
            warnings.extend(peer_warnings)
            rules.append(
                Rule(
                    content=(document.name, direction, canonical_json(rule)),
                    direction=direction,
                    path=path,
                    action=rule["action"],
                    peers=peers,
                    ports=_ports(rule.get("ports")),
                )
            )
    return Resolved(document.name, spec.get("description", ""), subjects, closes, tuple(rules), tuple(warnings))


def _no_match(
    document: Document, field: str, selector: Mapping[str, str], index: LabelIndex, noun: str = "identity"
) -> str:
    wanted = ", ".join(f"{key}={value}" for key, value in sorted(selector.items())) or "{}"
    near = index.nearest(selector)
    hint = f"; the nearest label is {near}" if near else ""
    return f"{document.key}, {field}: no {noun} has {wanted}{hint}"


def _peers(
    document: Document, path: str, peers: Optional[Sequence[Mapping[str, Any]]], index: LabelIndex
) -> Tuple[Tuple[int, ...], List[str]]:
    if peers is None:
        return (ANY,), []
    numbers: Set[int] = set()
    warnings: List[str] = []
    for position, peer in enumerate(peers):
        if "labels" in peer:
            matching = index.matching(peer["labels"])
            if not matching:
                warnings.append(_no_match(document, f"{path}.peers[{position}].labels", peer["labels"], index))
            numbers.update(matching)
        else:
            numbers.update(_entity(peer["entity"], index))
    return ((ANY,) if ANY in numbers else tuple(sorted(numbers))), warnings


def _entity(entity: str, index: LabelIndex) -> FrozenSet[int]:
    return {
        "world": frozenset([identity.WORLD]),
        "host": frozenset([identity.HOST]),
        "remote-node": frozenset([identity.REMOTE_NODE]),
        "cluster": index.everything | {identity.HOST, identity.REMOTE_NODE},
        "all": frozenset([ANY]),
        "none": frozenset(),
    }[entity]


def _ports(ports: Optional[Sequence[Mapping[str, Any]]]) -> Tuple[PortKey, ...]:
    if ports is None:
        return ((ANY, ANY),)
    keys = set()
    for entry in ports:
        protocol, port = entry["protocol"], entry.get("port", ANY)
        if protocol != "any":
            keys.add((PROTOCOL_NUMBERS[protocol], port))
        elif port == ANY:
            keys.add((ANY, ANY))
        else:
            keys.update((PROTOCOL_NUMBERS[name], port) for name in PORT_PROTOCOLS)
    return tuple(sorted(keys))


def default_deny(direction: str, names: Sequence[str]) -> Content:
    """What the id of a default deny is derived from: the direction and the policies that close it."""
    return (DEFAULT_DENY, direction, *names)


def subject_table(number: int, policies: Sequence[Resolved], ids: Mapping[Content, int]) -> Subject:
    """The policy map of one identity from the policies that select it, in order of name."""
    rows: Dict[Row, Row] = {}
    for direction in DIRECTIONS:
        closing = [policy for policy in policies if direction in policy.closes]
        if not closing:
            continue
        entries = _entries(direction, closing, ids)
        code = DIRECTION_NUMBERS[direction]
        classes = 0
        for (peer, protocol, port), (rank, rule_id) in entries.items():
            action = DENY if rank == 0 else ALLOW
            rows[(peer, code, protocol, port)] = (rule_id, action, 0)
            shape = WITH_PORT if port else WITH_PROTOCOL if protocol else WITH_NEITHER
            classes |= shape << (ANY_PEER_SHIFT if peer == ANY else EXACT_PEER_SHIFT)
        header = ids[default_deny(direction, [policy.name for policy in closing])]
        rows[(HEADER_PEER, code, 0, 0)] = (header, DENY, classes)
    if not rows:
        return OPEN
    content = repr((number, sorted(rows.items())))
    return Subject(Table(POLICY_KEY, POLICY_VALUE, rows), hash32((content,)) or 1)


def _entries(
    direction: str, policies: Sequence[Resolved], ids: Mapping[Content, int]
) -> Dict[Tuple[int, int, int], Tuple[int, int]]:
    """(peer, protocol, port) -> (rank, rule id); rank 0 is deny, 1 allow: the least of both wins an entry."""
    entries: Dict[Tuple[int, int, int], Tuple[int, int]] = {}
    for policy in policies:
        for rule in policy.rules:
            if rule.direction != direction:
                continue
            candidate = (0 if rule.action == "deny" else 1, ids[rule.content])
            for protocol, port in rule.ports:
                for peer in rule.peers:
                    key = (peer, protocol, port)
                    known = entries.get(key)
                    if known is None or candidate < known:
                        entries[key] = candidate
    return entries


def judge(rows: Mapping[Row, Row], peer: int, direction: str, protocol: int, port: int) -> Tuple[str, int]:
    """What a policy map says of a new connection, as the programs do: ("open" | "allow" | "deny" | "default deny",
    rule id, 0 if open). Port 0 where the protocol has none."""
    code = DIRECTION_NUMBERS[direction]
    header = rows.get((HEADER_PEER, code, 0, 0))
    if header is None:
        return "open", 0
    allowing: Optional[int] = None
    for who in (peer, ANY):
        for key in dict.fromkeys(((protocol, port), (protocol, ANY), (ANY, ANY))):
            entry = rows.get((who, code, *key))
            if entry is None:
                continue
            if entry[1] == DENY:
                return "deny", entry[0]
            if allowing is None:
                allowing = entry[0]
    return ("allow", allowing) if allowing is not None else (DEFAULT_DENY, header[0])


def number_rules(
    policies: Sequence[Resolved], by_subject: Mapping[int, Sequence[Resolved]]
) -> Tuple[Dict[Content, int], Dict[int, RuleName]]:
    """The id of every rule and of every default deny, and what each id stands for."""
    names: Dict[Content, RuleName] = {}
    for policy in policies:
        for rule in policy.rules:
            names.setdefault(
                rule.content, RuleName(policy.name, rule.direction, rule.path, rule.action, policy.description)
            )
    for selected in by_subject.values():
        for direction in DIRECTIONS:
            closing = [policy.name for policy in selected if direction in policy.closes]
            if closing:
                content = default_deny(direction, closing)
                names.setdefault(content, RuleName(", ".join(closing), direction, DEFAULT_DENY, "deny"))
    ids = assign_ids(names)
    return ids, {ids[content]: name for content, name in names.items()}
