"""Which rule decides a flow, from what is declared. Pure: any node, and the controller, gives the same answer.

The flow's first packet is judged twice at most: by the egress policy of its source, on the source's node, and by the
ingress policy of its destination, on the destination's node. way.py follows it, as some never get there, and some pass
unjudged; places.py knows whose the addresses are.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Collection, Dict, FrozenSet, List, Mapping, Optional, Tuple

from bpfleet.compile import entries, lookup, policy
from bpfleet.compile.entries import Settings
from bpfleet.compile.rules import Content
from bpfleet.compile.selector import LabelIndex
from bpfleet.compile.services import Backends, frontend_text
from bpfleet.errors import InvalidInput
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.meaning import PORT_PROTOCOLS
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.events import NOT_CLOSED, VERDICTS
from bpfleet.observe.names import rule_names
from bpfleet.observe.places import End, Places, parsed_address
from bpfleet.observe.way import Packet, Way

_TO_ITSELF = "the client itself, which its sockets reach unjudged; packets that passed no hooked socket {}"
_NODE_TO_ITSELF = "what a node says to itself is not judged"
ECHO_REQUESTS = {"icmp": 8, "icmpv6": 128}
"""Type of the message that is meant where none is named (RFC 792, RFC 4443)."""
_IN_NO_NETWORK = "the address is in no CIDR that rules there name (name an address to ask about one that is)"
_FAMILIES = {"icmp": 4, "icmpv6": 6}
"""IP version of the protocols that are of one only."""


def explain(
    documents: DocumentSet,
    source: str,
    destination: str,
    protocol: str,
    port: Optional[int] = None,
    message: Tuple[Optional[int], Optional[int]] = (None, None),
    held: Mapping[str, Collection[str]] = MappingProxyType({}),
    shared: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Dict[str, Any]:
    """wire.ExplainResult for a flow's first packet.

    source, destination: an endpoint's name, an address, a node's name, or "world", "host", "remote-node". "world" is an
    address in no CIDR that a policy names. message: type and code of ICMP; by default an echo request. held: addresses
    that nodes, by name, have and no document names. shared: those of their networks' broadcasts.
    A service's frontend is given a backend before anything is judged, so each that may be chosen is decided by itself:
    `backends` has them, and `verdict` is theirs if it is the same, else `mixed`; without any it is `refused`.
    InvalidInput for names and protocols that do not exist, for what no packet can be, and where neither end is an
    endpoint or node.
    """
    asked = first_packet(protocol, port, message)
    places = Places(documents, held, shared)
    book = _Policies(documents, places)
    found = _frontend(documents, destination, protocol, port)
    if found is not None:
        return _through(documents, book, places, source, found, asked["port"])
    return _decide(book, places, source, destination, protocol, asked)


def _decide(
    book: _Policies, places: Places, source: str, destination: str, protocol: str, asked: Mapping[str, int]
) -> Dict[str, Any]:
    ends = places.ends(source, destination)
    if all(end.node is None for end in ends):
        raise InvalidInput(
            f"neither {source} nor {destination} is an endpoint or a node",
            field="source",
            remedy="Policies are about endpoints and nodes: name one at least.",
        )
    if ends[0].node == ends[1].node and all(end.endpoint is None for end in ends):
        raise InvalidInput(
            f"{source} and {destination} are one node",
            field="destination",
            remedy="What a node says to itself is never judged: name another end.",
        )
    _check_ends(*ends)
    _check_families(*ends, protocol)
    judged = Way(places, book, *ends, Packet(protocol, asked)).judged()
    verdicts = [entry["verdict"] for entry in judged]
    ending = next((word for word in verdicts if word in ("denied", "dropped")), None)
    undeclared = [end.text for end in ends if places.is_undeclared(end)]
    return {
        "source": ends[0].to_json(),
        "destination": ends[1].to_json(),
        "protocol": protocol,
        **asked,
        "verdict": ending or ("audited" if "audited" in verdicts else "allowed"),
        "judged": judged,
        **({"undeclared": undeclared} if undeclared else {}),
    }


def first_packet(protocol: str, port: Optional[int], message: Tuple[Optional[int], Optional[int]]) -> Dict[str, int]:
    """The port, or the type and code, of a flow's first packet in the words of wire.ExplainResult.

    InvalidInput for what no packet can have, and for a flow of a protocol with ports whose port is not named.
    """
    kind, code = message
    if protocol not in PROTOCOL_NUMBERS:
        choices = ", ".join(PROTOCOL_NUMBERS)
        raise InvalidInput(f"{protocol!r} is no protocol", field="protocol", remedy=f"Use one of {choices}.")
    if protocol in PORT_PROTOCOLS:
        if kind is not None or code is not None:
            raise InvalidInput(f"{protocol} has no types", field="type", remedy="Leave type and code out.")
        if port is None:
            raise InvalidInput(
                f"which port of {protocol} is not said, and rules are about ports",
                field="port",
                remedy=f"Name the destination port, such as 80/{protocol}.",
            )
        return {"port": _number("port", port, 1, 65535)}
    if port is not None:
        raise InvalidInput(f"{protocol} has no ports", field="port", remedy="Leave the port out.")
    kind = ECHO_REQUESTS[protocol] if kind is None else _number("type", kind, 0, 255)
    return {"type": kind, "code": 0 if code is None else _number("code", code, 0, 255)}


def _number(field: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(f"{value!r} is no {field}", field=field, remedy=f"Use a number from {least} to {most}.")
    return value


def _check_ends(source: End, destination: End) -> None:
    """InvalidInput for addresses that no flow on a network has: every stack throws such away (RFC 1122 3.2.1.3)."""
    for end, field in ((source, "source"), (destination, "destination")):
        if end.is_loopback:
            raise InvalidInput(
                f"{end.text} is a loopback address: what is sent there leaves neither workload nor host",
                field=field,
                remedy="Name the endpoint, node or address that is meant.",
            )
        if end.is_unspecified:
            raise InvalidInput(
                f"{end.text} is nobody's address: nothing goes there, and only who asks for one sends from there",
                field=field,
                remedy="Name the endpoint, node or address that is meant.",
            )
    if source.is_multicast:
        raise InvalidInput(
            f"{source.text} is multicast, broadcast or reserved: no packet comes from there",
            field="source",
            remedy="Name the endpoint, node or address that sends.",
        )


def _check_families(source: End, destination: End, protocol: str) -> None:
    """InvalidInput unless a packet may have both ends, and be of the protocol."""
    families = _families(source, destination) & _families(destination, source)
    if not families:
        raise InvalidInput(
            f"no packet goes from {source.text} to {destination.text}: one is known by IPv4, the other by IPv6",
            field="destination",
            remedy="Name two addresses of one family.",
        )
    of = _FAMILIES.get(protocol)
    if of is not None and of not in families:
        other = next(name for name, family in _FAMILIES.items() if family != of)
        raise InvalidInput(
            f"{protocol} is of IPv{of}, and what goes from {source.text} to {destination.text} is of IPv{10 - of}",
            field="protocol",
            remedy=f"Ask about {other}, or name other addresses.",
        )


def _families(end: End, other: End) -> FrozenSet[int]:
    """IP versions of what may go between an end and another.

    A node that is named may use an address which no document has. To another node it is who it is by its declared
    address alone.
    """
    is_named_node = end.is_node and parsed_address(end.text, "source") is None
    return frozenset((4, 6) if is_named_node and not other.is_node else end.families)


def _frontend(
    documents: DocumentSet, text: str, protocol: str, port: Optional[int]
) -> Optional[Tuple[Document, Mapping[str, Any]]]:
    """The service and its frontend that these name."""
    address = parsed_address(text, "destination")
    for _, service in sorted(documents.of_kind("service").items()):
        for frontend in service.spec["frontends"]:
            if (frontend["address"], frontend["port"], frontend["protocol"]) == (address, port, protocol):
                return service, frontend
    return None


def _through(
    documents: DocumentSet,
    book: _Policies,
    places: Places,
    source: str,
    found: Tuple[Document, Mapping[str, Any]],
    port: int,
) -> Dict[str, Any]:
    """A flow to a frontend: what decides about each backend that it may be given."""
    service, frontend = found
    client = places.end(source, "source")
    if client.node is None:
        raise InvalidInput(
            f"{source} is no endpoint and no node: for others {frontend_text(frontend)} of {service.key} is no service",
            field="source",
            remedy="Ask from an endpoint or a node, or about one of its backends.",
        )
    _check_families(client, places.end(frontend["address"], "destination"), frontend["protocol"])
    index = LabelIndex((one.spec["number"], one.spec["labels"]) for one in documents.of_kind("identity").values())
    backends: List[Dict[str, Any]] = []
    undeclared: Dict[str, None] = {}
    chosen = Backends(documents, index).of_frontend(service, frontend)
    found_ends = [places.ends(source, address)[1] for address, _ in chosen]
    is_alone = all(end.endpoint == client.endpoint for end in found_ends)
    to_itself = _TO_ITSELF.format("are refused" if is_alone else "go to another")
    for (address, at), end in zip(chosen, found_ends):
        if (end.endpoint, end.node) == (client.endpoint, client.node):
            judged = {"direction": "egress", "node": client.node, "subject": client.identity_name}
            judged.update(verdict="allowed", rule=to_itself if client.endpoint else _NODE_TO_ITSELF)
            entry: Dict[str, Any] = {"verdict": "allowed", "judged": [judged]}
        else:
            entry = _decide(book, places, source, address, frontend["protocol"], {"port": at})
            undeclared.update(dict.fromkeys(entry.get("undeclared", ())))
        shown = {key: entry[key] for key in ("verdict", "judged")}
        backends.append({"destination": end.to_json(), "port": at, **shown})
    verdicts = {entry["verdict"] for entry in backends}
    return {
        "source": client.to_json(),
        "destination": {"name": frontend["address"], "identity_name": service.key},
        "protocol": frontend["protocol"],
        "port": port,
        "verdict": verdicts.pop() if len(verdicts) == 1 else "mixed" if verdicts else "refused",
        "judged": [],
        "backends": backends,
        **({"undeclared": list(undeclared)} if undeclared else {}),
    }


@dataclass(frozen=True)
class _Node:
    """What the policies make of one node: the sides of each of its subjects, and the numbers that it gives them."""

    sides: Mapping[int, Tuple[entries.Side, ...]]
    ids: Mapping[Content, int]
    set_ids: Mapping[Content, int]
    names: Mapping[int, RuleName]


class _Policies:
    """The policy maps of the documents' identities, made as the compiler makes them, when asked for."""

    def __init__(self, documents: DocumentSet, places: Places) -> None:
        self._index = LabelIndex(
            (document.spec["number"], document.spec["labels"]) for document in documents.of_kind("identity").values()
        )
        self._documents = documents
        self._places = places
        self._settings = Settings.of(places.cluster)
        self._nodes: Dict[str, _Node] = {}
        self._maps: Dict[Tuple[str, int], lookup.Maps] = {}

    def is_open(self, node: str, subject: int) -> bool:
        """Whether the subject has no map on that node."""
        return not self._maps_of(node, subject).entries

    def judge(self, node: str, subject: int, question: lookup.Question) -> Dict[str, Any]:
        """What the subject's map on that node says of a new connection."""
        maps = self._maps_of(node, subject)
        found = lookup.judge(maps, question)
        said: Dict[str, Any] = {"verdict": VERDICTS[found.verdict], "rule": NOT_CLOSED}
        if found.rule_id:
            rule = self._node(node).names[found.rule_id]
            said.update(rule_id=found.rule_id, action=rule.action, **rule_names(rule))
        if question.peer == identity.WORLD and question.address is None and maps.names_networks(question.direction):
            said["assumes"] = _IN_NO_NETWORK
        return said

    def _maps_of(self, node: str, subject: int) -> lookup.Maps:
        if (node, subject) not in self._maps:
            self._maps[(node, subject)] = self._make_maps(self._node(node), subject)
        return self._maps[(node, subject)]

    def _node(self, node: str) -> _Node:
        if node not in self._nodes:
            self._nodes[node] = self._make_node(node)
        return self._nodes[node]

    def _make_node(self, node: str) -> _Node:
        """Of all subjects, as one hash for two rules or default denies makes a number depend on what else is there."""
        nodes = policy.Nodes.of(self._documents, node)
        groups = {name: policy.Group.of(one) for name, one in self._documents.of_kind("cidr_group").items()}
        policies = sorted(self._documents.of_kind("policy").items())
        resolved = [policy.resolve(document, self._index, nodes, groups) for _, document in policies]
        sides = {
            subject: entries.sides_of(subject, [item for item in resolved if subject in item.subjects], self._settings)
            for subject in self._places.subjects(node)
        }
        every_side = [side for found in sides.values() for side in found]
        ids, names = entries.number_rules(resolved, every_side)
        return _Node(sides, ids, entries.number_sets(every_side), names)

    def _make_maps(self, node: _Node, subject: int) -> lookup.Maps:
        sides, set_ids = node.sides[subject], node.set_ids
        return lookup.Maps(
            entries.subject_table(subject, sides, node.ids, set_ids, self._settings.entries).table.rows,
            {set_ids[side.prefixes.content]: side.prefixes.table() for side in sides if side.prefixes is not None},
            {set_ids[side.ports.content]: side.ports.table() for side in sides if side.ports is not None},
        )
