"""Frontends and backends that cannot be: what services must fulfil with each other, with nodes and with endpoints."""

from __future__ import annotations

from typing import AbstractSet, Dict, Iterator, Mapping, Optional, Sequence

from bpfleet.compile.host import is_failsafe
from bpfleet.compile.services import frontend_text
from bpfleet.errors import BpfleetError, Conflict, InvalidInput
from bpfleet.model.address_checks import nobody_s
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts

_ELSEWHERE = "Choose an address that nothing has, such as one of 10.96.0.0/16."


def service_conflicts(documents: DocumentSet) -> Iterator[BpfleetError]:
    """What services declare that others have already, or that nobody can answer for."""
    clusters = documents.of_kind("cluster")
    cluster = clusters[min(clusters)] if clusters else None
    owners: Dict[str, Document] = {}
    for kind in ("endpoint", "node"):
        for document in documents.of_kind(kind).values():
            spec = document.spec
            owners.update(dict.fromkeys(spec.get("addresses") or [spec["address"]], document))
    services = [service for _, service in sorted(documents.of_kind("service").items())]
    taken: Dict[str, Document] = {}
    frontend_addresses: Dict[str, Document] = {}
    for service in services:
        for frontend in service.spec["frontends"]:
            text, address = frontend_text(frontend), frontend["address"]
            frontend_addresses.setdefault(address, service)
            unfit = nobody_s(address)
            if unfit:
                yield InvalidInput(
                    f"{address} is {unfit}: no service can have it",
                    resource=service.key,
                    field="frontends",
                    remedy=_ELSEWHERE,
                )
            first = taken.setdefault(text, service)
            if first is not service:
                yield Conflict(
                    f"{text} is already a frontend of {first.key}",
                    resource=service.key,
                    field="frontends",
                    remedy="Give one of the two another address, port or protocol.",
                    details={"other": first.key},
                )
            owner = owners.get(address)
            if owner is not None:
                yield _owned(service, frontend, owner, cluster)
            listed = [backend.get("address") for backend in service.spec["backends"]]
            if _are_all_of_the_other(address, listed):
                yield Conflict(
                    f"{text} is of another address family than every backend ({', '.join(map(str, listed))})",
                    resource=service.key,
                    field="frontends",
                    remedy="List a backend of the frontend's family, or remove the frontend.",
                    details={"backends": listed},
                )
    for service in services:
        for backend in service.spec["backends"]:
            address = backend.get("address")
            if address is None:
                continue
            unfit = nobody_s(address)
            if unfit:
                yield InvalidInput(
                    f"{address} is {unfit}: it is no backend",
                    resource=service.key,
                    field="backends",
                    remedy="List addresses that every node can reach.",
                )
            other = frontend_addresses.get(address)
            if other is not None:
                yield Conflict(
                    f"{address} is an address of {other.key}: a service is no backend of a service",
                    resource=service.key,
                    field="backends",
                    remedy=f"List the backends of {other.key} here.",
                    details={"other": other.key},
                )


def frontends_of_no_family(documents: DocumentSet) -> Iterator[BpfleetError]:
    """Frontends whose backends, chosen by labels, can have no address of their family; until a node with such workload
    CIDRs is declared."""
    nodes = documents.of_kind("node").values()
    families = frozenset(_is_v6(cidr) for node in nodes for cidr in node.spec["workload_cidrs"])
    for _, service in sorted(documents.of_kind("service").items()):
        backends = service.spec["backends"]
        for frontend in service.spec["frontends"]:
            address = frontend["address"]
            if _are_all_of_the_other(address, [backend.get("address") for backend in backends]):
                continue  # said already
            if _is_hopeless(address, backends, families):
                yield Conflict(
                    f"{frontend_text(frontend)} is of another address family than backends can have: no node has "
                    "workload CIDRs of it",
                    resource=service.key,
                    field="frontends",
                    remedy="Give the nodes workload CIDRs of the frontend's family, or remove the frontend.",
                )


def frontends_on_node(documents: DocumentSet, facts: Facts) -> Iterator[BpfleetError]:
    """Frontends on any address that this node's devices have: what the node serves there would be out of reach."""
    held = {address: name for name, (_, addresses) in facts.devices.items() for address in addresses}
    declared = {node.spec["address"] for node in documents.of_kind("node").values()}
    for _, service in sorted(documents.of_kind("service").items()):
        for frontend in service.spec["frontends"]:
            address = frontend["address"]
            if address in held and address not in declared:
                yield Conflict(
                    f"{address} is an address of node/{facts.node} (device {held[address]})",
                    resource=service.key,
                    field="frontends",
                    remedy=_ELSEWHERE,
                    details={"other": f"node/{facts.node}"},
                )


def _owned(service: Document, frontend: Mapping[str, object], owner: Document, cluster: Optional[Document]) -> Conflict:
    protocol, port = str(frontend["protocol"]), int(str(frontend["port"]))
    why = ""
    if owner.kind == "node" and cluster is not None and is_failsafe(cluster, protocol, port):
        why = f", and {protocol} port {port} is a failsafe port: whoever connects to it would be led elsewhere"
    return Conflict(
        f"{frontend['address']} is an address of {owner.key}{why}",
        resource=service.key,
        field="frontends",
        remedy=_ELSEWHERE,
        details={"other": owner.key},
    )


def _are_all_of_the_other(address: str, listed: Sequence[Optional[str]]) -> bool:
    """Whether all backends are listed, and of the other family."""
    return bool(listed) and all(one is not None and _is_v6(one) != _is_v6(address) for one in listed)


def _is_hopeless(address: str, backends: Sequence[Mapping[str, str]], families: AbstractSet[bool]) -> bool:
    """Whether no listed backend is of the frontend's family, and no endpoint that labels select can be."""
    listed = {_is_v6(backend["address"]) for backend in backends if "address" in backend}
    return bool(backends and families) and _is_v6(address) not in listed | families


def _is_v6(address: str) -> bool:
    return ":" in address
