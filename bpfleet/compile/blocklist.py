"""The networks that a cluster blocks, or gives to workloads: what may not be among them. How blocked ones are written
into the map."""

from __future__ import annotations

import ipaddress
from typing import Iterator, List, Tuple, Union

from bpfleet.errors import BpfleetError, Conflict, InvalidInput
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts, Row

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

Declared = Tuple[Document, str, Network, str]
"""A network: whose, in which field, and what to do where it holds {}."""

_LINK_LOCAL = ipaddress.ip_network("fe80::/10")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")


def blocked_row(cidr: str) -> Row:
    """The key of a network: IPv4 counts as mapped (address.h), so its prefixes are 96 longer."""
    network = ipaddress.ip_network(cidr)
    return (network.prefixlen + (96 if network.version == 4 else 0), str(network.network_address))


def conflicts(documents: DocumentSet) -> Iterator[BpfleetError]:
    """Networks that would cut the cluster's own members off, or break the network for all."""
    for cluster, index, network in _networks(documents):
        field = f"blocked_cidrs[{index}]"
        if network.prefixlen == 0:
            yield InvalidInput(
                f"{network} is everybody",
                resource=cluster.key,
                field=field,
                remedy="Block the networks that are meant; policies close what is not allowed.",
            )
            continue
        if network.version == 6 and network.overlaps(_MAPPED):
            yield InvalidInput(
                f"{network} holds IPv4 addresses in their mapped form",
                resource=cluster.key,
                field=field,
                remedy="Write IPv4 networks as such, 192.0.2.0/24.",
            )
        if network.version == 6 and network.overlaps(_LINK_LOCAL):
            yield InvalidInput(
                f"{network} holds link-local addresses, by which a host finds its neighbours and routers",
                resource=cluster.key,
                field=field,
                remedy="Leave fe80::/10 out.",
            )
        for name in cluster.spec["members"]:
            node = documents.of_kind("node").get(name)
            if node is not None and _holds(network, node.spec["address"]):
                yield Conflict(
                    f"{network} holds {node.spec['address']}, the address of member {name}",
                    resource=cluster.key,
                    field=field,
                    remedy=f"Block smaller networks that leave {node.spec['address']} out.",
                    details={"other": node.key},
                )


def unreachable(documents: DocumentSet, facts: Facts) -> Iterator[BpfleetError]:
    """Networks that would cut this node off from its controller, or from its default route: blocked ones, and those of
    workloads, which are reached through the tunnel. The controller may be a workload itself."""
    endpoints = documents.of_kind("endpoint").values()
    workloads = {address for endpoint in endpoints for address in endpoint.spec["addresses"]}
    needed = [(address, f"the gateway of node {facts.node}") for address in facts.gateways]
    if facts.controller:
        what = f"from where node {facts.node} is being changed: the controller or its jump host"
        needed.append((facts.controller, what))
    networks = [(one, needed) for one in _blocked(documents)]
    besides = [(address, what) for address, what in needed if address not in workloads]
    networks += [(one, besides) for one in _of_workloads(documents)]
    for (document, field, network, remedy), addresses in networks:
        for address, what in addresses:
            if network.prefixlen and _holds(network, address):
                yield InvalidInput(
                    f"{network} holds {address}, {what}",
                    resource=document.key,
                    field=field,
                    remedy=remedy.format(address),
                    details={"address": address, "node": facts.node},
                )


def warnings(documents: DocumentSet, cluster: Document) -> List[str]:
    """What is blocked and yet has no effect: workloads' packets travel in the tunnel, under members' addresses."""
    found = []
    nodes = documents.of_kind("node")
    members = [nodes[name] for name in cluster.spec["members"] if name in nodes]
    for text in cluster.spec.get("blocked_cidrs", ()):
        network = ipaddress.ip_network(text)
        for node in members:
            for cidr in node.spec["workload_cidrs"]:
                own = ipaddress.ip_network(cidr)
                if own.version == network.version and own.overlaps(network):
                    found.append(
                        f"{cluster.key}: blocked_cidrs has {text}, where workloads of {node.name} are ({cidr}): what "
                        "they send travels in the tunnel and is not blocked; use a policy for it"
                    )
    return found


def _blocked(documents: DocumentSet) -> Iterator[Declared]:
    for cluster, index, network in _networks(documents):
        yield cluster, f"blocked_cidrs[{index}]", network, "Block smaller networks that leave {} out."


def _of_workloads(documents: DocumentSet) -> Iterator[Declared]:
    for _, node in sorted(documents.of_kind("node").items()):
        for index, cidr in enumerate(node.spec["workload_cidrs"]):
            yield node, f"workload_cidrs[{index}]", ipaddress.ip_network(cidr), "Give workloads networks without {}."


def _networks(documents: DocumentSet) -> Iterator[Tuple[Document, int, Network]]:
    for _, cluster in sorted(documents.of_kind("cluster").items()):
        for index, cidr in enumerate(cluster.spec.get("blocked_cidrs", ())):
            yield cluster, index, ipaddress.ip_network(cidr)


def _holds(network: Network, address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.version == network.version and parsed in network
