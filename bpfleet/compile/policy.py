"""From policy documents to rules in numbers: whom a policy selects, which peers and ports its rules mean.

What is made of them for the kernel is in entries.py.
"""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from bpfleet.compile.intervals import PortRange
from bpfleet.compile.prefixes import Network, prefix_of, prefix_of_network
from bpfleet.compile.rules import Content
from bpfleet.compile.selector import Expressions, LabelIndex, selector_text
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet, canonical_json
from bpfleet.model.meaning import PORT_PROTOCOLS
from bpfleet.model.policy_checks import icmp_of_no_family, nobodys, version_of
from bpfleet.model.resources import PROTOCOL_NUMBERS

DIRECTIONS = ("ingress", "egress")
ANY = 0

PortKey = Tuple[int, int]  # protocol number, port; 0 is any
_ICMP = ("icmp", "icmpv6")
_ECHOES = {"icmp": (8, 0), "icmpv6": (128, 129)}
"""Types of an echo and its reply: RFC 792, RFC 4443 4."""


@dataclass(frozen=True)
class Rule:
    """One rule of a policy, resolved: which entries it makes. `content` is what its id is derived from.

    peers: numbers of identities and entities; ANY alone where every peer is meant. networks: CIDR peers.
    ports: single ports, whole protocols, or everything. ranges: ranges of ports, and ICMP types.
    """

    content: Content
    direction: str
    path: str
    action: str
    peers: Tuple[int, ...]
    networks: Tuple[Network, ...]
    ports: Tuple[PortKey, ...]
    ranges: Tuple[PortRange, ...]


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


@dataclass(frozen=True)
class Unmatched:
    """A warning of a selector that nobody has the labels of: its text, and those labels."""

    text: str
    labels: Tuple[Tuple[str, str], ...]
    of_nodes: bool


@dataclass(frozen=True, eq=False)
class Group:
    """A CIDR group as peers, and which versions of IP it has. Looked at once, however many rules name it. Equal only to
    itself.

    nobodys: by direction, and whether nodes are selected, why nobody is meant by it as a peer, if that is so.
    """

    networks: Tuple[Network, ...]
    versions: FrozenSet[int]
    nobodys: Mapping[Tuple[str, bool], str]

    @staticmethod
    def of(document: Document) -> Group:
        """What a group's document says."""
        parsed = [ipaddress.ip_network(cidr) for cidr in document.spec["cidrs"]]
        sides = [(direction, of_nodes) for direction in DIRECTIONS for of_nodes in (False, True)]
        of_nobody = [side for side in sides if parsed and all(nobodys(network, *side) for network in parsed)]
        return Group(
            networks=tuple((prefix_of_network(network), ()) for network in parsed),
            versions=frozenset(network.version for network in parsed),
            nobodys={side: nobodys(parsed[0], *side) for side in of_nobody},
        )


@dataclass(frozen=True, eq=False)
class Resolved:
    """A policy against the identities, nodes and CIDR groups there are: its subjects (HOST for this node itself), its
    rules, the directions it closes.

    waiting: what it names that is not there yet, and what that means meanwhile. Equal only to itself, so that it can be
    a cheap key for what is built from it.
    """

    name: str
    description: str
    labels: Mapping[str, str]
    audit: bool
    subjects: FrozenSet[int]
    closes: Tuple[str, ...]
    rules: Tuple[Rule, ...]
    waiting: Tuple[str, ...]
    warnings: Tuple[Union[str, Unmatched], ...]
    cidrs: Tuple[Tuple[str, str, Tuple[str, ...]], ...] = ()
    """Its CIDR peers: path, network, and what is excepted from it."""

    def rules_of(self, direction: str) -> List[Rule]:
        """Its rules for one direction."""
        return [rule for rule in self.rules if rule.direction == direction]


def groups_named(document: Document) -> Tuple[str, ...]:
    """Names of the CIDR groups that a policy's peers name."""
    names = {
        peer["cidr_group"]
        for direction in DIRECTIONS
        for rule in document.spec.get(direction, ())
        for peer in rule.get("peers", ())
        if "cidr_group" in peer
    }
    return tuple(sorted(names))


def resolve(document: Document, index: LabelIndex, nodes: Nodes, groups: Mapping[str, Group]) -> Resolved:
    """A policy's subjects and rules as numbers; `groups` are the CIDR groups by name."""
    spec = document.spec
    reader = _Reader(document, index, groups)
    expressions = spec.get("expressions", ())
    if "node_selector" in spec:
        selected = reader.selected("node_selector", spec["node_selector"], expressions, nodes.index, "node")
        subjects = frozenset([identity.HOST] if nodes.own in selected else [])
    else:
        subjects = reader.selected("selector", spec["selector"], expressions, index)
    rules = [
        reader.rule(direction, f"{direction}[{position}]", rule)
        for direction in DIRECTIONS
        for position, rule in enumerate(spec.get(direction, ()))
    ]
    switch = spec.get("default_deny", {})
    return Resolved(
        name=document.name,
        description=spec.get("description", ""),
        labels=spec.get("labels", {}),
        audit=spec.get("mode") == "audit",
        subjects=subjects,
        closes=tuple(direction for direction in DIRECTIONS if switch.get(direction, direction in spec)),
        rules=tuple(rules),
        waiting=tuple(reader.waiting),
        warnings=tuple(reader.warnings),
        cidrs=tuple(_cidrs(document)),
    )


def _cidrs(document: Document) -> Iterator[Tuple[str, str, Tuple[str, ...]]]:
    for direction in DIRECTIONS:
        for number, rule in enumerate(document.spec.get(direction, ())):
            for index, peer in enumerate(rule.get("peers") or ()):
                if "cidr" in peer:
                    where = f"{direction}[{number}].peers[{index}].cidr"
                    yield where, peer["cidr"], tuple(peer.get("except", ()))


class _Reader:
    """Reads one policy, collecting what waits and what people should know."""

    def __init__(self, document: Document, index: LabelIndex, groups: Mapping[str, Group]) -> None:
        self._document = document
        self._index = index
        self._groups = groups
        self.waiting: List[str] = []
        self.warnings: List[Union[str, Unmatched]] = []

    def selected(
        self, path: str, labels: Mapping[str, str], expressions: Expressions, index: LabelIndex, noun: str = "identity"
    ) -> FrozenSet[int]:
        """Numbers of the identities or nodes that a selector means; a warning if there are none."""
        found = index.matching(labels, expressions)
        if not found:
            text = f"{self._document.key}, {path}: no {noun} has {selector_text(labels, expressions)}"
            self.warnings.append(Unmatched(text, tuple(sorted(labels.items())), noun == "node"))
        return found

    def rule(self, direction: str, path: str, rule: Mapping[str, Any]) -> Rule:
        """One rule."""
        self._warn_of_families(path, rule)
        self._warn_of_nobody(direction, path, rule)
        self._warn_of_replies(path, rule)
        peers, networks = self._peers(path, rule)
        ports, ranges = _ports(rule.get("ports"))
        return Rule(
            content=(self._document.name, direction, canonical_json(rule)),
            direction=direction,
            path=path,
            action=rule["action"],
            peers=peers,
            networks=networks,
            ports=ports,
            ranges=ranges,
        )

    def _peers(self, path: str, rule: Mapping[str, Any]) -> Tuple[Tuple[int, ...], Tuple[Network, ...]]:
        if "peers" not in rule:
            return (ANY,), ()
        numbers: Set[int] = set()
        networks: List[Tuple[Network, ...]] = []
        for position, peer in enumerate(rule["peers"]):
            where = f"{path}.peers[{position}]"
            if "labels" in peer:
                numbers.update(
                    self.selected(f"{where}.labels", peer["labels"], peer.get("expressions", ()), self._index)
                )
            elif "entity" in peer:
                numbers.update(_entity(peer["entity"], self._index))
            elif "cidr" in peer:
                network = prefix_of(peer["cidr"]), tuple(prefix_of(part) for part in peer.get("except", ()))
                networks.append((network,))
            elif peer["cidr_group"] in self._groups:
                networks.append(self._groups[peer["cidr_group"]].networks)
            else:
                numbers.update(self._unknown_group(where, peer["cidr_group"], rule["action"]))
        if ANY in numbers:
            return (ANY,), ()
        # Not copied where there is one group: thousands of rules may name one of thousands of networks.
        return tuple(sorted(numbers)), networks[0] if len(networks) == 1 else tuple(itertools.chain(*networks))

    def _warn_of_families(self, path: str, rule: Mapping[str, Any]) -> None:
        """With CIDR groups, whose networks come and go, ICMP of a family that no peer has is no mistake for ever."""
        peers = rule.get("peers") or ()
        named = [peer["cidr_group"] for peer in peers if "cidr_group" in peer]
        is_of_networks = all("cidr" in peer or "cidr_group" in peer for peer in peers)
        if not (named and is_of_networks and all(name in self._groups for name in named)):
            return
        versions = {version_of(peer["cidr"]) for peer in peers if "cidr" in peer}
        versions = versions.union(*(self._groups[name].versions for name in named))
        for problem in icmp_of_no_family(rule.get("ports"), versions):
            where = f"{self._document.key}, {path}.{problem.path}"
            self.warnings.append(f"{where}: {problem.what}; remove it, or add a network of its family")

    def _warn_of_nobody(self, direction: str, path: str, rule: Mapping[str, Any]) -> None:
        """A group of networks each of which would be refused as a peer: it may have others tomorrow."""
        side = direction, "node_selector" in self._document.spec
        for position, peer in enumerate(rule.get("peers") or ()):
            group = self._groups.get(peer.get("cidr_group", ""))
            if group is not None and side in group.nobodys:
                what = f"{path}.peers[{position}].cidr_group: {peer['cidr_group']} has only networks that mean nobody"
                self.warnings.append(f"{self._document.key}, {what}: {group.nobodys[side]}")

    def _warn_of_replies(self, path: str, rule: Mapping[str, Any]) -> None:
        """Who denies an echo's reply expects it to be dropped. (Who allows it gets what was expected.)"""
        for position, port in enumerate(rule.get("ports") or ()):
            echo, reply = _ECHOES.get(port["protocol"], (None, None))
            if rule["action"] == "deny" and "type" in port and port["type"] == reply and not port.get("code"):
                where = f"{self._document.key}, {path}.ports[{position}].type"
                what = "an echo reply passes with the echo that it answers, whatever denies it, and never without"
                self.warnings.append(f"{where}: {what}; deny the echo, type {echo}")

    def _unknown_group(self, path: str, name: str, action: str) -> FrozenSet[int]:
        """Fail closed: nobody is allowed by a group that is not there, and whoever it might name is denied."""
        meanwhile = "allows nobody" if action == "allow" else "denies the whole world"
        self.waiting.append(f"CIDR group {name} has no document yet: {path} {meanwhile}")
        return frozenset() if action == "allow" else frozenset([identity.WORLD])


def _entity(entity: str, index: LabelIndex) -> FrozenSet[int]:
    return {
        "world": frozenset([identity.WORLD]),
        "host": frozenset([identity.HOST]),
        "remote-node": frozenset([identity.REMOTE_NODE]),
        "cluster": index.everything | {identity.HOST, identity.REMOTE_NODE},
        "all": frozenset([ANY]),
        "none": frozenset(),
    }[entity]


def _ports(ports: Optional[Sequence[Mapping[str, Any]]]) -> Tuple[Tuple[PortKey, ...], Tuple[PortRange, ...]]:
    if ports is None:
        return ((ANY, ANY),), ()
    keys: Dict[PortKey, None] = {}
    ranges: Dict[PortRange, None] = {}
    for entry in ports:
        name, first = entry["protocol"], entry.get("port", ANY)
        last = entry.get("end_port", first)
        if name in _ICMP and "type" in entry:
            ranges[(PROTOCOL_NUMBERS[name], *_messages(entry["type"], entry.get("code")))] = None
        elif name == "any" and first == ANY:
            keys[(ANY, ANY)] = None
        else:
            for protocol in PORT_PROTOCOLS if name == "any" else (name,):
                if first == last:
                    keys[(PROTOCOL_NUMBERS[protocol], first)] = None
                else:
                    ranges[(PROTOCOL_NUMBERS[protocol], first, last)] = None
    return tuple(sorted(keys)), tuple(sorted(ranges))


def _messages(kind: int, code: Optional[int]) -> Tuple[int, int]:
    """An ICMP type, or one code of it, as a range of type << 8 | code."""
    return (kind << 8, kind << 8 | 0xFF) if code is None else (kind << 8 | code, kind << 8 | code)
