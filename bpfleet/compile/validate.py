"""What documents must fulfil together. Each conflict names both sides, the field and a way out.

Single documents are checked by the model; here are only rules that need more than one of them, or the node's facts.
What is said of an item of a set names the item, not its place: documents have sets sorted, not as they were written.
"""

from __future__ import annotations

import bisect
import ipaddress
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, Union

from bpfleet.compile import blocklist
from bpfleet.compile.memo import Memo
from bpfleet.compile.service_conflicts import frontends_of_no_family, frontends_on_node, service_conflicts
from bpfleet.errors import BpfleetError, Conflict, InvalidInput, NumberTaken
from bpfleet.model.document import Document, DocumentSet, canonical_json
from bpfleet.model.identity import cluster_of
from bpfleet.model.state import Facts

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

BARE_LINK_TYPES, LOOPBACK_LINK_TYPE = (65534, 512), 772
"""Of linux/if_arp.h: devices whose packets begin with their IP header (tun and WireGuard, PPP), and the loopback
device, which has Ethernet's."""


def validate(documents: DocumentSet, facts: Optional[Facts] = None, memo: Optional[Memo] = None) -> List[BpfleetError]:
    """Every conflict among `documents`; with `facts`, also what this node's devices cannot satisfy.

    `memo`, kept from one call to the next, saves looking again at kinds of documents none of which changed.
    """
    memo = memo or Memo()
    found: List[BpfleetError] = []
    for check, kinds in _CHECKS:
        inputs = documents.fingerprint(*kinds)
        found.extend(memo.get(check, inputs, lambda check=check: tuple(check(documents))))  # type: ignore[misc]
    for check_on, kinds in _CHECKS_ON_NODE if facts is not None else ():
        known = (documents.fingerprint(*kinds), facts)
        found.extend(memo.get(check_on, known, lambda check=check_on: tuple(check(documents, facts))))  # type: ignore[misc]
    return found


def lasting_conflicts(documents: DocumentSet) -> List[BpfleetError]:
    """Those conflicts that no further document can resolve: they hold for any set that has these documents."""
    return [error for check, _ in _CHECKS if check is not frontends_of_no_family for error in check(documents)]


def _sorted(documents: DocumentSet, kind: str) -> List[Document]:
    group = documents.of_kind(kind)
    return [group[name] for name in sorted(group)]


def _clusters(documents: DocumentSet) -> Iterator[BpfleetError]:
    clusters = _sorted(documents, "cluster")
    for other in clusters[1:]:
        first = clusters[0]
        yield Conflict(
            f"the node already belongs to {first.key}",
            resource=other.key,
            remedy="A node belongs to one cluster: delete one of the two.",
            details={"other": first.key},
        )


def _identities(documents: DocumentSet) -> Iterator[BpfleetError]:
    cluster = next(iter(_sorted(documents, "cluster")), None)
    by_number: Dict[int, Document] = {}
    by_labels: Dict[str, Document] = {}
    for document in _sorted(documents, "identity"):
        number = document.spec["number"]
        other = by_number.setdefault(number, document)
        if other is not document:
            yield NumberTaken(
                f"number {number} belongs to {other.key}",
                resource=document.key,
                field="number",
                remedy="Take the next candidate number.",
                details={"other": other.key, "number": number},
            )
        twin = by_labels.setdefault(canonical_json(document.spec["labels"]), document)
        if twin is not document:
            yield Conflict(
                f"has the same labels as {twin.key}",
                resource=document.key,
                field="labels",
                remedy="Use that identity, or add a label that tells them apart.",
                details={"other": twin.key},
            )
        if cluster is not None and cluster_of(number) != cluster.spec["id"]:
            yield Conflict(
                f"number {number} is of cluster id {cluster_of(number)}, but {cluster.key} has id {cluster.spec['id']}",
                resource=document.key,
                field="number",
                remedy="Declare the identity anew for this cluster.",
                details={"other": cluster.key},
            )


def _nodes(documents: DocumentSet) -> Iterator[BpfleetError]:
    by_address: Dict[str, Document] = {}
    networks: List[Tuple[Network, Document]] = []
    for document in _sorted(documents, "node"):
        other = by_address.setdefault(document.spec["address"], document)
        if other is not document:
            yield Conflict(
                f"has the address {document.spec['address']} of {other.key}",
                resource=document.key,
                field="address",
                remedy="Give each node its own underlay address.",
                details={"other": other.key},
            )
        networks += [(ipaddress.ip_network(cidr), document) for cidr in document.spec["workload_cidrs"]]
    networks.sort(key=lambda entry: (entry[0].version, int(entry[0].network_address), entry[0].prefixlen))
    # Sorted by address, a network overlaps an earlier one exactly if it overlaps the one that reaches farthest.
    farthest: Optional[Tuple[Network, Document]] = None
    for entry in networks:
        network, document = entry
        if farthest is not None and farthest[0].version == network.version and _last(farthest[0]) >= _first(network):
            yield Conflict(
                f"{network} overlaps {farthest[0]} of {farthest[1].key}",
                resource=document.key,
                field="workload_cidrs",
                remedy="Give each node networks of its own.",
                details={"other": farthest[1].key},
            )
        if farthest is None or farthest[0].version != network.version or _last(network) > _last(farthest[0]):
            farthest = entry
    underlay = sorted((parsed.version, int(parsed), text) for text, parsed in _parsed(by_address))
    for network, document in networks:
        start = bisect.bisect_left(underlay, (network.version, _first(network), ""))
        if start < len(underlay):
            version, number, address = underlay[start]
            owner = by_address[address]
            if version == network.version and number <= _last(network):
                yield Conflict(
                    f"{network} holds the underlay address {address} of {owner.key}",
                    resource=document.key,
                    field="workload_cidrs",
                    remedy="Workload networks must not hold underlay addresses: choose another network.",
                    details={"other": owner.key},
                )


def _parsed(addresses: Iterable[str]) -> List[Tuple[str, Address]]:
    return [(text, ipaddress.ip_address(text)) for text in addresses]


def _first(network: Network) -> int:
    return int(network.network_address)


def _last(network: Network) -> int:
    return int(network.broadcast_address)


def _endpoints(documents: DocumentSet) -> Iterator[BpfleetError]:
    nodes = documents.of_kind("node")
    networks = {
        name: [ipaddress.ip_network(cidr) for cidr in node.spec["workload_cidrs"]] for name, node in nodes.items()
    }
    by_address: Dict[str, Document] = {}
    by_attachment: Dict[Tuple[str, str, str], Document] = {}
    for document in _sorted(documents, "endpoint"):
        spec = document.spec
        for address in spec["addresses"]:
            other = by_address.setdefault(address, document)
            if other is not document:
                yield Conflict(
                    f"{address} is already an address of {other.key}",
                    resource=document.key,
                    field="addresses",
                    remedy=f"Give it another address, or remove it from {other.key}.",
                    details={"other": other.key},
                )
            own = networks.get(spec["node"])
            if own is not None and not any(_holds(network, address) for network in own):
                yield Conflict(
                    f"{address} is outside the workload CIDRs of node/{spec['node']} "
                    f"({', '.join(str(network) for network in own)})",
                    resource=document.key,
                    field="addresses",
                    remedy="Take an address of the node's networks, or add a network to the node.",
                    details={"other": f"node/{spec['node']}"},
                )
        twin = by_attachment.setdefault((spec["node"], *place_of(spec["attach"])), document)
        if twin is not document:
            yield Conflict(
                f"is attached where {twin.key} is: {_attachment(spec['attach'])} on {spec['node']}",
                resource=document.key,
                field="attach",
                remedy="One endpoint for each attachment; an endpoint may have several addresses.",
                details={"other": twin.key},
            )


def _holds(network: Network, address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.version == network.version and parsed in network


def place_of(attach: Mapping[str, Any]) -> Tuple[str, str]:
    """What an attachment takes: a namespace, or a device's name, whoever makes the device."""
    return ("netns", attach["netns"]) if "netns" in attach else ("device", attach.get("tap") or attach["interface"])


def _attachment(attach: Mapping[str, str]) -> str:
    return ", ".join(f"{kind} {attach[kind]}" for kind in ("netns", "tap", "interface") if kind in attach)


_CHECKS: Tuple[Tuple[Callable[[DocumentSet], Iterator[BpfleetError]], Tuple[str, ...]], ...] = (
    (_clusters, ("cluster",)),
    (_identities, ("cluster", "identity")),
    (_nodes, ("node",)),
    (_endpoints, ("node", "endpoint")),
    (blocklist.conflicts, ("cluster", "node")),
    (service_conflicts, ("cluster", "node", "endpoint", "service")),
    (frontends_of_no_family, ("node", "service")),
)
"""Checks, each with the kinds of documents that it looks at."""


def _own_node(documents: DocumentSet, facts: Facts) -> Iterator[BpfleetError]:
    node = documents.of_kind("node").get(facts.node)
    if node is None:
        return
    known = ", ".join(sorted(facts.devices)) or "none"
    for index, device in enumerate(node.spec["devices"]):
        if device["name"] not in facts.devices:
            yield InvalidInput(
                f"the node has no device {device['name']}",
                resource=node.key,
                field=f"devices[{index}].name",
                remedy=f"Its devices: {known}.",
            )
        elif device["name"] in facts.link_types:
            yield from _other_link_layer(node, index, device, facts.link_types[device["name"]])
    held = {address for _, addresses in facts.devices.values() for address in addresses}
    if node.spec["address"] not in held:
        yield InvalidInput(
            f"the node does not have the address {node.spec['address']}",
            resource=node.key,
            field="address",
            remedy=f"Its addresses: {', '.join(sorted(held)) or 'none'}.",
        )
    for cluster in _sorted(documents, "cluster"):
        mtu = cluster.spec["routing"].get("mtu")
        limit = workload_mtu(node, facts)
        if mtu is not None and limit is not None and mtu > limit:
            yield InvalidInput(
                f"workload MTU {mtu} does not fit node/{facts.node}: its devices carry {limit} inside the tunnel",
                resource=cluster.key,
                field="routing.mtu",
                remedy=f"Use at most {limit}, or leave it out.",
            )


def _held_by_node(documents: DocumentSet, facts: Facts) -> Iterator[BpfleetError]:
    """Addresses of endpoints and other nodes that this node's devices have: its kernel keeps what is for them."""
    if facts.node not in documents.of_kind("node"):
        return
    held = {address: name for name, (_, addresses) in facts.devices.items() for address in addresses}
    for document in (*_sorted(documents, "endpoint"), *_sorted(documents, "node")):
        if document.key == f"node/{facts.node}":
            continue
        fields = [("address", document.spec.get("address"))]
        fields += [("addresses", one) for one in document.spec.get("addresses", ())]
        for field, address in fields:
            if address in held:
                yield Conflict(
                    f"{address} is an address of node/{facts.node} itself (device {held[address]})",
                    resource=document.key,
                    field=field,
                    remedy=f"Remove it from {held[address]}, or choose another.",
                    details={"other": f"node/{facts.node}"},
                )


def _other_link_layer(node: Document, index: int, device: Mapping[str, Any], link_type: int) -> Iterator[BpfleetError]:
    """What the programs cannot do at a device that is not Ethernet. bpf/include/bpfleet/frame.h says what they can."""
    name = device["name"]
    if link_type not in (*BARE_LINK_TYPES, LOOPBACK_LINK_TYPE):
        yield InvalidInput(
            f"device {name} has neither Ethernet headers nor none at all (link type {link_type})",
            resource=node.key,
            field=f"devices[{index}].name",
            remedy="Use an Ethernet device, or one without a link layer (WireGuard, tun, PPP).",
        )
    elif link_type in BARE_LINK_TYPES and device.get("xdp", "off") != "off":
        yield InvalidInput(
            f"device {name} has no link layer, and XDP looks for blocked networks in Ethernet frames",
            resource=node.key,
            field=f"devices[{index}].xdp",
            remedy=f"Set xdp: off for {name}; tc blocks there then.",
        )


def workload_mtu(node: Document, facts: Facts) -> Optional[int]:
    """The largest MTU (bytes) whose tunnel packets fit the node's underlay devices, or None if none is known.

    VXLAN adds an outer IP header (20 or 40), UDP (8), VXLAN (8) and the inner Ethernet header (14): RFC 7348.
    """
    overhead = 70 if ":" in node.spec["address"] else 50
    known = [facts.devices[device["name"]][0] for device in node.spec["devices"] if device["name"] in facts.devices]
    return min(known) - overhead if known else None


_CHECKS_ON_NODE: Tuple[Tuple[Callable[[DocumentSet, Facts], Iterator[BpfleetError]], Tuple[str, ...]], ...] = (
    (blocklist.unreachable, ("cluster", "node", "endpoint")),
    (_own_node, ("cluster", "node")),
    (_held_by_node, ("node", "endpoint")),
    (frontends_on_node, ("node", "service")),
)
"""The same of checks that look at a node's facts as well."""
