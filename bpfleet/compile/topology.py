"""Who is where: the address map, and what the node's own endpoints need in devices and routes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Collection, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.compile.rules import hash32_of_text
from bpfleet.compile.validate import workload_mtu
from bpfleet.model import identity
from bpfleet.model.address_checks import GATEWAYS
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import (
    DEVICE_PREFIX,
    TUNNEL_DEVICE,
    Adopted,
    Facts,
    Route,
    Row,
    Table,
    Tap,
    Veth,
    Vxlan,
    Waiting,
)

WORKLOAD_DEVICE = "eth0"
GATEWAY_IPV4, GATEWAY_IPV6 = GATEWAYS

HOST_PLACE = "/"
"""Stands for a device where a hook is one of the host itself: its root cgroup."""

UNKNOWN_MTU = 1500 - 70
"""For workloads while the underlay device is not there yet; put right as soon as it is."""

NO_TUNNEL = ""
NO_DEVICE = 0

ADDRESSES_KEY = ("address",)
ADDRESSES_VALUE = ("identity", "ifindex", "tunnel_endpoint")


def declared_facts(documents: DocumentSet, own: Document, held: Collection[str] = ()) -> Facts:
    """A node on which everything is there that documents name, for those who ask no host. held: addresses that it has
    besides its declared one."""
    devices: Dict[str, Tuple[int, Tuple[str, ...]]] = {one["name"]: (UNKNOWN_MTU, ()) for one in own.spec["devices"]}
    devices[own.spec["devices"][0]["name"]] = (UNKNOWN_MTU, (own.spec["address"], *held))
    return once_arrived(documents, Facts(own.name, devices))


def once_arrived(documents: DocumentSet, facts: Facts) -> Facts:
    """The node once everything is there that its endpoints are attached to."""
    attached: List[Mapping[str, Any]] = [
        one.spec["attach"] for one in documents.of_kind("endpoint").values() if one.spec["node"] == facts.node
    ]
    taps = {one["tap"] for one in attached if "tap" in one}
    devices: Dict[str, Tuple[int, Tuple[str, ...]]] = {
        one["interface"]: (UNKNOWN_MTU, ()) for one in attached if "interface" in one
    }
    devices.update({name: device for name, device in facts.devices.items() if name not in taps})
    namespaces = {*facts.namespaces, *(one["netns"] for one in attached if "netns" in one)}
    return replace(facts, devices=devices, namespaces=tuple(sorted(namespaces)))


@dataclass(frozen=True)
class LocalEndpoint:
    """An endpoint of this node that can be attached now."""

    name: str
    number: int
    device: str
    device_mac: str
    workload_mac: str
    peer_delivery: bool
    addresses: Tuple[str, ...]
    attach: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Topology:
    """What follows from cluster, nodes, identities and endpoints, without policies. Equal only to itself."""

    addresses: Table
    addresses_revision: int
    local: Tuple[LocalEndpoint, ...]
    subjects: FrozenSet[int]
    devices: Mapping[str, Any]
    routes: Mapping[Tuple[str, str], Route]
    sysctls: Mapping[str, str]
    present: FrozenSet[str]
    """Devices that are there, or will be when `devices` are made: hooks of others wait."""
    waiting: Tuple[Waiting, ...]


def derived_mac(purpose: str, name: str) -> str:
    """A locally administered unicast MAC that depends on the name alone."""
    digest = hashlib.sha256(f"{purpose}/{name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def derived_device(endpoint: str) -> str:
    """Name of the host-side device made for an endpoint."""
    return DEVICE_PREFIX + hashlib.sha256(endpoint.encode()).hexdigest()[:10]


def build(documents: DocumentSet, cluster: Document, own: Document, facts: Facts) -> Topology:
    """The topology as the node `own` sees it; `own` is a member of `cluster`."""
    nodes = documents.of_kind("node")
    members = [nodes[name] for name in cluster.spec["members"] if name in nodes]
    waiting = [
        Waiting(cluster.key, f"member {name} has no node document yet")
        for name in cluster.spec["members"]
        if name not in nodes
    ]
    rows: Dict[Row, Row] = {}
    local = _endpoints(documents, cluster, own, facts, rows, waiting)
    for member in members:
        if member is own:
            _own_addresses(own, facts, rows)
        else:
            address = member.spec["address"]
            rows[(address,)] = (identity.REMOTE_NODE, NO_DEVICE, address)
    waiting.extend(
        Waiting(own.key, f"no device {device['name']} on the node yet")
        for device in own.spec["devices"]
        if device["name"] not in facts.devices
    )
    if own.spec["address"] not in _held(facts):
        waiting.append(Waiting(own.key, f"the node does not have its address {own.spec['address']} yet"))
    mtu = cluster.spec["routing"].get("mtu") or workload_mtu(own, facts) or UNKNOWN_MTU
    devices = _devices(cluster, own, local, mtu)
    return Topology(
        addresses=Table(ADDRESSES_KEY, ADDRESSES_VALUE, rows),
        addresses_revision=hash32_of_text(repr(sorted(rows.items()))) or 1,
        local=tuple(local),
        subjects=frozenset(endpoint.number for endpoint in local) - {identity.WAITING},
        devices=devices,
        routes=_routes(own, members, local, facts),
        sysctls=_sysctls(own, facts),
        present=frozenset({HOST_PLACE, *facts.devices, *devices}),
        waiting=tuple(waiting),
    )


def _own_addresses(own: Document, facts: Facts, rows: Dict[Row, Row]) -> None:
    """Every address of the node itself, and its workloads' gateway, means its host: no way around a rule on `host`."""
    own_addresses = {own.spec["address"]}
    for _, addresses in facts.devices.values():
        own_addresses.update(addresses)
    for address in (*own_addresses, GATEWAY_IPV4, GATEWAY_IPV6):
        rows[(address,)] = (identity.HOST, NO_DEVICE, NO_TUNNEL)


def _endpoints(
    documents: DocumentSet,
    cluster: Document,
    own: Document,
    facts: Facts,
    rows: Dict[Row, Row],
    waiting: List[Waiting],
) -> List[LocalEndpoint]:
    nodes, identities = documents.of_kind("node"), documents.of_kind("identity")
    members = {name for name in cluster.spec["members"] if name in nodes}
    namespaces = frozenset(facts.namespaces)
    local: List[LocalEndpoint] = []
    for name, document in sorted(documents.of_kind("endpoint").items()):
        spec = document.spec
        if spec["node"] not in members:
            what = "is no member of the cluster" if spec["node"] in nodes else "has no document yet"
            waiting.append(Waiting(document.key, f"node {spec['node']} {what}"))
            continue
        known = identities.get(spec["identity"])
        if known is None:
            waiting.append(Waiting(document.key, f"identity {spec['identity']} has no document yet: passes nothing"))
        number: int = identity.WAITING if known is None else known.spec["number"]
        device: Any = NO_DEVICE
        tunnel_endpoint = nodes[spec["node"]].spec["address"]
        if spec["node"] == own.name:
            tunnel_endpoint = NO_TUNNEL
            missing = _missing_attachment(spec["attach"], facts, namespaces)
            if missing:
                waiting.append(Waiting(document.key, missing))
            else:
                local.append(_local(name, number, spec))
                device = local[-1].device
        for address in spec["addresses"]:
            rows[(address,)] = (number, device, tunnel_endpoint)
    return local


def _missing_attachment(attach: Mapping[str, Any], facts: Facts, namespaces: FrozenSet[str]) -> Optional[str]:
    if "netns" in attach:
        return None if attach["netns"] in namespaces else f"no network namespace {attach['netns']} on the node yet"
    if "tap" in attach:
        taken = f"the node has a device {attach['tap']} that bpfleet did not make"
        return taken if attach["tap"] in facts.devices else None
    return None if attach["interface"] in facts.devices else f"no device {attach['interface']} on the node yet"


def _local(name: str, number: int, spec: Mapping[str, Any]) -> LocalEndpoint:
    attach = spec["attach"]
    made = "netns" in attach
    return LocalEndpoint(
        name=name,
        number=number,
        device=derived_device(name) if made else attach.get("tap") or attach["interface"],
        device_mac=derived_mac("device", name) if made else "00:00:00:00:00:00",
        workload_mac=derived_mac("workload", name) if made else "00:00:00:00:00:00",
        peer_delivery=made,
        addresses=tuple(spec["addresses"]),
        attach=attach,
    )


def _devices(cluster: Document, own: Document, local: Sequence[LocalEndpoint], mtu: int) -> Dict[str, Any]:
    devices: Dict[str, Any] = {
        TUNNEL_DEVICE: Vxlan(TUNNEL_DEVICE, cluster.spec["routing"]["port"], mtu, derived_mac("tunnel", own.name))
    }
    for endpoint in local:
        if "interface" in endpoint.attach:
            devices[endpoint.device] = Adopted(endpoint.device)
            continue
        families = {":" in address for address in endpoint.addresses}
        gateways = tuple(GATEWAY_IPV6 if ipv6 else GATEWAY_IPV4 for ipv6 in sorted(families))
        if "tap" in endpoint.attach:
            devices[endpoint.device] = Tap(
                name=endpoint.device,
                mac=derived_mac("device", endpoint.name),
                mtu=mtu,
                owner=endpoint.attach.get("owner", ""),
                group=endpoint.attach.get("group", ""),
                multi_queue=endpoint.attach.get("multi_queue", False),
                gateways=gateways,
            )
            continue
        devices[endpoint.device] = Veth(
            name=endpoint.device,
            mac=endpoint.device_mac,
            mtu=mtu,
            netns=endpoint.attach["netns"],
            peer_name=WORKLOAD_DEVICE,
            peer_mac=endpoint.workload_mac,
            peer_addresses=endpoint.addresses,
            gateways=gateways,
        )
    return devices


def _routes(
    own: Document, members: Sequence[Document], local: Sequence[LocalEndpoint], facts: Facts
) -> Dict[Tuple[str, str], Route]:
    """Routes for the host's own traffic; workloads' packets are forwarded by the programs.

    A route with the node's address as its source waits for that address: at boot it comes after the device.
    """
    held = _held(facts)
    routes = []
    for endpoint in local:
        for address in endpoint.addresses:
            routes.append(Route(f"{address}/{128 if ':' in address else 32}", endpoint.device))
    for member in members:
        if member is not own:
            routes.extend(_tunnel_route(own, cidr) for cidr in member.spec["workload_cidrs"])
    return {
        (route.destination, route.device): route for route in routes if route.source is None or route.source in held
    }


def _held(facts: Facts) -> Set[str]:
    return {address for _, addresses in facts.devices.values() for address in addresses}


def _tunnel_route(own: Document, cidr: str) -> Route:
    """The far end accepts only the address that the cluster knows this node by, so that is the source."""
    address = own.spec["address"]
    return Route(cidr, TUNNEL_DEVICE, address if (":" in address) == (":" in cidr) else None)


def _sysctls(own: Document, facts: Facts) -> Dict[str, str]:
    """Forwarding, for the families that workloads have.

    IPv6 forwarding makes a host deaf to router advertisements unless accept_ra is 2, so that comes first: a host that
    got its default route that way must keep it.
    """
    sysctls: Dict[str, str] = {}
    cidrs = own.spec["workload_cidrs"]
    if any(":" not in cidr for cidr in cidrs):
        sysctls["net/ipv4/ip_forward"] = "1"
    if any(":" in cidr for cidr in cidrs):
        for device in own.spec["devices"]:
            if device["name"] in facts.devices:
                sysctls[f"net/ipv6/conf/{device['name']}/accept_ra"] = "2"
        sysctls["net/ipv6/conf/all/forwarding"] = "1"
    return sysctls
