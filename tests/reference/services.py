"""Services where packets pass: which flow to a frontend has which backend. docs/services.md says what it means."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Optional, Tuple, TypeVar

from tests.reference.reading import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP, Address, Reading

Target = Tuple[Address, int]
"""An address and a port: of a frontend, a backend, a client."""
Flow = Tuple[Target, Target, int]
"""Of a client, where it sends to, protocol."""
HOPS = 64


@dataclass
class Services:
    """choose: which of several backends a flow without one is given; any will do."""

    choose: Callable[[Reading, Tuple[Target, ...]], Target]
    frontends: Dict[Tuple[Address, int, int], Tuple[Target, ...]] = field(default_factory=dict)
    chosen: Dict[Flow, Target] = field(default_factory=dict)
    frontend_of: Dict[Flow, Target] = field(default_factory=dict)

    def backends(self, packet: Reading) -> Optional[Tuple[Target, ...]]:
        """Of the frontend that a packet goes to; None if it goes to none."""
        return self.frontends.get((packet.ends[1], packet.ports[1], packet.connection_protocol))

    def backend(self, packet: Reading, others: Tuple[Target, ...]) -> Optional[Target]:
        """Of a packet to a frontend: the one that its flow has while that is listed, or one of those that are not the
        client itself. None: there is none."""
        flow, listed = _flow(packet, 0), self.backends(packet) or ()
        known = self.chosen.get(flow)
        if known not in listed:
            known = self.choose(packet, others) if others else None
        if known:
            self.chosen[flow] = known
            self.frontend_of[flow[0], known, flow[2]] = flow[1]
        return known

    def sent_to(self, packet: Reading) -> Optional[Target]:
        """The backend that an error about an answer is for, as its receiver knows the flow. None: not balanced."""
        return self.chosen.get(_flow(packet, 0))

    def answers_for(self, packet: Reading) -> Optional[Target]:
        """The frontend that a packet of the flow's backend, or an error about the flow, is an answer of."""
        return self.frontend_of.get(_flow(packet, 1))

    def forget(self) -> None:
        """Which flow has which backend."""
        self.chosen.clear()
        self.frontend_of.clear()


def _flow(packet: Reading, client: int) -> Flow:
    ends = tuple(zip(packet.ends, packet.ports))
    return ends[client], ends[1 - client], packet.connection_protocol


def exchanged(packet: Reading, end: int, target: Target) -> Reading:
    """A packet, or an error, with another source (end 0) or destination (1) of its flow."""
    old = packet.ends[end]
    ends = _put(packet.ends, end, target[0])
    outer = (packet.source, packet.destination)
    outer = _put(outer, end, target[0]) if outer[end] == old else outer
    ports = packet.ports if packet.kind == "fragment" else _put(packet.ports, end, target[1])
    return replace(packet, source=outer[0], destination=outer[1], ends=ends, ports=ports)


Half = TypeVar("Half")


def _put(pair: Tuple[Half, Half], end: int, value: Half) -> Tuple[Half, Half]:
    return (value, pair[1]) if end == 0 else (pair[0], value)


def refusal(packet: Reading) -> Optional[Reading]:
    """What the client of a frontend without backends is told, as if by that: TCP by a reset (RFC 9293 3.10.7.1),
    else that the port is unreachable. None: nothing."""
    back = Reading(
        source=packet.destination,
        destination=packet.source,
        protocol=packet.protocol,
        hops=HOPS,
        ends=packet.ends[::-1],
        ports=packet.ports[::-1],
        connection_protocol=packet.connection_protocol,
    )
    if packet.part == "later":
        return None
    if packet.protocol == TCP:
        if packet.flags & RST or not packet.flags & (SYN | ACK):
            return None
        return replace(back, flags=RST if packet.flags & ACK else RST | ACK)
    if packet.protocol != UDP or packet.has_extensions:
        return None
    protocol, message = (ICMP, (3, 3)) if packet.source.version == 4 else (ICMP6, (1, 4))
    return replace(back, kind="related", protocol=protocol, message=message)
