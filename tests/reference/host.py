"""The node itself as an end: what its own stack sends and takes in, where a policy selects the node.

docs/policy.md and ARCHITECTURE.md (Decisions) say what it means.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Callable, FrozenSet, Tuple

from tests.reference.ends import EGRESS, HOST, INGRESS, NAMES, REMOTE_NODE, WORLD, Dropped, Ends, Found, key_of
from tests.reference.judge import ALLOW, Verdict
from tests.reference.reading import ICMP6, UDP, Address, Reading

CLIENT_PORTS = ((68, 67), (546, 547))
"""Of DHCP and DHCPv6, as a client sends: RFC 2131 4.1, RFC 8415 7.2."""
SERVER_PORTS = ((67, 68), (547, 546))
LINK_LOCAL = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))


@dataclass
class Host:
    """failsafe: (protocol, port, direction) of ports that no policy closes. takes_in: whether the stack takes in, or
    has no way on for, what goes (source, destination) to an address that nobody told bpfleet of.
    """

    ends: Ends
    tunnel_port: int
    failsafe: FrozenSet[Tuple[str, int, str]]
    takes_in: Callable[[Address, Address], bool]

    def is_for_host(self, source: Address, destination: Address) -> bool:
        """Whether the stack takes in what goes there."""
        if destination in self.ends.places:
            return self.ends.places[destination] == HOST
        return is_multicast(destination) or self.takes_in(source, destination)

    def comes(self, packet: Reading) -> None:
        """A packet of the network, no tunnel packet and no workload's. Raises Dropped."""
        if is_discovery(packet) or _is_listener_report(packet) or is_dhcp(packet, SERVER_PORTS):
            return
        found = self.ends.find(INGRESS, packet)
        if self._established(packet, found) or not self.is_for_host(packet.source, packet.destination):
            return
        if self._is_tunnel(packet, self._beyond(packet.ends[0])):
            return
        place = self._beyond(packet.source)
        if place == HOST:
            raise Dropped("spoofed_source")
        self.judges(INGRESS, packet, place, found)

    def leaves(self, packet: Reading, via: str) -> str:
        """A packet on its way to the network; via: the device that it came in by, "" if it is the host's own."""
        if is_discovery(packet) or _is_listener_report(packet) or is_dhcp(packet, CLIENT_PORTS):
            return "neighbour"
        if not self._is_tunnel(packet, self._beyond(packet.ends[1])):
            self.sends(packet, self._beyond(packet.destination), via)
        return "underlay"

    def takes(self, packet: Reading, place: str) -> None:
        """A packet for the host from a workload, here or elsewhere."""
        self.judges(INGRESS, packet, place, self.ends.find(INGRESS, packet))

    def sends(self, packet: Reading, place: str, via: str = "") -> None:
        """A packet of the stack towards a place. What it forwards is not the host's own, whatever address it has."""
        if via and self.ends.place(packet.source) != HOST:
            return
        found = self.ends.find(EGRESS, packet)
        if via:
            self.ends.pass_unjudged(packet, found, place)
        elif packet.kind == "related" and not found.record and self.ends.place(packet.ends[0]) != HOST:
            return  # as a router, about what it forwards
        else:
            self.judges(EGRESS, packet, place, found)

    def judges(self, direction: str, packet: Reading, place: str, found: Found) -> None:
        """The host's own policy, unless it has no say."""
        if self._established(packet, found):
            return
        protocol = NAMES.get(packet.connection_protocol, "")
        own, other = packet.ports[direction == INGRESS], packet.ports[1]
        if (protocol, own, INGRESS) in self.failsafe:
            if packet.kind == "opens":
                self.ends.hear(Verdict(ALLOW, 0), direction)
            self.ends.remember()
        elif direction == EGRESS and (protocol, other, EGRESS) in self.failsafe:
            is_judged = found.record and found.record.answer is not None  # that may end with the policy
            self.ends.pass_unjudged(packet, Found(key_of(EGRESS, packet)) if is_judged else found, place)
        elif packet.kind == "fragment" and direction == INGRESS:
            return  # of no use without its first one
        else:
            self.ends.admit(HOST, direction, packet, place, found)

    def _established(self, packet: Reading, found: Found) -> bool:
        """A connection that nobody judged vouches for its answers only."""
        record = found.record
        if record and record.at == HOST and record.answer is None:
            if found.is_reply:
                record.sees(packet, True, self.ends.now)
            return found.is_reply
        return self.ends.established(HOST, packet, found)

    def _is_tunnel(self, packet: Reading, place: str) -> bool:
        """Packets between members' tunnels, errors about them, and fragments that may be of them."""
        if place != REMOTE_NODE or packet.connection_protocol != UDP:
            return False
        about = packet.kind == "related" and packet.ports[0] == self.tunnel_port
        return packet.kind == "fragment" or packet.ports[1] == self.tunnel_port or about

    def _beyond(self, address: Address) -> str:
        """Who is at an address of the network. A link-local one is a neighbour's."""
        return WORLD if any(address in network for network in LINK_LOCAL) else self.ends.place(address)


def is_discovery(packet: Reading) -> bool:
    """Neighbour and router discovery, from the link itself (RFC 4861)."""
    is_untracked = packet.protocol == ICMP6 and packet.kind == "untracked"
    return is_untracked and 133 <= packet.message[0] <= 137 and packet.hops == 255


def is_dhcp(packet: Reading, ports: Tuple[Tuple[int, int], ...]) -> bool:
    """Of DHCP by those ports, of either family."""
    wanted = ports[0] if packet.source.version == 4 else ports[1]
    return packet.protocol == UDP and packet.kind == "any" and packet.ports == wanted


def is_multicast(address: Address) -> bool:
    """Multicast or broadcast."""
    return address.packed[0] >= 224 if address.version == 4 else address.packed[0] == 0xFF


def _is_listener_report(packet: Reading) -> bool:
    """Multicast listener discovery: RFC 2710, RFC 3810."""
    is_untracked = packet.protocol == ICMP6 and packet.kind == "untracked"
    return is_untracked and packet.hops == 1 and packet.message[0] in (130, 131, 132, 143)
