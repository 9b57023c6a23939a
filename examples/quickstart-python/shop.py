"""Three hosts, six workloads, and who of them may talk to whom: the Pulumi program.

The same fleet as examples/quickstart-pulumi. `declare` is the program; run.py runs it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_bpfleet as bpfleet

PORT = 80
"""What everything in the shop listens on (TCP)."""
SERVICE_ADDRESSES = ("10.96.0.10", "fd00:bf:96::10")
"""Where the API is found, whoever serves it."""


@dataclass(frozen=True)
class Host:
    """What has to be known of a host. networks: of its workloads, one for IPv4 and one for IPv6."""

    name: str
    address: str
    device: str
    networks: Sequence[str]
    ssh: bpfleet.SshArgs

    def addresses(self, number: int) -> list[str]:
        """Addresses of a workload here, IPv4 first: 10 is 10.0.1.10 and fd00:bf:0:1::10."""
        networks = sorted(map(ipaddress.ip_network, self.networks), key=lambda network: network.version)
        return [str(network[number if network.version == 4 else int(str(number), 16)]) for network in networks]


@dataclass(frozen=True)
class Workload:
    """A workload: the network namespace `netns` of a host, with an address number in that host's networks."""

    host: str
    netns: str
    number: int


IDENTITIES = {
    "web": {"app": "shop", "role": "web"},
    "api": {"app": "shop", "role": "api", "tier": "backend"},
    "db": {"app": "shop", "role": "db", "tier": "backend"},
    "batch": {"app": "shop", "role": "batch", "tier": "backend"},
    "client": {"role": "client"},
    "monitor": {"role": "monitor", "team": "ops"},
}
WORKLOADS = {
    "web": Workload("h1", "w1", 10),
    "client": Workload("h1", "w2", 20),
    "api": Workload("h2", "w1", 10),
    "batch": Workload("h2", "w2", 20),
    "db": Workload("h3", "w1", 10),
    "monitor": Workload("h3", "w2", 20),
}


def declare(hosts: Mapping[str, Host], batch_to_db: str = "deny") -> None:
    """Everything of the shop. batch_to_db: what becomes of the batch jobs' connections to the database."""
    nodes = {
        host.name: bpfleet.Node(
            host.name,
            address=host.address,
            devices=[bpfleet.DeviceArgs(name=host.device)],
            workload_cidrs=host.networks,
            ssh=host.ssh,
        )
        for host in hosts.values()
    }
    # Pulumi gives outputs and arguments of one shape a class each; to a type checker a handle is anything.
    members: dict[str, Any] = {name: node.handle for name, node in nodes.items()}
    shop: Any = bpfleet.Cluster("shop", id=1, members=members).handle

    for name, labels in IDENTITIES.items():
        bpfleet.Identity(name, cluster=shop, labels=labels)
    for name, workload in WORKLOADS.items():
        bpfleet.Endpoint(
            f"{name}-1",
            cluster=shop,
            node=workload.host,
            identity=name,
            addresses=hosts[workload.host].addresses(workload.number),
            attach=bpfleet.AttachArgs(netns=workload.netns),
        )

    # A policy closes the directions it has for the endpoints it selects; what no rule then allows is denied by default.
    # Nothing selects `client` and `monitor`, so everybody reaches them.
    pages = bpfleet.PortArgs(protocol=bpfleet.PortProtocol.TCP, port=PORT)
    bpfleet.Policy(
        "web-from-clients",
        cluster=shop,
        description="Clients reach the shop's pages and nothing else",
        selector={"role": "web"},
        ingress=[bpfleet.RuleArgs(peers=[having(role="client")], ports=[pages])],
    )
    bpfleet.Policy(
        "api-from-web",
        cluster=shop,
        description="Pages and batch jobs call the API",
        selector={"role": "api"},
        ingress=[bpfleet.RuleArgs(peers=[having(role="web"), having(role="batch")], ports=[pages])],
    )
    bpfleet.Policy(
        "db-from-backend",
        cluster=shop,
        description="The backend uses the database; batch jobs only while that is allowed",
        selector={"role": "db"},
        ingress=[
            bpfleet.RuleArgs(peers=[having(tier="backend")], ports=[pages]),
            # A deny beats every allow, so this one decides although batch jobs are backend too.
            bpfleet.RuleArgs(action=bpfleet.RuleAction(batch_to_db), peers=[having(role="batch")], ports=[pages]),
        ],
    )
    pings = [bpfleet.PortArgs(protocol=bpfleet.PortProtocol(name)) for name in ("icmp", "icmpv6")]
    bpfleet.Policy(
        "shop-from-monitor",
        cluster=shop,
        description="Monitoring pings everything of the shop and reads its pages",
        selector={"app": "shop"},
        ingress=[bpfleet.RuleArgs(peers=[having(role="monitor")], ports=[*pings, pages])],
    )

    # One address for all that serve the API.
    four, six = SERVICE_ADDRESSES
    service = bpfleet.Service(
        "shop-api",
        cluster=shop,
        frontends=[bpfleet.FrontendArgs(address=address, port=PORT) for address in SERVICE_ADDRESSES],
        backends=[bpfleet.BackendArgs(labels={"role": "api"})],
    )

    # For whoever tries it out: where each workload is, and its addresses.
    pulumi.export("port", PORT)
    pulumi.export("workloads", {name: whereabouts(name, at, hosts[at.host]) for name, at in WORKLOADS.items()})
    pulumi.export("service", {"name": service.name, "backend": "api", "address": four, "address6": six})


def whereabouts(name: str, at: Workload, host: Host) -> dict[str, str]:
    """Where a workload is found."""
    four, six = host.addresses(at.number)
    return {"host": at.host, "workload": at.netns, "endpoint": f"{name}-1", "address": four, "address6": six}


def having(**labels: str) -> bpfleet.PeerArgs:
    """Endpoints with these labels, wherever they are."""
    return bpfleet.PeerArgs(labels=labels)
