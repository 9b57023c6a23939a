"""What policies mean, written to be read: a judge of one new connection, from documents.

It shares no code with the compiler. It asks every rule whether it matches, one after the other, and is as slow as that.
The semantics are those of docs/policy.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from bpfleet.model.document import Document

ALLOW, DENY, DEFAULT_DENY, AUDIT = "allow", "deny", "default_deny", "audit"
PORT_PROTOCOLS = ("tcp", "udp", "sctp")
NOT_YET = "identity/waiting"
"""The peer that an endpoint is whose identity has no document yet."""
HOME = "h1"
"""The node on which the subjects live."""


@dataclass(frozen=True)
class Flow:
    """The first packet of a connection, as the policy of one of its ends sees it.

    subject: name of that end's identity, or "host" for the node h1 itself. peer: the other end: "identity/<name>",
    "host", "remote-node", or an address.
    port: the destination's; of ICMP (type, code).
    """

    direction: str
    subject: str
    peer: str
    protocol: str
    port: Any


@dataclass(frozen=True)
class Verdict:
    """What becomes of it, and the id of the rule that says so; 0: no rule was asked."""

    verdict: str
    rule_id: int

    @property
    def drops(self) -> bool:
        """Whether the packet is dropped."""
        return self.verdict in (DENY, DEFAULT_DENY)


def judge(documents: Iterable[Document], flow: Flow) -> Verdict:
    """The verdict on a flow."""
    world = list(documents)
    cluster = next((document.spec for document in world if document.kind == "cluster"), {})
    if is_failsafe(cluster, flow):
        return Verdict(ALLOW, 0)
    policies = _selecting(world, flow.subject)
    unselected = cluster.get("unselected") == "deny" and flow.subject != "host"
    if cluster.get("mode") == "audit":
        enforced = Verdict(ALLOW, 0)
    else:
        enforced = _decide(world, [one for one in policies if one.spec.get("mode") != "audit"], unselected, flow)
    if enforced.drops:
        return enforced
    would_be = _decide(world, policies, unselected, flow)
    return Verdict(AUDIT, would_be.rule_id) if would_be.drops else enforced


def rules_with_ports(documents: Iterable[Document], flow: Flow) -> List[Mapping[str, Any]]:
    """The rules that are enforced in a flow's direction for its subject and name ports or types for anybody."""
    world = list(documents)
    if any(document.spec.get("mode") == "audit" for document in _of(world, "cluster")):
        return []
    return [
        rule
        for policy in _selecting(world, flow.subject)
        if policy.spec.get("mode") != "audit"
        for rule in policy.spec.get(flow.direction, [])
        if any("port" in port or "type" in port for port in rule.get("ports") or [])
        and (rule.get("peers") is None or any(_is_anybody(world, peer, rule["action"]) for peer in rule["peers"]))
    ]


def _is_anybody(world: List[Document], peer: Mapping[str, Any], action: str) -> bool:
    """Whether a peer of a rule can be somebody at all."""
    if "labels" in peer:
        return any(_selects(peer, "labels", _labels(world, one.name)) for one in _of(world, "identity"))
    if "cidr_group" in peer:
        group = next((one for one in _of(world, "cidr_group") if one.name == peer["cidr_group"]), None)
        return bool(group.spec["cidrs"]) if group else action == "deny"
    return peer.get("entity") != "none"


@dataclass(frozen=True)
class Declared:
    """Documents, as what a model of a node asks about policy."""

    documents: Tuple[Document, ...]

    def judge(self, flow: Flow) -> Verdict:
        """The verdict on a flow."""
        return judge(self.documents, flow)

    def rules_with_ports(self, flow: Flow) -> List[Mapping[str, Any]]:
        """See there."""
        return rules_with_ports(self.documents, flow)


def _selecting(world: List[Document], subject: str) -> List[Document]:
    """The policies of a subject."""
    field, kind, name = ("node_selector", "node", HOME) if subject == "host" else ("selector", "identity", subject)
    labels = _labels(world, name, kind)
    return [policy for policy in _of(world, "policy") if field in policy.spec and _selects(policy.spec, field, labels)]


def is_failsafe(cluster: Mapping[str, Any], flow: Flow) -> bool:
    """Whether it is of a port of the node itself that no policy closes."""
    ports = cluster.get("failsafe_ports", [{"protocol": "tcp", "port": 22, "direction": "ingress"}])
    asked = {"protocol": flow.protocol, "port": flow.port, "direction": flow.direction}
    return flow.subject == "host" and asked in ports


def _decide(world: List[Document], policies: List[Document], unselected: bool, flow: Flow) -> Verdict:
    """The verdict if exactly these policies select the subject."""
    denies: List[Tuple[int, int]] = []
    allows: List[Tuple[int, int]] = []
    for policy in policies:
        for rule in policy.spec.get(flow.direction, []):
            for exactness in _matches(world, rule, flow):
                found = (exactness, rule_id(policy.name, flow.direction, _json(rule)))
                (denies if rule["action"] == "deny" else allows).append(found)
    closing = sorted(policy.name for policy in policies if _closes(policy.spec, flow.direction))
    local = any(document.spec.get("allow_local_host") for document in _of(world, "cluster"))
    if (
        local
        and flow.subject != "host"
        and flow.peer == "host"
        and flow.direction == "ingress"
        and (closing or unselected)
    ):
        allows.append((3, rule_id("allow_local_host")))
    if denies:
        return Verdict(DENY, min(denies)[1])
    if allows:
        return Verdict(ALLOW, min(allows)[1])
    if closing:
        return Verdict(DEFAULT_DENY, rule_id("default deny", flow.direction, *closing))
    if unselected:
        return Verdict(DEFAULT_DENY, rule_id("unselected: deny", flow.direction))
    return Verdict(ALLOW, 0)


def _closes(spec: Mapping[str, Any], direction: str) -> bool:
    switch = spec.get("default_deny", {}).get(direction)
    return bool(switch) if switch is not None else direction in spec


def _matches(world: List[Document], rule: Mapping[str, Any], flow: Flow) -> List[int]:
    """How exactly a rule's ports name the flow's, for each that does: 0 a port, 1 a range, 2 a protocol, 3 anything."""
    peers = rule.get("peers")
    if peers is not None and not any(_is_peer(world, peer, rule["action"], flow.peer) for peer in peers):
        return []
    if rule.get("ports") is None:
        return [3]
    found = [_port_match(port, flow) for port in rule["ports"]]
    return [exactness for exactness in found if exactness is not None]


def _is_peer(world: List[Document], peer: Mapping[str, Any], action: str, who: str) -> bool:
    kind, _, name = who.partition("/")
    if who == NOT_YET:
        return peer.get("entity") == "all"
    is_endpoint, is_node = kind == "identity", who in ("host", "remote-node")
    is_outside = not is_endpoint and not is_node
    if "labels" in peer:
        return is_endpoint and _selects(peer, "labels", _labels(world, name))
    if "entity" in peer:
        return {
            "all": True,
            "none": False,
            "world": is_outside,
            "cluster": not is_outside,
            "host": who == "host",
            "remote-node": who == "remote-node",
        }[str(peer["entity"])]
    if not is_outside:
        return False
    if "cidr" in peer:
        return _inside(who, peer["cidr"]) and not any(_inside(who, part) for part in peer.get("except", []))
    group = next((one for one in _of(world, "cidr_group") if one.name == peer["cidr_group"]), None)
    if group is None:
        return action == "deny"
    return any(_inside(who, cidr) for cidr in group.spec["cidrs"])


def _inside(address: str, cidr: str) -> bool:
    parsed, network = ipaddress.ip_address(address), ipaddress.ip_network(cidr)
    return parsed.version == network.version and parsed in network


def _port_match(port: Mapping[str, Any], flow: Flow) -> Optional[int]:
    protocol = port["protocol"]
    if "port" in port:
        if flow.protocol not in (PORT_PROTOCOLS if protocol == "any" else (protocol,)):
            return None
        last = port.get("end_port", port["port"])
        if not port["port"] <= flow.port <= last:
            return None
        return 0 if port["port"] == last else 1
    if protocol == "any":
        return 3
    if protocol != flow.protocol:
        return None
    if "type" in port:
        kind, code = flow.port
        return 1 if kind == port["type"] and port.get("code", code) == code else None
    return 2


def _selects(spec: Mapping[str, Any], field: str, labels: Optional[Mapping[str, str]]) -> bool:
    if labels is None or any(labels.get(key) != value for key, value in spec[field].items()):
        return False
    return all(_holds(one, labels) for one in spec.get("expressions", []))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    if expression["operator"] == "In":
        return key in labels and labels[key] in values
    if expression["operator"] == "NotIn":
        return key not in labels or labels[key] not in values
    return (key in labels) == (expression["operator"] == "Exists")


def _labels(world: List[Document], name: str, kind: str = "identity") -> Optional[Dict[str, str]]:
    return next((dict(one.spec.get("labels", {})) for one in _of(world, kind) if one.name == name), None)


def _of(world: List[Document], kind: str) -> List[Document]:
    return [document for document in world if document.kind == kind]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def rule_id(*parts: str) -> int:
    """The first four bytes of a hash of what a rule says. (Two of one hash do not occur in tests.)"""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4], "big")
