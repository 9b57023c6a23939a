"""A large fleet as documents: 1,000 nodes, 10,000 endpoints of 200 identities, 500 policies."""

from __future__ import annotations

import random
from typing import List

from bpfleet.model.document import Document
from bpfleet.model.identity import candidates
from bpfleet.model.state import Facts

NODES, ENDPOINTS, LOCAL_ENDPOINTS, IDENTITIES, POLICIES = 1000, 10_000, 100, 200, 500
LOCAL_NODE = "n0"


def documents() -> List[Document]:
    """The fleet; the same on every call."""
    chance = random.Random(1)
    nodes = [f"n{index}" for index in range(NODES)]
    routing = {"mode": "vxlan", "port": 8472}
    fleet = [Document("cluster", "large", {"id": 1, "routing": routing, "members": sorted(nodes)})]
    for index, name in enumerate(nodes):
        fleet.append(
            Document(
                "node",
                name,
                {
                    "address": f"172.16.{index // 250}.{index % 250 + 1}",
                    "devices": [{"name": "eth0"}],
                    "workload_cidrs": [f"10.{index // 250}.{index % 250}.0/24"],
                },
            )
        )
    taken = set()
    for index in range(IDENTITIES):
        labels = {"app": f"app{index}", "tier": f"tier{index % 10}", "env": f"env{index % 3}"}
        number = next(number for number in candidates(1, labels) if number not in taken)
        taken.add(number)
        fleet.append(Document("identity", f"app{index}", {"labels": labels, "number": number}))
    used = [0] * NODES
    for index in range(ENDPOINTS):
        node = 0 if index < LOCAL_ENDPOINTS else chance.randrange(1, NODES)
        used[node] += 1
        fleet.append(
            Document(
                "endpoint",
                f"e{index}",
                {
                    "node": nodes[node],
                    "identity": f"app{chance.randrange(IDENTITIES)}",
                    "addresses": [f"10.{node // 250}.{node % 250}.{used[node]}"],
                    "attach": {"netns": f"w{used[node]}"},
                },
            )
        )
    fleet += [policy(index) for index in range(POLICIES)]
    return fleet


def policy(index: int, port: int = 80) -> Document:
    """One of the policies; another `port` makes a changed one."""
    tcp = {"protocol": "tcp"}
    return Document(
        "policy",
        f"p{index}",
        {
            "selector": {"app": f"app{index % IDENTITIES}"},
            "ingress": [
                {
                    "action": "allow",
                    "peers": [{"labels": {"tier": f"tier{index % 10}"}}],
                    "ports": [{**tcp, "port": port}, {**tcp, "port": 443}],
                },
                {
                    "action": "deny",
                    "peers": [{"labels": {"env": f"env{index % 3}"}}],
                    "ports": [{"protocol": "udp", "port": 53}],
                },
            ],
            "egress": [{"action": "allow", "peers": [{"entity": "cluster"}]}],
        },
    )


def facts() -> Facts:
    """Facts of the node that is compiled for."""
    return Facts(
        LOCAL_NODE,
        {"eth0": (1500, ("172.16.0.1",))},
        tuple(f"w{index}" for index in range(1, LOCAL_ENDPOINTS + 1)),
    )
