"""From services to the tables of frontends and backends; the same on every node of a cluster.

A list of backends is named by its content (see bpf/include/bpfleet/service.h), so frontends with the same backends
share one list, and a changed list is another one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Set, Tuple, Union

from bpfleet.compile.policy import Unmatched
from bpfleet.compile.rules import Content, assign_ids
from bpfleet.compile.selector import LabelIndex, selector_text
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.model.state import Row, ServiceSummary, Table

SERVICES_KEY = ("address", "port", "protocol")
SERVICES_VALUE = ("backends", "count")
BACKEND_KEY = ("index",)
BACKEND_VALUE = ("address", "port")
NO_BACKENDS = 0
_SHOWN = 5

AddressAndPort = Tuple[str, int]


@dataclass(frozen=True, eq=False)
class Services:
    """The tables of all services, each one in short, and what is odd. Equal only to itself, as a cheap key."""

    frontends: Table
    backends: Mapping[int, Table]
    summaries: Tuple[ServiceSummary, ...]
    warnings: Tuple[Union[str, Unmatched], ...]


class Backends:
    """The addresses behind backends of services."""

    def __init__(self, documents: DocumentSet, index: LabelIndex) -> None:
        self._index = index
        identities = documents.of_kind("identity")
        members = {name for cluster in documents.of_kind("cluster").values() for name in cluster.spec["members"]}
        members &= set(documents.of_kind("node"))
        self._by_number: Dict[int, List[str]] = {}
        for document in documents.of_kind("endpoint").values():
            known = identities.get(document.spec["identity"])
            if known is not None and document.spec["node"] in members:
                self._by_number.setdefault(known.spec["number"], []).extend(document.spec["addresses"])

    def unmatched(self, service: Document) -> Iterator[Unmatched]:
        """Said of each of a service's backends by labels that no endpoint has."""
        for backend in service.spec["backends"]:
            if "labels" in backend and not self.addresses(backend):
                text = f"{service.key}, backends: no endpoint has {selector_text(backend['labels'])}"
                yield Unmatched(text, tuple(sorted(backend["labels"].items())), of_nodes=False)

    def addresses(self, backend: Mapping[str, Any]) -> List[str]:
        """Of both families, in no particular order."""
        if "address" in backend:
            return [backend["address"]]
        found: List[str] = []
        for number in self._index.matching(backend["labels"]):
            found += self._by_number.get(number, [])
        return found

    def of_frontend(self, service: Document, frontend: Mapping[str, Any]) -> Tuple[AddressAndPort, ...]:
        """Address and port of each backend of the frontend's family, each once, sorted as the programs search them."""
        is_v6 = ":" in frontend["address"]
        found: Set[AddressAndPort] = set()
        for backend in service.spec["backends"]:
            port = backend.get("port", frontend["port"])
            found.update((address, port) for address in self.addresses(backend) if (":" in address) == is_v6)
        return tuple(sorted(found, key=lambda one: (ipaddress.ip_address(one[0]).packed, one[1])))


def build(documents: DocumentSet, index: LabelIndex) -> Services:
    """The tables of every service."""
    backends = Backends(documents, index)
    chosen: Dict[Row, Tuple[AddressAndPort, ...]] = {}
    summaries: List[ServiceSummary] = []
    warnings: List[Union[str, Unmatched]] = []
    for name, service in sorted(documents.of_kind("service").items()):
        shown = []
        warnings.extend(backends.unmatched(service))
        for frontend in service.spec["frontends"]:
            found = backends.of_frontend(service, frontend)
            chosen[frontend_key(frontend)] = found
            shown.append((frontend_text(frontend), len(found)))
            if not found:
                warnings.extend(_other_family(service, frontend, backends))
        summaries.append(ServiceSummary(name, tuple(shown)))
    contents = {found: _content(found) for found in chosen.values() if found}
    ids = assign_ids(contents.values())
    rows: Dict[Row, Row] = {
        key: (ids[contents[found]], len(found)) if found else (NO_BACKENDS, 0) for key, found in chosen.items()
    }
    lists = {ids[content]: _table(found) for found, content in contents.items()}
    return Services(
        Table(SERVICES_KEY, SERVICES_VALUE, rows), dict(sorted(lists.items())), tuple(summaries), tuple(warnings)
    )


def _other_family(service: Document, frontend: Mapping[str, Any], backends: Backends) -> Iterator[str]:
    """Said of a frontend without backends that others of its service's backends are no use for it.

    No error: which addresses the selected endpoints have depends on what has arrived, and on what was deleted since.
    """
    others = sorted({one for backend in service.spec["backends"] for one in backends.addresses(backend)})
    if others:
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
        yield (
            f"{service.key}: {frontend_text(frontend)} refuses every connection: all backends have addresses of the "
            f"other family ({shown})"
        )


def frontend_key(frontend: Mapping[str, Any]) -> Row:
    """A frontend's key in the table."""
    return (frontend["address"], frontend["port"], PROTOCOL_NUMBERS[frontend["protocol"]])


def frontend_text(frontend: Mapping[str, Any]) -> str:
    """A frontend as people write it: 10.96.0.10:80/tcp, [fd00::10]:53/udp."""
    address = f"[{frontend['address']}]" if ":" in frontend["address"] else frontend["address"]
    return f"{address}:{frontend['port']}/{frontend['protocol']}"


def _content(found: Iterable[AddressAndPort]) -> Content:
    return tuple(f"{address} {port}" for address, port in found)


def _table(found: Sequence[AddressAndPort]) -> Table:
    return Table(BACKEND_KEY, BACKEND_VALUE, {(position,): row for position, row in enumerate(found)})
