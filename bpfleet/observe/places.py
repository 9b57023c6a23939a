"""Who the ends of a flow are, and what each node's address map makes of them. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Any, Collection, Dict, Mapping, Optional, Tuple

from bpfleet.compile import topology
from bpfleet.errors import InvalidInput
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet
from bpfleet.observe.addresses import as_address

ENTITY_NUMBERS = {"world": identity.WORLD, "host": identity.HOST, "remote-node": identity.REMOTE_NODE}
_BROADCASTS = 224
"""First byte of IPv4 from which on an address is multicast, reserved or the broadcast."""


@dataclass(frozen=True)
class End:
    """One end: an endpoint, a node, an entity, or an address that is the world's.

    number: of its identity; of a node that of other nodes. addresses: that was asked for, or those it is known by.
    """

    text: str
    identity_name: str
    number: int
    endpoint: Optional[str] = None
    node: Optional[str] = None
    addresses: Tuple[str, ...] = ()

    @property
    def address(self) -> Optional[str]:
        """Any of its addresses will do."""
        return self.addresses[0] if self.addresses else None

    @property
    def is_node(self) -> bool:
        """Whether it is a node itself, not an endpoint there."""
        return self.node is not None and self.endpoint is None

    @property
    def families(self) -> Collection[int]:
        """IP versions that it may use."""
        return {ipaddress.ip_address(address).version for address in self.addresses} or {4, 6}

    @property
    def is_link_local(self) -> bool:
        """Whether its address is one of a link."""
        return bool(self.addresses) and ipaddress.ip_address(self.addresses[0]).is_link_local

    @property
    def is_loopback(self) -> bool:
        """Whether its address is a host's own, whichever host asks."""
        return bool(self.addresses) and ipaddress.ip_address(self.addresses[0]).is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether its address is that of nobody yet."""
        return bool(self.addresses) and ipaddress.ip_address(self.addresses[0]).is_unspecified

    @property
    def is_multicast(self) -> bool:
        """Whether its address is multicast or broadcast, which no endpoint owns."""
        if not self.addresses:
            return False
        parsed = ipaddress.ip_address(self.addresses[0])
        return parsed.is_multicast or (parsed.version == 4 and parsed.packed[0] >= _BROADCASTS)

    def to_json(self) -> Dict[str, Any]:
        """Plain data, without what is not known."""
        found = {"name": self.text, "identity_name": self.identity_name, "endpoint": self.endpoint, "node": self.node}
        return {key: value for key, value in found.items() if value is not None}


class Places:
    """The cluster's address maps, each compiled as on its node, when asked for.

    held: by node the addresses that it has besides its declared one, where that is known. shared: likewise those that
    it takes in, though they are not its own. Raises InvalidInput without a cluster: nothing is in force then.
    """

    def __init__(
        self, documents: DocumentSet, held: Mapping[str, Collection[str]], shared: Mapping[str, Collection[str]]
    ) -> None:
        clusters = documents.of_kind("cluster")
        if not clusters:
            raise InvalidInput(
                "there is no cluster document yet", field="source", remedy="Declare the cluster: nothing is in force."
            )
        self.cluster = clusters[min(clusters)]
        known = documents.of_kind("node")
        self._documents = documents
        self._nodes = {name: known[name] for name in self.cluster.spec["members"] if name in known}
        self._held, self._shared = held, shared
        self._built: Dict[str, topology.Topology] = {}

    def ends(self, source: str, destination: str) -> Tuple[End, End]:
        """Both ends by their texts. `host`, the address of a gateway, and an address that several nodes have are of the
        other end's node."""
        first, last = self.end(source, "source"), self.end(destination, "destination")
        first, last = self._at_home(first, last), self._at_home(last, first)
        return self._as_it_calls(first, last), self._as_it_calls(last, first)

    def end(self, text: str, field: str) -> End:
        """One end by its text: a name, an address or an entity. Raises InvalidInput for what is none."""
        if text in ENTITY_NUMBERS:
            return End(text, text, ENTITY_NUMBERS[text])
        address = parsed_address(text, field)
        if address is not None:
            return self._of_address(text, address)
        kind, _, name = text.rpartition("/")
        endpoint = self._documents.of_kind("endpoint").get(name) if kind in ("", "endpoint") else None
        if endpoint is not None:
            if endpoint.spec["node"] not in self._nodes:
                raise _no_member(text, endpoint.spec["node"], self.cluster, field)
            return self._endpoint(text, endpoint, tuple(endpoint.spec["addresses"]))
        if name in self._documents.of_kind("node") and kind in ("", "node"):
            if name not in self._nodes:
                raise _no_member(text, name, self.cluster, field)
            return self._node(text, name, self._nodes[name].spec["address"])
        known = ", ".join(sorted(self._documents.of_kind("endpoint"))[:20]) or "none"
        raise InvalidInput(
            f"{text!r} is no endpoint, node, address or entity",
            field=field,
            remedy=f"Endpoints: {known}. Entities: {', '.join(ENTITY_NUMBERS)}.",
        )

    def number(self, node: str, end: End) -> int:
        """The number of an end's identity as a node's address map has it."""
        if end.address is None:
            return end.number
        return int(self._of(node).addresses.rows.get((end.address,), (identity.WORLD,))[0])

    def subjects(self, node: str) -> Collection[int]:
        """Numbers of whom a node judges: the identities of its endpoints, and HOST, itself."""
        return self._of(node).subjects | {identity.HOST}

    def declared_address(self, node: str) -> str:
        """The address by which the others know a node."""
        return str(self._nodes[node].spec["address"])

    def is_undeclared(self, end: End) -> bool:
        """Whether only the node that has the end's address, if any has it, knows whose it is."""
        if end.endpoint is not None or end.address is None or end.is_link_local or end.is_multicast:
            return False
        return end.node is None or end.address != self.declared_address(end.node)

    def owner_of_network(self, address: str, but: str) -> Optional[str]:
        """The node, another than `but`, among whose workloads' networks the address is."""
        parsed = ipaddress.ip_address(address)
        found = (
            name
            for name, document in self._nodes.items()
            if name != but and any(_holds(cidr, parsed) for cidr in document.spec["workload_cidrs"])
        )
        return next(found, None)

    def blocking(self, address: str) -> Optional[str]:
        """The network among the cluster's blocked_cidrs that holds the address."""
        parsed = ipaddress.ip_address(address)
        return next((str(cidr) for cidr in self.cluster.spec.get("blocked_cidrs", ()) if _holds(cidr, parsed)), None)

    def _of_address(self, text: str, address: str) -> End:
        for document in self._documents.of_kind("endpoint").values():
            if address in document.spec["addresses"] and document.spec["node"] in self._nodes:
                return self._endpoint(text, document, (address,))
        parsed = ipaddress.ip_address(address)
        for name, document in self._nodes.items():
            is_held = address in self._held.get(name, ()) and not (parsed.is_link_local or parsed.is_loopback)
            if address == document.spec["address"] or is_held:
                return self._node(text, name, address)
        return End(text, "world", identity.WORLD, addresses=(address,))

    def _endpoint(self, text: str, document: Document, addresses: Tuple[str, ...]) -> End:
        spec = document.spec
        known = self._documents.of_kind("identity").get(spec["identity"])
        number = identity.WAITING if known is None else int(known.spec["number"])
        return End(text, spec["identity"], number, endpoint=document.name, node=spec["node"], addresses=addresses)

    @staticmethod
    def _node(text: str, name: str, address: str) -> End:
        return End(text, f"node {name}", identity.REMOTE_NODE, node=name, addresses=(address,))

    def _at_home(self, end: End, other: End) -> End:
        """An end that only its other end tells the node of: the gateway is the same address on each."""
        if other.node is None or end.endpoint is not None:
            return end
        if end.node is not None:
            is_of_both = self.is_undeclared(end) and end.address in self._held.get(other.node, ())
            return self._node(end.text, other.node, str(end.address)) if is_of_both else end
        if end.text == "host":
            return End(end.text, end.identity_name, identity.HOST, node=other.node)
        if other.endpoint is None or end.address is None:
            return end
        is_taken_in = end.address in self._shared.get(other.node, ())
        if is_taken_in or self.number(other.node, end) == identity.HOST:
            return self._node(end.text, other.node, end.address)
        return end

    def _as_it_calls(self, end: End, other: End) -> End:
        """A node that is named has an address of the family of the one that it calls, or is called from, if that is one
        of another node which no document has. By its declared one it would be known there."""
        if not (end.is_node and other.is_node and self.is_undeclared(other)):
            return end
        if set(end.families) & set(other.families) or as_address(end.text, "source") is not None:
            return end
        held = (one for one in self._held.get(str(end.node), ()) if ipaddress.ip_address(one).version in other.families)
        found = next((one for one in held if not ipaddress.ip_address(one).is_loopback), None)
        return end if found is None else replace(end, addresses=(found,))

    def _of(self, node: str) -> topology.Topology:
        if node not in self._built:
            own = self._nodes[node]
            facts = topology.declared_facts(self._documents, own, self._held.get(node, ()))
            self._built[node] = topology.build(self._documents, self.cluster, own, facts)
        return self._built[node]


def parsed_address(text: str, field: str) -> Optional[str]:
    """An address in canonical form, None for other text. InvalidInput for one that no packet has."""
    address = as_address(text, field)
    return None if address is None else str(address)


def _holds(cidr: str, address: Any) -> bool:
    network = ipaddress.ip_network(cidr)
    return bool(network.version == address.version and address in network)


def _no_member(text: str, node: str, cluster: Document, field: str) -> InvalidInput:
    what = text if text.endswith(node) else f"{text} is on {node}, which"
    return InvalidInput(
        f"{what} is no member of {cluster.key} yet: nothing of it is in force",
        field=field,
        remedy="Add the node to the cluster; until then its addresses are the world's.",
    )
