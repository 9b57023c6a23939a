"""The way of a flow's first packet: which hooks it meets on which nodes, who judges it there, and what ends it besides
policy. The programs' order (bpf/*.bpf.c), from what is declared. Pure.

What a message cannot say of itself is taken as its sender has it: discovery comes from the link, DHCP by its own ports.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, NoReturn, Protocol

from bpfleet.compile.host import is_failsafe
from bpfleet.compile.lookup import Question
from bpfleet.model.address_checks import TO_DHCP_CLIENT, TO_DHCP_SERVER
from bpfleet.model.identity import HOST, REMOTE_NODE, WAITING, WORLD
from bpfleet.model.resources import PROTOCOL_NUMBERS
from bpfleet.observe.events import FAILSAFE, ITSELF
from bpfleet.observe.places import End, Places

EGRESS, INGRESS = "egress", "ingress"
_DISCOVERY = range(133, 138)
"""ICMPv6 types of neighbour and router discovery (RFC 4861)."""
_ROUTERS_ONLY = (134, 137)
"""Of those, router advertisement and redirect."""
_LISTENER_REPORTS = (130, 131, 132, 143)
"""Of multicast listener discovery (RFC 2710, RFC 3810)."""
_ECHO_REPLIES = {"icmp": (0, 0), "icmpv6": (129, 0)}
_BROADCAST = "255.255.255.255"
_OF_LINK = (ipaddress.ip_network("fe80::/10"), ipaddress.ip_network("ff02::/16"))

_GATEWAY = "neighbour discovery and DHCP between an endpoint and its gateway are not judged"
_LINK = "discovery, listener reports and DHCP of a host are not judged"
_TUNNEL = (
    "a tunnel's packets between members are not judged; any others to its port are dropped there (tunnel_source_port)"
)
_ROUTED = "{node} has a route to {address}: without one its kernel keeps the packet, and policy judges it as the host's"


@dataclass(frozen=True)
class Packet:
    """A flow's first packet: its protocol, and its destination port or its message's type and code."""

    protocol: str
    asked: Mapping[str, int]

    @property
    def port(self) -> int:
        """As lookup.Question has it."""
        return self.asked.get("port", self.asked.get("type", 0) << 8 | self.asked.get("code", 0))

    @property
    def is_reply(self) -> bool:
        """Whether it can only be an answer."""
        return _ECHO_REPLIES.get(self.protocol) == (self.asked.get("type"), self.asked.get("code"))

    @property
    def is_discovery(self) -> bool:
        """Whether it is of neighbour or router discovery."""
        return self.protocol == "icmpv6" and self.asked["type"] in _DISCOVERY

    @property
    def is_listener_report(self) -> bool:
        """Whether it says who listens to what."""
        return self.protocol == "icmpv6" and self.asked["type"] in _LISTENER_REPORTS

    def is_to(self, port: int) -> bool:
        """Whether it goes to that UDP port."""
        return self.protocol == "udp" and self.asked.get("port") == port


class Judge(Protocol):
    """Policies as compiled for a node; a subject is an identity's number, or HOST."""

    def judge(self, node: str, subject: int, question: Question) -> Dict[str, Any]:
        """What the subject's policies there say of a new connection, in the words of wire.Judged."""

    def is_open(self, node: str, subject: int) -> bool:
        """Whether no policy there has a say about the subject."""


class _Dropped(Exception):
    """The packet goes no further, whatever policy says."""


class Way:
    """A packet from one end to another; one of them at least is an endpoint or a node."""

    def __init__(self, places: Places, judge: Judge, source: End, destination: End, packet: Packet) -> None:
        self._places, self._judge = places, judge
        self._source, self._destination, self._packet = source, destination, packet
        self._tunnel_port: int = places.cluster.spec["routing"]["port"]
        self._judged: List[Dict[str, Any]] = []

    def judged(self) -> List[Dict[str, Any]]:
        """wire.Judged of each end in turn. What policy denies is followed all the same, as if it had passed."""
        try:
            if self._source.endpoint is not None:
                self._from_endpoint()
            elif self._source.node is not None:
                self._from_node()
            else:
                self._from_network()
        except _Dropped:
            pass
        return self._judged

    def _from_endpoint(self) -> None:
        source, destination, node = self._source, self._destination, str(self._source.node)
        if source.endpoint == destination.endpoint:
            self._passes(EGRESS, source, ITSELF)
            return self._passes(INGRESS, destination, ITSELF)
        number = self._number(node, destination)
        if (
            number == WORLD and destination.is_link_local and destination.families == {6}
        ):  # the stack forwards none such
            number, destination = HOST, replace(destination, node=node)
        if self._is_for_gateway(number):
            return self._passes(EGRESS, source, _GATEWAY)
        self._has_identity(EGRESS, source)
        if destination.is_multicast:
            self._drops(EGRESS, source, "multicast", "multicast and broadcast, which no endpoint may send")
        if self._packet.is_to(self._tunnel_port) and number in (HOST, REMOTE_NODE, WORLD):
            self._drops(EGRESS, source, "own_tunnel", "to the tunnel port endpoints may send to each other only")
        routed = {}
        if number == WORLD and destination.address is not None and destination.node is None:
            routed = {"assumes": _ROUTED.format(node=node, address=destination.address)}
        self._policy(EGRESS, source, number, routed)
        if destination.endpoint is not None:
            return self._policy(INGRESS, destination, self._number(str(destination.node), source))
        if number in (HOST, REMOTE_NODE):
            if destination.node is not None:
                self._host(INGRESS, destination, self._number(destination.node, source))
            return None
        self._is_somebody("not_host_source", node)
        if destination.node is not None:
            declared = self._places.declared_address(destination.node)
            why = (
                f"{destination.node} is known by {declared} alone: what an endpoint sends to another of its addresses "
            )
            why += "goes there bare"
            self._drops(INGRESS, destination, "underlay_workload", why)

    def _from_node(self) -> None:
        source, destination, node = self._source, self._destination, str(self._source.node)
        if destination.endpoint is not None:
            return self._to_endpoint_from_node(node)
        number = self._beyond(node, destination)
        if number == WORLD:
            self._is_somebody("unknown_destination", node)
        if self._is_link_traffic(TO_DHCP_SERVER):
            self._passes(EGRESS, source, _LINK)
        elif self._packet.is_to(self._tunnel_port) and number == REMOTE_NODE:
            self._passes(EGRESS, source, _TUNNEL)
        else:
            self._host(EGRESS, source, number)
        if destination.node is not None:
            self._arrives()

    def _to_endpoint_from_node(self, node: str) -> None:
        source, destination = self._source, self._destination
        is_here = destination.node == node
        if is_here and (self._packet.is_discovery or self._is_dhcp(TO_DHCP_CLIENT)):
            self._passes(EGRESS, source, _GATEWAY)
            return self._passes(INGRESS, destination, _GATEWAY)
        self._host(EGRESS, source, self._number(node, destination))
        if not is_here:
            declared = self._places.declared_address(node)
            is_known = source.address in (None, declared)
            if not (is_known and set(source.families) & set(destination.families)):
                why = f"through the tunnel {node} is believed as {declared} alone"
                self._drops(INGRESS, destination, "tunnel_forged_source", why)
        self._policy(INGRESS, destination, HOST if is_here else REMOTE_NODE)

    def _from_network(self) -> None:
        if self._source.number == REMOTE_NODE and self._destination.endpoint is not None:
            return self._policy(INGRESS, self._destination, REMOTE_NODE)  # through the tunnel
        self._arrives()

    def _arrives(self) -> None:
        """By a device of the destination's node, from the network."""
        source, destination = self._source, self._destination
        number = self._beyond(str(destination.node), source)
        blocking = self._places.blocking(source.address) if source.address is not None else None
        if blocking is not None:
            self._drops(INGRESS, destination, "blocked", f"the cluster blocks {blocking}")
        if self._packet.is_to(self._tunnel_port):
            if number != REMOTE_NODE:
                self._drops(INGRESS, destination, "underlay_tunnel", "only members may send to the tunnel port")
            return self._passes(INGRESS, destination, _TUNNEL)
        if destination.endpoint is not None:
            return self._policy(INGRESS, destination, number)
        if self._is_link_traffic(TO_DHCP_CLIENT):
            return self._passes(INGRESS, destination, _LINK)
        return self._host(INGRESS, destination, number)

    # What is asked on the way

    def _number(self, node: str, end: End) -> int:
        """Of an end's identity, as that node sees it."""
        return HOST if end.endpoint is None and end.node == node else self._places.number(node, end)

    def _beyond(self, node: str, end: End) -> int:
        """Of one on the network of that node, where a link-local address is a neighbour's."""
        return WORLD if end.is_link_local else self._number(node, end)

    def _is_for_gateway(self, number: int) -> bool:
        address = self._destination.address
        is_near = number == HOST or (address is not None and _is_of_link(address))
        is_discovery = self._packet.is_discovery and self._packet.asked["type"] not in _ROUTERS_ONLY
        return is_near and (is_discovery or self._is_dhcp(TO_DHCP_SERVER))

    def _is_link_traffic(self, dhcp: Mapping[int, int]) -> bool:
        return self._packet.is_discovery or self._packet.is_listener_report or self._is_dhcp(dhcp)

    def _is_dhcp(self, ports: Mapping[int, int]) -> bool:
        """Of a family that both ends have."""
        families = set(self._source.families) & set(self._destination.families)
        return any(self._packet.is_to(ports[family]) for family in families)

    def _is_somebody(self, reason: str, node: str) -> None:
        """What goes to the workloads of another node goes into the tunnel, which takes nothing for nobody."""
        address = self._destination.address
        owner = self._places.owner_of_network(address, node) if address is not None else None
        if owner is not None:
            why = f"{address} is among the workloads of {owner}, and no endpoint there has it"
            self._drops(EGRESS, self._source, reason, why)

    # What is said there

    def _host(self, direction: str, end: End, peer: int) -> None:
        """The node's own policies, unless they have no say."""
        node, packet = str(end.node), self._packet
        if is_failsafe(self._places.cluster, packet.protocol, packet.port, direction):
            self._passes(direction, end, FAILSAFE)
        elif self._judge.is_open(node, HOST):
            self._says(direction, end, self._judge.judge(node, HOST, self._question(direction, peer)))
        else:
            self._policy(direction, end, peer)

    def _policy(self, direction: str, end: End, peer: int, besides: Mapping[str, str] = MappingProxyType({})) -> None:
        self._has_identity(direction, end)
        if self._packet.is_reply:
            self._drops(direction, end, "no_connection", "a reply passes with its connection only")
        subject = HOST if end.endpoint is None else end.number
        said = self._judge.judge(str(end.node), subject, self._question(direction, peer))
        self._says(direction, end, {**said, **besides})

    def _question(self, direction: str, peer: int) -> Question:
        other = self._destination if direction == EGRESS else self._source
        return Question(direction, peer, PROTOCOL_NUMBERS[self._packet.protocol], self._packet.port, other.address)

    def _has_identity(self, direction: str, end: End) -> None:
        if end.number == WAITING:
            self._drops(direction, end, "waiting", "its identity has no document yet: it passes nothing")

    def _passes(self, direction: str, end: End, why: str) -> None:
        self._says(direction, end, {"verdict": "allowed", "rule": why})

    def _drops(self, direction: str, end: End, reason: str, why: str) -> NoReturn:
        self._says(direction, end, {"verdict": "dropped", "reason": reason, "rule": why})
        raise _Dropped

    def _says(self, direction: str, end: End, answer: Mapping[str, Any]) -> None:
        self._judged.append({"direction": direction, "node": end.node, "subject": end.identity_name, **answer})


def _is_of_link(address: str) -> bool:
    """On this link only; of IPv4 the broadcast that DHCP goes to."""
    parsed = ipaddress.ip_address(address)
    return address == _BROADCAST or any(parsed in network for network in _OF_LINK)
