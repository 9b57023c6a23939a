"""What comes out of the tunnel: a model of which packets of other nodes a node believes, and of what becomes of those.

node.py has all that a packet meets besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, FrozenSet, Mapping

from tests.reference.ends import HOST, INGRESS, REMOTE_NODE, UNATTACHED, Dropped
from tests.reference.host import is_multicast
from tests.reference.node import TUNNEL, Fate, Node, On, is_beyond_tunnel
from tests.reference.reading import UDP, Address, Reading, read


@dataclass
class Tunnel:
    """The tunnel device of a node. members: of each address beyond it, the outer address of the node that has it.
    numbers: of who is there, by place. reserved: numbers that nobody may send as."""

    node: Node
    members: Dict[Address, Address]
    numbers: Mapping[str, int]
    reserved: FrozenSet[int]

    def arrives(self, outer: Address, number: int, frame: bytes) -> Fate:
        """A node, as its outer source address says, sends a frame as an identity."""
        return self.node.fate(lambda: self._arrives(outer, number, frame))

    def _arrives(self, outer: Address, number: int, frame: bytes) -> On:
        ends, node = self.node.ends, self.node
        left = read(frame)
        packet = ends.begin(TUNNEL, left)
        self._believe(packet, outer, number)
        if is_multicast(packet.destination):
            raise Dropped("multicast")
        sender, to = ends.place(packet.source), ends.place(packet.destination)
        if sender != REMOTE_NODE:
            packet = ends.of_endpoint(packet)
        if to == HOST:
            if packet.protocol == UDP and packet.ports[1] == node.tunnel_port:
                raise Dropped("own_tunnel")
            if node.is_judged:
                node.host.takes(packet, sender)
            return "to_stack", None
        if to.startswith(f"{UNATTACHED}/"):
            raise Dropped("no_endpoint")
        if to not in ends.identities:
            raise Dropped("unknown_destination")
        found = ends.find(INGRESS, packet)
        if not ends.established(to, packet, found):
            ends.admit(to, INGRESS, packet, sender, found)
        if to in node.taps:
            return "", left
        return "to_endpoint", node.answered(packet, left, found)

    def _believe(self, packet: Reading, outer: Address, number: int) -> None:
        """Only a member, only about its own addresses, only as who has them."""
        if number in self.reserved:
            raise Dropped("tunnel_reserved")
        if self.node.ends.place(outer) != REMOTE_NODE:
            raise Dropped("tunnel_unknown_node")
        place = self.node.ends.place(packet.source)
        if not is_beyond_tunnel(place) or self.members[packet.source] != outer:
            raise Dropped("tunnel_forged_source")
        if self.numbers[place] != number:
            raise Dropped("tunnel_forged_identity")
