"""Which rule decides a flow, from what is declared. Pure: any node, and the controller, gives the same answer.

The flow's first packet is judged twice at most: by the egress policy of its source, on the source's node, and by the
ingress policy of its destination, on the destination's node. Replies follow their connection and are not judged, nor
is what an endpoint sends to itself.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from bpfleet.compile import entries, lookup, policy
from bpfleet.compile.entries import Settings
from bpfleet.compile.host import is_failsafe
from bpfleet.compile.selector import LabelIndex
from bpfleet.compile.services import Backends, frontend_text
from bpfleet.errors import InvalidInput
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import PORT_PROTOCOLS, PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName
from bpfleet.observe.events import NOT_CLOSED, PROTOCOL_NAMES, VERDICTS
from bpfleet.observe.names import rule_names

_UNJUDGED = "an endpoint's traffic with itself is not judged"
_TO_ITSELF = "the client itself, which its sockets reach unjudged; packets that passed no hooked socket go to another"
_NODE_TO_ITSELF = "what a node says to itself is not judged"
ENTITY_NUMBERS = {"world": identity.WORLD, "host": identity.HOST, "remote-node": identity.REMOTE_NODE}
ECHO_REQUESTS = {"icmp": 8, "icmpv6": 128}
"""Type of the message that is meant where none is named (RFC 792, RFC 4443)."""


@dataclass(frozen=True)
class End:
    """One end: its identity's number, and where it is. A node's own address is host or remote-node, by who asks."""

    text: str
    number: int
    identity_name: str
    endpoint: Optional[str] = None
    node: Optional[str] = None
    address: Optional[str] = None

    def number_at(self, node: Optional[str]) -> int:
        """Its identity's number as the given node sees it."""
        if self.endpoint is None and self.node is not None:
            return identity.HOST if self.node == node else identity.REMOTE_NODE
        return self.number

    def to_json(self) -> Dict[str, Any]:
        """Plain data, without what is not known."""
        found = {"name": self.text, "identity_name": self.identity_name, "endpoint": self.endpoint, "node": self.node}
        return {key: value for key, value in found.items() if value is not None}


def explain(
    documents: DocumentSet,
    source: str,
    destination: str,
    protocol: str,
    port: Optional[int] = None,
    message: Tuple[Optional[int], Optional[int]] = (None, None),
) -> Dict[str, Any]:
    """wire.ExplainResult for a flow's first packet.

    source, destination: an endpoint's name, an address, a node's name, or "world", "host", "remote-node". "world" is an
    address in no CIDR that a policy names. message: type and code of ICMP; by default an echo request.
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
    book = _Policies(documents)
    found = _frontend(documents, destination, protocol, port)
    if found is not None:
        return _through(documents, book, source, found, asked["port"])
    return _decide(documents, book, source, destination, protocol, asked)


def _decide(
    documents: DocumentSet, book: _Policies, source: str, destination: str, protocol: str, asked: Mapping[str, int]
) -> Dict[str, Any]:
    ends = [_end(documents, source, "source"), _end(documents, destination, "destination")]
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
    ends = [_at_home(ends[0], ends[1]), _at_home(ends[1], ends[0])]
    judged: List[Dict[str, Any]] = []
    for direction, subject, peer in (("egress", ends[0], ends[1]), ("ingress", ends[1], ends[0])):
        if subject.node is None:
            continue
        if subject.endpoint is not None and subject.endpoint == peer.endpoint:
            answer: Dict[str, Any] = {"verdict": "allowed", "rule": _UNJUDGED}
        else:
            number = asked.get("port", asked.get("type", 0) << 8 | asked.get("code", 0))
            question = lookup.Question(
                direction, peer.number_at(subject.node), PROTOCOL_NUMBERS[protocol], number, peer.address
            )
            answer = book.judge(subject.node, subject.number_at(subject.node), question)
        judged.append({"direction": direction, "node": subject.node, "subject": subject.identity_name, **answer})
    verdicts = [entry["verdict"] for entry in judged]
    verdict = next((word for word in ("dropped", "denied", "audited") if word in verdicts), "allowed")
    return {
        "source": ends[0].to_json(),
        "destination": ends[1].to_json(),
        "protocol": protocol,
        **asked,
        "verdict": verdict,
        "judged": judged,
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
    address = _address(text)
    for _, service in sorted(documents.of_kind("service").items()):
        for frontend in service.spec["frontends"]:
            if (frontend["address"], frontend["port"], frontend["protocol"]) == (address, port, protocol):
                return service, frontend
    return None


def _through(
    documents: DocumentSet, book: _Policies, source: str, found: Tuple[Document, Mapping[str, Any]], port: int
) -> Dict[str, Any]:
    """A flow to a frontend: what decides about each backend that it may be given."""
    service, frontend = found
    client = _end(documents, source, "source")
    if client.node is None:
        raise InvalidInput(
            f"{source} is no endpoint and no node: for others {frontend_text(frontend)} of {service.key} is no service",
            field="source",
            remedy="Ask from an endpoint or a node, or about one of its backends.",
        )
    index = LabelIndex((one.spec["number"], one.spec["labels"]) for one in documents.of_kind("identity").values())
    backends: List[Dict[str, Any]] = []
    for address, at in Backends(documents, index).of_frontend(service, frontend):
        end = _end(documents, address, "destination")
        if (end.endpoint, end.node) == (client.endpoint, client.node):
            judged = {"direction": "egress", "node": client.node, "subject": client.identity_name}
            judged.update(verdict="allowed", rule=_TO_ITSELF if client.endpoint else _NODE_TO_ITSELF)
            entry: Dict[str, Any] = {"verdict": "allowed", "judged": [judged]}
        else:
            entry = _decide(documents, book, source, address, frontend["protocol"], {"port": at})
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


def _at_home(end: End, other: End) -> End:
    """`host` is the other end's own node."""
    return replace(end, node=other.node) if end.text == "host" and other.endpoint is not None else end


def _end(documents: DocumentSet, text: str, field: str) -> End:
    if text in ENTITY_NUMBERS:
        return End(text, ENTITY_NUMBERS[text], text)
    endpoints, nodes = documents.of_kind("endpoint"), documents.of_kind("node")
    name = text.partition("/")[2] if text.startswith(("endpoint/", "node/")) else text
    address = _address(text)
    if address is not None:
        for candidate, document in endpoints.items():
            if address in document.spec["addresses"]:
                return _endpoint(documents, text, candidate)
        for candidate, document in nodes.items():
            if address == document.spec["address"]:
                return End(text, identity.REMOTE_NODE, f"node {candidate}", node=candidate)
        return End(text, identity.WORLD, "world", address=address)
    if name in endpoints and not text.startswith("node/"):
        return _endpoint(documents, text, name)
    if name in nodes:
        return End(text, identity.REMOTE_NODE, f"node {name}", node=name)
    known = ", ".join(sorted(endpoints)[:20]) or "none"
    raise InvalidInput(
        f"{text!r} is no endpoint, node, address or entity",
        field=field,
        remedy=f"Endpoints: {known}. Entities: {', '.join(ENTITY_NUMBERS)}.",
    )


def _address(text: str) -> Optional[str]:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _endpoint(documents: DocumentSet, text: str, name: str) -> End:
    spec = documents.of_kind("endpoint")[name].spec
    known = documents.of_kind("identity").get(spec["identity"])
    number = identity.WAITING if known is None else int(known.spec["number"])
    return End(text, number, str(spec["identity"]), endpoint=name, node=str(spec["node"]))


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

    def judge(self, node: str, subject: int, question: lookup.Question) -> Dict[str, Any]:
        """What the subject's map on that node says of a new connection."""
        if subject == identity.WAITING:
            return {"verdict": "dropped", "rule": "its identity has no document yet: it passes nothing"}
        name = PROTOCOL_NAMES[question.protocol]
        cluster = self._cluster
        if subject == identity.HOST and cluster and is_failsafe(cluster, name, question.port, question.direction):
            return {"verdict": "allowed", "rule": "a failsafe port, which no policy closes"}
        if (node, subject) not in self._made:
            self._made[(node, subject)] = self._make(node, subject)
        maps, names = self._made[(node, subject)]
        found = lookup.judge(maps, question)
        verdict = VERDICTS[found.verdict]
        if not found.rule_id:
            return {"verdict": verdict, "rule": NOT_CLOSED}
        rule = names[found.rule_id]
        return {"verdict": verdict, "rule_id": found.rule_id, "action": rule.action, **rule_names(rule)}

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
