"""Clusters and flows for Hypothesis to try: few names, networks and ports, so that rules meet."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Tuple

from hypothesis import strategies as st

from bpfleet.model.document import Document, problems_of
from tests import fleet
from tests.reference.judge import Flow

IDENTITIES: Dict[str, Dict[str, str]] = {
    "a": {"app": "a", "tier": "front"},
    "b": {"app": "b", "tier": "back"},
    "c": {"app": "c"},
}
GROUPS = {
    "office": ["198.51.100.0/24", "198.51.100.0/28", "2001:db8:ffff::/48"],
    "empty": [],
    "all": ["0.0.0.0/0", "::/0"],
}
NETWORKS = (
    "0.0.0.0/0", "128.0.0.0/1", "198.51.0.0/16", "198.51.100.0/24", "198.51.100.0/29", "198.51.100.7/32",
    "198.51.100.128/25", "203.0.113.0/24", "::/0", "::/80", "2001:db8::/32", "2001:db8:ffff::/48",
    "2001:db8:ffff::7/128", "2001:db8:ffff:0:8000::/65",
)  # fmt: skip
INSIDE = {
    network: tuple(other for other in NETWORKS if other != network and fleet.lies_in(other, network))
    for network in NETWORKS
}
OUTSIDE = (
    "198.51.100.7", "198.51.100.8", "198.51.100.200", "198.51.7.7", "203.0.113.9", "8.8.8.8",
    "2001:db8:ffff::7", "2001:db8:ffff:0:8000::7", "2001:db8::7", "2620::7", "::7",
)  # fmt: skip
INSIDERS = (*(f"identity/{name}" for name in IDENTITIES), "host", "remote-node")
NODE_LABELS = {"h1": {"rack": "a"}, "h2": {"rack": "b"}}
FAILSAFE = (
    {"protocol": "tcp", "port": 80, "direction": "ingress"},
    {"protocol": "udp", "port": 443, "direction": "ingress"},
    {"protocol": "tcp", "port": 8080, "direction": "egress"},
)
PORTS = (1, 2, 22, 79, 80, 81, 82, 443, 8080, 65534, 65535)
MESSAGES = ((8, 0), (3, 0), (3, 1), (3, 4), (5, 1), (0, 0), (128, 0), (1, 4), (255, 255))
EVERY_WIRE: Tuple[Tuple[str, Any], ...] = (
    *((protocol, port) for protocol in ("tcp", "udp", "sctp") for port in PORTS),
    *((protocol, message) for protocol in ("icmp", "icmpv6") for message in MESSAGES),
)
"""Protocols with a port, or with the type and code of a message."""


def _expression(draw: st.DrawFn) -> Dict[str, Any]:
    operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
    found: Dict[str, Any] = {"key": draw(st.sampled_from(("app", "tier", "rack"))), "operator": operator}
    if operator in ("In", "NotIn"):
        found["values"] = draw(st.lists(st.sampled_from(("a", "b", "front")), min_size=1, max_size=2, unique=True))
    return found


expressions = st.lists(st.composite(_expression)(), max_size=2, unique_by=repr)
labels = st.sampled_from(({}, {"app": "a"}, {"app": "b"}, {"tier": "front"}, {"app": "nobody"}))


@st.composite
def peers(draw: st.DrawFn) -> Dict[str, Any]:
    """One peer of a rule."""
    kind = draw(st.sampled_from(("labels", "entity", "cidr", "cidr", "cidr_group")))
    if kind == "labels":
        return {"labels": draw(labels), "expressions": draw(expressions)}
    if kind == "entity":
        return {"entity": draw(st.sampled_from(("world", "host", "remote-node", "cluster", "all", "none")))}
    if kind == "cidr_group":
        return {"cidr_group": draw(st.sampled_from((*GROUPS, "missing")))}
    cidr = draw(st.sampled_from(NETWORKS))
    parts = draw(st.lists(st.sampled_from(INSIDE[cidr]), max_size=3, unique=True)) if INSIDE[cidr] else []
    return {"cidr": cidr, **({"except": parts} if parts else {})}


@st.composite
def ports(draw: st.DrawFn) -> Dict[str, Any]:
    """One entry of a rule's ports."""
    protocol = draw(st.sampled_from(("tcp", "tcp", "udp", "sctp", "any", "icmp", "icmpv6")))
    found: Dict[str, Any] = {"protocol": protocol}
    if protocol.startswith("icmp"):
        kind, code = draw(st.sampled_from(MESSAGES))
        if draw(st.booleans()):
            found["type"] = kind
            if draw(st.booleans()):
                found["code"] = code
    elif draw(st.integers(0, 3)):
        first, last = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
        found["port"] = first
        if draw(st.booleans()):
            found["end_port"] = last
    return found


@st.composite
def rules(draw: st.DrawFn) -> Dict[str, Any]:
    """One rule."""
    rule: Dict[str, Any] = {"action": draw(st.sampled_from(("allow", "allow", "deny")))}
    if draw(st.integers(0, 4)):
        rule["peers"] = draw(st.lists(peers(), max_size=3, unique_by=repr))
    if draw(st.integers(0, 2)):
        rule["ports"] = draw(st.lists(ports(), max_size=3, unique_by=repr))
    return rule


def _matched(rule: Dict[str, Any]) -> str:
    """What a rule is about, whatever it does: two that are about the same are refused."""
    return repr([sorted(map(repr, rule[name])) if name in rule else None for name in ("peers", "ports")])


@st.composite
def policy_documents(draw: st.DrawFn, name: str, of_node: bool = False) -> Document:
    """One policy that may be said: what is refused of what was drawn is left out. of_node: it selects every node."""
    spec: Dict[str, Any] = {"expressions": [] if of_node else draw(expressions)}
    if of_node:
        spec["node_selector"] = {}
    elif draw(st.integers(0, 3)):
        spec["selector"] = draw(labels)
    else:
        spec["node_selector"] = draw(st.sampled_from(({}, {"rack": "a"}, {"rack": "b"})))
    for direction in ("ingress", "egress"):
        if draw(st.integers(0, 3)):
            spec[direction] = draw(st.lists(rules(), max_size=4, unique_by=_matched))
        if not draw(st.integers(0, 3)):
            spec.setdefault("default_deny", {})[direction] = draw(st.booleans())
    if not draw(st.integers(0, 2)):
        spec["mode"] = draw(st.sampled_from(("enforce", "audit")))
    if not draw(st.integers(0, 3)):
        spec["description"] = draw(st.sampled_from(("first", "second")))
        spec["labels"] = draw(labels)
    return _sayable(name, spec)


def _sayable(name: str, spec: Dict[str, Any]) -> Document:
    """The policy without the rules and expressions that are refused."""
    for problem in iter(lambda: next(iter(problems_of({"kind": "policy", "name": name, "spec": spec})), None), None):
        field, _, index = str(problem.field).partition("[")
        if field == "expressions":
            spec["expressions"] = []
        elif index and spec.get(field):
            del spec[field][int(index.partition("]")[0])]
        else:  # it says nothing
            spec["ingress"], spec["default_deny"] = [], {}
    return fleet.document("policy", name, **spec)


def world(settings: Mapping[str, Any], numbers: Mapping[str, int] = MappingProxyType({})) -> List[Document]:
    """Two nodes, an endpoint of each identity on the first, and CIDR groups; no policy. The cluster comes first.

    numbers: of identities by name, for worlds that have their own.
    """
    documents = [
        fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], **settings),
        fleet.node(1, labels=NODE_LABELS["h1"]),
        fleet.node(2, labels=NODE_LABELS["h2"]),
    ]
    documents += [fleet.identity(name, held, numbers.get(name)) for name, held in IDENTITIES.items()]
    documents += [fleet.endpoint(name, 1, index, name) for index, name in enumerate(IDENTITIES, 1)]
    return documents + [fleet.document("cidr_group", name, cidrs=cidrs) for name, cidrs in GROUPS.items()]


@st.composite
def clusters(
    draw: st.DrawFn, numbers: Mapping[str, int] = MappingProxyType({}), of_node: bool = False
) -> List[Document]:
    """A world with policies, of nodes too; of_node: surely."""
    settings: Dict[str, Any] = {}
    if not draw(st.integers(0, 3)):
        settings["unselected"] = draw(st.sampled_from(("open", "deny")))
    if not draw(st.integers(0, 7)):
        settings["mode"] = draw(st.sampled_from(("enforce", "audit")))
    if not draw(st.integers(0, 3)):
        settings["allow_local_host"] = draw(st.booleans())
    if of_node or not draw(st.integers(0, 3)):
        settings["failsafe_ports"] = draw(st.lists(st.sampled_from(FAILSAFE), max_size=2, unique_by=str))
    documents = world(settings, numbers)
    for number in range(draw(st.integers(0, 4))):
        documents.append(draw(policy_documents(f"p{number}")))
    if of_node:
        documents.append(draw(policy_documents("node", of_node=True)))
    return documents


@st.composite
def flows(draw: st.DrawFn, subject: str = "") -> Flow:
    """A flow of any end with the first node's endpoints, or that node itself; or with one of them."""
    protocol, port = draw(st.sampled_from(EVERY_WIRE))
    subject = subject or draw(st.sampled_from((*IDENTITIES, "host")))
    peers_of = [who for who in INSIDERS if who not in (subject, f"identity/{subject}")]
    peer = draw(st.sampled_from((*peers_of, *OUTSIDE, *OUTSIDE)))
    return Flow(draw(st.sampled_from(("ingress", "egress"))), subject, peer, protocol, port)
