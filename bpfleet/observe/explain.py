"""Which rule decides a flow, from what is declared. Pure: any node, and the controller, gives the same answer.

The flow's first packet is judged twice at most: by the egress policy of its source, on the source's node, and by the
ingress policy of its destination, on the destination's node. Replies follow their connection and are not judged.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from bpfleet.compile import policy
from bpfleet.compile.host import is_failsafe
from bpfleet.compile.selector import LabelIndex
from bpfleet.errors import InvalidInput
from bpfleet.model import identity
from bpfleet.model.document import DocumentSet
from bpfleet.model.resources import PORT_PROTOCOLS, PROTOCOL_NUMBERS
from bpfleet.model.state import RuleName

ENTITY_NUMBERS = {"world": identity.WORLD, "host": identity.HOST, "remote-node": identity.REMOTE_NODE}


@dataclass(frozen=True)
class End:
    """One end: its identity's number, and where it is. A node's own address is host or remote-node, by who asks."""

    text: str
    number: int
    identity_name: str
    endpoint: Optional[str] = None
    node: Optional[str] = None

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
    documents: DocumentSet, source: str, destination: str, protocol: str, port: Optional[int] = None
) -> Dict[str, Any]:
    """wire.ExplainResult for a flow's first packet.

    source, destination: an endpoint's name, an address, a node's name, or "world", "host", "remote-node".
    InvalidInput for names and protocols that do not exist, and where neither end is an endpoint or node.
    """
    if protocol not in PROTOCOL_NUMBERS:
        choices = ", ".join(PROTOCOL_NUMBERS)
        raise InvalidInput(f"{protocol!r} is no protocol", field="protocol", remedy=f"Use one of {choices}.")
    if protocol not in PORT_PROTOCOLS and port is not None:
        raise InvalidInput(f"{protocol} has no ports", field="port", remedy="Leave the port out.")
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
    book = _Policies(documents)
    judged: List[Dict[str, Any]] = []
    for direction, subject, peer in (("egress", ends[0], ends[1]), ("ingress", ends[1], ends[0])):
        if subject.node is None:
            continue
        numbers = subject.number_at(subject.node), peer.number_at(subject.node)
        answer = book.judge(subject.node, numbers, direction, protocol, port or 0)
        judged.append({"direction": direction, "node": subject.node, "subject": subject.identity_name, **answer})
    verdicts = [entry["verdict"] for entry in judged]
    verdict = next((word for word in ("dropped", "denied") if word in verdicts), "allowed")
    answer = {
        "source": ends[0].to_json(),
        "destination": ends[1].to_json(),
        "protocol": protocol,
        "verdict": verdict,
        "judged": judged,
    }
    return {**answer, "port": port} if port is not None else answer


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
        return End(text, identity.WORLD, "world")
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
        self._index = index
        self._documents = documents

    def judge(self, node: str, numbers: Tuple[int, int], direction: str, protocol: str, port: int) -> Dict[str, Any]:
        """What the subject's map on that node says of the peer in one direction, in the order of the packet path."""
        subject, peer = numbers
        if subject == identity.WAITING:
            return {"verdict": "dropped", "rule": "its identity has no document yet: it passes nothing"}
        clusters = self._documents.of_kind("cluster").values()
        if subject == identity.HOST and any(is_failsafe(one, protocol, port, direction) for one in clusters):
            return {"verdict": "allowed", "rule": "a failsafe port, which no policy closes"}
        nodes = policy.Nodes.of(self._documents, node)
        policies = self._documents.of_kind("policy")
        resolved = [policy.resolve(document, self._index, nodes) for _, document in sorted(policies.items())]
        selected = [item for item in resolved if subject in item.subjects]
        ids, names = policy.number_rules(resolved, {subject: selected})
        rows = policy.subject_table(subject, selected, ids).table.rows
        verdict, rule_id = policy.judge(rows, peer, direction, PROTOCOL_NUMBERS[protocol], port)
        if verdict == "open":
            return {"verdict": "allowed", "rule": "no policy selects this direction"}
        return _named("allowed" if verdict == "allow" else "denied", rule_id, names)


def _named(verdict: str, rule_id: int, names: Mapping[int, RuleName]) -> Dict[str, Any]:
    rule = names[rule_id]
    answer = {"verdict": verdict, "rule_id": rule_id, "policy": rule.policy, "rule": rule.rule, "action": rule.action}
    return {**answer, "description": rule.description} if rule.description else answer
