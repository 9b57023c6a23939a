"""Small fleets as documents: what many tests start from."""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Mapping, Optional, Sequence

from bpfleet.model.document import Document, parse_document
from bpfleet.model.identity import candidates
from bpfleet.model.state import Facts


def document(kind: str, name: str, **spec: Any) -> Document:
    """A checked document."""
    return parse_document({"kind": kind, "name": name, "spec": spec})


def cluster(members: Sequence[str], **routing: Any) -> Document:
    return document("cluster", "fleet", id=1, routing=routing, members=list(members))


def node(index: int, **changed: Any) -> Document:
    return document(
        "node",
        f"h{index}",
        address=f"192.168.77.{index}",
        devices=[{"name": "eth0"}],
        workload_cidrs=[f"10.77.{index}.0/24", f"fd77:0:0:{index}::/64"],
        **changed,
    )


def identity(name: str, labels: Optional[Mapping[str, str]] = None, number: Optional[int] = None) -> Document:
    labels = dict(labels or {"app": name})
    return document("identity", name, labels=labels, number=number or next(candidates(1, labels)))


def endpoint(name: str, on: int, host: int, of: Optional[str] = None, netns: Optional[str] = None) -> Document:
    return document(
        "endpoint",
        name,
        node=f"h{on}",
        identity=of or name,
        addresses=[f"10.77.{on}.{host}", f"fd77:0:0:{on}::{host:x}"],
        attach={"netns": netns or f"w{host}"},
    )


def policy(name: str, selector: Mapping[str, str], **directions: List[Dict[str, Any]]) -> Document:
    return document("policy", name, selector=dict(selector), **directions)


def node_policy(name: str, selector: Mapping[str, str], **directions: List[Dict[str, Any]]) -> Document:
    return document("policy", name, node_selector=dict(selector), **directions)


def service(name: str, frontends: Sequence[str], backends: List[Dict[str, Any]]) -> Document:
    """Frontends are written 10.96.0.1:80, 10.96.0.1:53/udp or [fd00::1]:80."""
    parsed = []
    for text in frontends:
        where, _, protocol = text.partition("/")
        address, _, port = where.rpartition(":")
        parsed.append({"address": address.strip("[]"), "port": int(port), "protocol": protocol or "tcp"})
    return document("service", name, frontends=parsed, backends=backends)


def facts(index: int, workloads: int = 8) -> Facts:
    """Facts of host h<index> with namespaces w1 to w<workloads>."""
    return Facts(
        node=f"h{index}",
        devices={"eth0": (1500, (f"192.168.77.{index}",))},
        namespaces=tuple(f"w{number}" for number in range(1, workloads + 1)),
    )


def quickstart() -> List[Document]:
    """Two hosts, four endpoints of three identities, and policies of every shape."""
    return [
        cluster(["h1", "h2"]),
        node(1),
        node(2),
        identity("web", {"app": "web", "tier": "front"}),
        identity("api", {"app": "api", "tier": "back"}),
        identity("db", {"app": "db", "tier": "back"}),
        endpoint("web-1", 1, 1, "web"),
        endpoint("api-1", 1, 2, "api"),
        endpoint("api-2", 2, 1, "api"),
        endpoint("db-1", 2, 2, "db"),
        policy(
            "db",
            {"app": "db"},
            ingress=[{"peers": [{"labels": {"app": "api"}}], "ports": [{"protocol": "tcp", "port": 5432}]}],
        ),
        policy(
            "api",
            {"app": "api"},
            ingress=[
                {"peers": [{"labels": {"tier": "front"}}], "ports": [{"port": 80}]},
                {"action": "deny", "peers": [{"entity": "world"}]},
                {"peers": [{"entity": "host"}], "ports": [{"protocol": "icmp"}, {"protocol": "icmpv6"}]},
            ],
            egress=[{"peers": [{"entity": "cluster"}]}],
        ),
    ]


def lies_in(inner: str, outer: str) -> bool:
    """Whether one CIDR lies inside another."""
    small, large = ipaddress.ip_network(inner), ipaddress.ip_network(outer)
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]
