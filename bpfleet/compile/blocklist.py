"""The networks that a cluster blocks, or gives to workloads: what may not be among them. How blocked ones are written
into the map."""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from typing import Iterable, Iterator, List, Sequence, Tuple, Union

from bpfleet.errors import BpfleetError, Conflict, InvalidInput
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts, Row, Table

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

Declared = Tuple[Document, str, Network, str]
"""A network: whose, in which field, and what to do where it holds {}."""

Place = Tuple[int, int, int, str, str]
"""Version, last and first address, whose it is, as it was declared. None overlaps another."""

BLOCKED_KEY = ("prefix_length", "address")
BLOCKED_VALUE = ("blocked",)

_LINK_LOCAL = ipaddress.ip_network("fe80::/10")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")


def blocked_row(cidr: str) -> Row:
    """The key of a network: IPv4 counts as mapped (address.h), so its prefixes are 96 longer."""
    network = ipaddress.ip_network(cidr)
    return (network.prefixlen + (96 if network.version == 4 else 0), str(network.network_address))


def blocked_table(cluster: Document) -> Table:
    """The map `blocked`."""
    blocked = cluster.spec.get("blocked_cidrs", ())
    return Table(BLOCKED_KEY, BLOCKED_VALUE, {blocked_row(cidr): (1,) for cidr in blocked})


def conflicts(documents: DocumentSet) -> Iterator[BpfleetError]:
    """Networks that would cut the cluster's own members off, or break the network for all."""
    nodes = documents.of_kind("node")
    clusters = documents.of_kind("cluster").values()
    members = {
        cluster.key: _places((name, nodes[name].spec["address"]) for name in cluster.spec["members"] if name in nodes)
        for cluster in clusters
    }
    for cluster, network in _networks(documents):
        if network.prefixlen == 0:
            yield InvalidInput(
                f"{network} is everybody",
                resource=cluster.key,
                field="blocked_cidrs",
                remedy="Block the networks that are meant; policies close what is not allowed.",
            )
            continue
        if network.version == 6 and network.overlaps(_MAPPED):
            yield InvalidInput(
                f"{network} holds IPv4 addresses in their mapped form",
                resource=cluster.key,
                field="blocked_cidrs",
                remedy="Write IPv4 networks as such, 192.0.2.0/24.",
            )
        if network.version == 6 and network.overlaps(_LINK_LOCAL):
            yield InvalidInput(
                f"{network} holds link-local addresses, by which a host finds its neighbours and routers",
                resource=cluster.key,
                field="blocked_cidrs",
                remedy="Leave fe80::/10 out.",
            )
        for name, address in _touched(members[cluster.key], network):
            yield Conflict(
                f"{network} holds {address}, the address of member {name}",
                resource=cluster.key,
                field="blocked_cidrs",
                remedy=f"Block smaller networks that leave {address} out.",
                details={"other": f"node/{name}"},
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


def warnings(documents: DocumentSet, cluster: Document) -> Tuple[str, ...]:
    """What is blocked and yet has no effect: workloads' packets travel in the tunnel, under members' addresses."""
    nodes = documents.of_kind("node")
    members = [nodes[name] for name in cluster.spec["members"] if name in nodes]
    own = _places((node.name, cidr) for node in members for cidr in node.spec["workload_cidrs"])
    return tuple(
        f"{cluster.key}: blocked_cidrs has {text}, where workloads of {name} are ({cidr}): what they send travels in "
        "the tunnel and is not blocked; use a policy for it"
        for text in cluster.spec.get("blocked_cidrs", ())
        for name, cidr in _touched(own, ipaddress.ip_network(text))
    )


def _places(declared: Iterable[Tuple[str, str]]) -> List[Place]:
    """Networks, or addresses, each with whose it is, in order."""
    parsed = ((ipaddress.ip_network(text), name, text) for name, text in declared)
    return sorted(
        (network.version, int(network.broadcast_address), int(network.network_address), name, text)
        for network, name, text in parsed
    )


def _touched(places: Sequence[Place], network: Network) -> List[Tuple[str, str]]:
    """The places that overlap a network, in order of name."""
    found: List[Tuple[str, str]] = []
    at = bisect_left(places, (network.version, int(network.network_address)))
    while at < len(places) and places[at][0] == network.version and places[at][2] <= int(network.broadcast_address):
        found.append(places[at][3:])
        at += 1
    return sorted(found)


def _blocked(documents: DocumentSet) -> Iterator[Declared]:
    for cluster, network in _networks(documents):
        yield cluster, "blocked_cidrs", network, "Block smaller networks that leave {} out."


def _of_workloads(documents: DocumentSet) -> Iterator[Declared]:
    for _, node in sorted(documents.of_kind("node").items()):
        for cidr in node.spec["workload_cidrs"]:
            yield node, "workload_cidrs", ipaddress.ip_network(cidr), "Give workloads networks without {}."


def _networks(documents: DocumentSet) -> Iterator[Tuple[Document, Network]]:
    for _, cluster in sorted(documents.of_kind("cluster").items()):
        for cidr in cluster.spec.get("blocked_cidrs", ()):
            yield cluster, ipaddress.ip_network(cidr)


def _holds(network: Network, address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.version == network.version and parsed in network
