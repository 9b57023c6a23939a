"""NodeState of small fleets against reviewed files. `pytest tests/golden --update` rewrites them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from bpfleet.compile.compiler import Compiler
from bpfleet.compile.validate import validate
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Compiled, Facts
from tests import fleet

STATES = Path(__file__).parent / "state"


def _without(*keys: str) -> List[Document]:
    return [document for document in fleet.quickstart() if document.key not in keys]


def _closed(**settings: Any) -> List[Document]:
    """The quickstart without its policies, its cluster with some settings."""
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1", "h2"], **settings)
    return [cluster, *_without("cluster/fleet", "policy/db", "policy/api")]


PEERS = [
    {"peers": [{"labels": {}, "expressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}]},
    {"peers": [{"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26", "198.51.100.7/32"]}]},
    {"action": "deny", "peers": [{"cidr_group": "office"}, {"cidr": "2001:db8::/32"}]},
    {"action": "deny", "peers": [{"cidr_group": "not-there"}]},
    {"peers": [{"entity": "remote-node"}, {"cidr_group": "not-there"}]},
]
PORTS = [
    {"peers": [{"entity": "cluster"}], "ports": [{"protocol": "tcp", "port": 8000, "end_port": 8099}]},
    {"action": "deny", "ports": [{"port": 8080, "end_port": 8081}]},
    {"ports": [{"protocol": "icmp", "type": 3, "code": 4}, {"protocol": "icmp", "type": 8}, {"protocol": "icmpv6"}]},
    {"ports": [{"protocol": "sctp", "port": 3868}, {"protocol": "any", "port": 53}, {"protocol": "udp"}]},
]


CASES: Dict[str, Tuple[List[Document], Facts]] = {
    "quickstart-h1": (fleet.quickstart(), fleet.facts(1)),
    "quickstart-h2": (fleet.quickstart(), fleet.facts(2)),
    "no-policies": (_without("policy/db", "policy/api"), fleet.facts(1)),
    "identity-missing": (_without("identity/db"), fleet.facts(2)),
    "member-missing": (_without("node/h2"), fleet.facts(1)),
    "not-a-member": ([*_without("cluster/fleet"), fleet.cluster(["h1"])], fleet.facts(2)),
    "namespace-missing": (fleet.quickstart(), fleet.facts(1, workloads=1)),
    "node-policies": (
        [
            *_without("node/h1", "node/h2"),
            fleet.node(1, labels={"rack": "a"}),
            fleet.node(2, labels={"rack": "b"}),
            fleet.node_policy("rack-a", {"rack": "a"}, ingress=[{"peers": [{"labels": {"app": "web"}}]}], egress=[{}]),
            fleet.node_policy("rack-b", {"rack": "b"}, ingress=[]),
            fleet.node_policy("rack-c", {"rack": "aa"}, egress=[]),
        ],
        fleet.facts(1),
    ),
    "services": (
        [
            *_without("policy/db", "policy/api", "identity/db"),
            fleet.service("api", ["10.96.0.1:80", "[fd96::1]:80"], [{"labels": {"app": "api"}, "port": 8080}]),
            fleet.service("dns", ["10.96.0.2:53", "10.96.0.2:53/udp"], [{"address": "192.0.2.53"}]),
            fleet.service("same", ["10.96.0.3:81"], [{"labels": {"tier": "back"}, "port": 8080}]),
            fleet.service("waiting", ["10.96.0.4:80"], [{"labels": {"app": "db"}}]),
            fleet.service("none", ["10.96.0.5:80"], []),
        ],
        fleet.facts(1),
    ),
    "no-cgroup": (
        [*_without("policy/db", "policy/api"), fleet.service("none", ["10.96.0.5:80"], [])],
        Facts("h1", {"eth0": (1500, ("192.168.77.1",))}, ("w1", "w2"), cgroup=False),
    ),
    "peers": (
        [
            *_closed(),
            fleet.document("cidr_group", "office", cidrs=["198.51.100.128/25", "2001:db8:ffff::/48"]),
            fleet.document(
                "policy",
                "web",
                selector={},
                expressions=[
                    {"key": "app", "operator": "In", "values": ["web", "db"]},
                    {"key": "tier", "operator": "Exists"},
                    {"key": "old", "operator": "DoesNotExist"},
                ],
                ingress=PEERS,
            ),
        ],
        fleet.facts(1),
    ),
    "ports": ([*_closed(), fleet.policy("web", {"app": "web"}, ingress=PORTS)], fleet.facts(1)),
    "audit": (
        [
            *_closed(),
            fleet.policy("strict", {"app": "web"}, egress=[{"peers": [{"labels": {"app": "api"}}]}]),
            fleet.document(
                "policy",
                "trial",
                selector={"tier": "front"},
                mode="audit",
                labels={"team": "edge"},
                ingress=[],
                egress=[{"action": "deny", "ports": [{"protocol": "tcp", "port": 80}]}],
            ),
        ],
        fleet.facts(1),
    ),
    "audited-cluster": (
        [*_closed(mode="audit", unselected="deny"), fleet.policy("web", {"app": "web"}, ingress=[{}])],
        fleet.facts(1),
    ),
    "switches": (
        [
            *_closed(),
            fleet.document("policy", "closes", selector={"app": "web"}, default_deny={"egress": True}),
            fleet.document(
                "policy",
                "adds",
                selector={"app": "api"},
                default_deny={"ingress": False},
                ingress=[{"action": "deny", "peers": [{"entity": "world"}]}, {"peers": [{"labels": {}}]}],
            ),
        ],
        fleet.facts(1),
    ),
    "unselected-deny": (
        [
            *_closed(unselected="deny", allow_local_host=True),
            fleet.policy("web", {"app": "web"}, ingress=[{"peers": [{"labels": {"app": "api"}}]}]),
            fleet.node_policy("nodes", {}, ingress=[{"peers": [{"entity": "remote-node"}]}]),
        ],
        fleet.facts(1),
    ),
    "limits": ([*_closed(limits={"connections": 4096, "endpoints": 32, "policy_entries": 512})], fleet.facts(1)),
    "jumbo-and-own-mtu": (
        [*_without("cluster/fleet"), fleet.cluster(["h1", "h2"], mtu=1400, port=4789)],
        Facts("h1", {"eth0": (9000, ("192.168.77.1",))}, ("w1", "w2")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_state(name: str, pytestconfig: pytest.Config) -> None:
    documents = DocumentSet(CASES[name][0])
    assert validate(documents) == []
    text = json.dumps(_readable(Compiler().compile(documents, CASES[name][1])), indent=1, sort_keys=True) + "\n"
    path = STATES / f"{name}.json"
    if pytestconfig.getoption("--update"):
        path.write_text(text)
    assert text == path.read_text(), "the state changed: look at it, then run pytest tests/golden --update"


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in STATES.glob("*.json")} == set(CASES)


def _readable(compiled: Compiled) -> Dict[str, Any]:
    return {
        "state": compiled.state.to_json(),
        "rules": {str(number): vars(rule) for number, rule in sorted(compiled.rules.items())},
        "waiting": [vars(waiting) for waiting in compiled.waiting],
        "warnings": list(compiled.warnings),
        "services": {service.name: dict(service.frontends) for service in compiled.services},
    }
