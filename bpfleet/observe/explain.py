"""Which rule decides a flow, from what is declared. Pure: any node, and the controller, gives the same answer.

The flow's first packet is judged twice at most: by the egress policy of its source, on the source's node, and by the
ingress policy of its destination, on the destination's node. way.py follows it, as some never get there, and some pass
unjudged; places.py knows whose the addresses are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple

from bpfleet.compile import entries, lookup, policy
from bpfleet.compile.entries import Settings
from bpfleet.compile.selector import LabelIndex
from bpfleet.compile.services import Backends, frontend_text
from bpfleet.errors import InvalidInput
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import PORT_PROTOCOLS, PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.events import NOT_CLOSED, VERDICTS
from bpfleet.observe.names import rule_names
from bpfleet.observe.places import Places, parsed_address
from bpfleet.observe.way import Packet, Way

_TO_ITSELF = "the client itself, which its sockets reach unjudged; packets that passed no hooked socket go to another"
_NODE_TO_ITSELF = "what a node says to itself is not judged"
ECHO_REQUESTS = {"icmp": 8, "icmpv6": 128}
"""Type of the message that is meant where none is named (RFC 792, RFC 4443)."""


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
    InvalidInput for names and protocols that do not exist, and where neither end is an endpoint or node.
    """
    if protocol not in PROTOCOL_NUMBERS:
        choices = ", ".join(PROTOCOL_NUMBERS)
        raise InvalidInput(f"{protocol!r} is no protocol", field="protocol", remedy=f"Use one of {choices}.")
    if protocol not in PORT_PROTOCOLS and port is not None:
        raise InvalidInput(f"{protocol} has no ports", field="port", remedy="Leave the port out.")
    asked = _asked(protocol, port, message)
    book, places = _Policies(documents), Places(documents, held, shared)
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


def _asked(protocol: str, port: Optional[int], message: Tuple[Optional[int], Optional[int]]) -> Dict[str, int]:
    """The port, or the type and code, of a flow in the words of wire.ExplainResult."""
    kind, code = message
    if protocol in PORT_PROTOCOLS:
        if kind is not None or code is not None:
            raise InvalidInput(f"{protocol} has no types", field="type", remedy="Leave type and code out.")
        return {} if port is None else {"port": port}
    return {"type": ECHO_REQUESTS[protocol] if kind is None else kind, "code": code or 0}


def _frontend(
    documents: DocumentSet, text: str, protocol: str, port: Optional[int]
) -> Optional[Tuple[Document, Mapping[str, Any]]]:
    """The service and its frontend that these name."""
    address = parsed_address(text)
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
    index = LabelIndex((one.spec["number"], one.spec["labels"]) for one in documents.of_kind("identity").values())
    backends: List[Dict[str, Any]] = []
    for address, at in Backends(documents, index).of_frontend(service, frontend):
        end = places.end(address, "destination")
        if (end.endpoint, end.node) == (client.endpoint, client.node):
            judged = {"direction": "egress", "node": client.node, "subject": client.identity_name}
            judged.update(verdict="allowed", rule=_TO_ITSELF if client.endpoint else _NODE_TO_ITSELF)
            entry: Dict[str, Any] = {"verdict": "allowed", "judged": [judged]}
        else:
            entry = _decide(book, places, source, address, frontend["protocol"], {"port": at})
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
    }


class _Policies:
    """The policy maps of the documents' identities, made as the compiler makes them, when asked for."""

    def __init__(self, documents: DocumentSet) -> None:
        index = LabelIndex(
            (document.spec["number"], document.spec["labels"]) for document in documents.of_kind("identity").values()
        )
        clusters = documents.of_kind("cluster")
        self._index = index
        self._documents = documents
        self._cluster = clusters[min(clusters)] if clusters else None
        self._made: Dict[Tuple[str, int], Tuple[lookup.Maps, Dict[int, RuleName]]] = {}

    def is_open(self, node: str, subject: int) -> bool:
        """Whether the subject has no map on that node."""
        return not self._maps(node, subject)[0].entries

    def judge(self, node: str, subject: int, question: lookup.Question) -> Dict[str, Any]:
        """What the subject's map on that node says of a new connection."""
        maps, names = self._maps(node, subject)
        found = lookup.judge(maps, question)
        verdict = VERDICTS[found.verdict]
        if not found.rule_id:
            return {"verdict": verdict, "rule": NOT_CLOSED}
        rule = names[found.rule_id]
        return {"verdict": verdict, "rule_id": found.rule_id, "action": rule.action, **rule_names(rule)}

    def _maps(self, node: str, subject: int) -> Tuple[lookup.Maps, Dict[int, RuleName]]:
        if (node, subject) not in self._made:
            self._made[(node, subject)] = self._make(node, subject)
        return self._made[(node, subject)]

    def _make(self, node: str, subject: int) -> Tuple[lookup.Maps, Dict[int, RuleName]]:
        """The subject's maps on that node, and what the rules in them are called."""
        nodes, groups = policy.Nodes.of(self._documents, node), self._documents.of_kind("cidr_group")
        policies = sorted(self._documents.of_kind("policy").items())
        resolved = [policy.resolve(document, self._index, nodes, groups) for _, document in policies]
        selected = [item for item in resolved if subject in item.subjects]
        settings = Settings.of(self._cluster)
        sides = entries.sides_of(subject, selected, settings)
        ids, names = entries.number_rules(resolved, sides)
        set_ids = entries.number_sets(sides)
        maps = lookup.Maps(
            entries.subject_table(subject, sides, ids, set_ids, settings.entries).table.rows,
            {set_ids[side.prefixes.content]: side.prefixes.table() for side in sides if side.prefixes is not None},
            {set_ids[side.ports.content]: side.ports.table() for side in sides if side.ports is not None},
        )
        return maps, names
