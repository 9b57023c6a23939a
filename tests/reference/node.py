"""A node as its workloads, its own stack and the network meet it: a model of what becomes of a packet at each device,
packet after packet.

It reads frames by reading.py and asks judge.py about policy. ends.py has the connections, fragments and time, host.py
the node's own policy, services.py which flow has which backend. What this adds is the way of a packet from end to end.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Callable, FrozenSet, Literal, Mapping, Optional, Tuple, Union

from tests.reference.ends import (
    EGRESS,
    HOST,
    INGRESS,
    REMOTE_NODE,
    UNATTACHED,
    WAITING,
    WORLD,
    Dropped,
    Ends,
    Found,
    Heard,
    Policies,
)
from tests.reference.expiry import is_expiry, time_exceeded
from tests.reference.host import CLIENT_PORTS, SERVER_PORTS, Host, is_dhcp, is_discovery, is_multicast
from tests.reference.reading import RST, TCP, UDP, Address, Ports, Reading, Unreadable, read
from tests.reference.services import Services, exchanged, refusal

ARP = b"\x08\x06"
TUNNEL_SOURCES = range(665, 1024)
"""The UDP ports of tunnel devices, none of which an ordinary process may send from."""
ROUTERS_ONLY = (134, 137)
"""Router advertisement and redirect: RFC 4861 4.2, 4.5."""
TUNNEL = "vxlan"
"""The device by which the stack gets what came out of the tunnel."""
FORGOTTEN = "forgotten"
"""Whatever device a part of an IPv6 packet came in by that the kernel put together and took apart again."""
On = Tuple[str, Optional[Reading]]
"""What became of a packet that passed, and how it goes on; None: untouched."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a packet: the reason it ends with ("" if another hook has the last word), every event, how many
    judgements only audit mode let pass, and how it goes on (None: untouched, or not at all)."""

    reason: str
    passes: bool
    events: Tuple[Heard, ...] = ()
    audited: int = 0
    left: Optional[Reading] = None

    @property
    def counters(self) -> Mapping[str, int]:
        """What is counted."""
        counts = {self.reason: 1, "audited": self.audited}
        return {name: count for name, count in counts.items() if name and count}


class Answered(Dropped):
    """The sender is told, unless there is no answer to make."""

    def __init__(self, reason: str, answer: Optional[Reading]) -> None:
        super().__init__(reason)
        self.answer = answer


def _any(packet: Reading, backends: Tuple[Tuple[Address, int], ...]) -> Tuple[Address, int]:
    return backends[0]


def _everything(source: Address, destination: Address) -> bool:
    return True


@dataclass
class Node:
    """This node. taps: endpoints to which a packet is only transmitted, so that it passes their own device as well.
    is_judged: a policy selects the node itself. failsafe, takes_in: see Host. gateways: the
    workloads' own, by IP version. tunnel: whether there is one."""

    ends: Ends
    tunnel_port: int
    gateways: Mapping[int, Address]
    taps: FrozenSet[str] = frozenset()
    is_judged: bool = False
    failsafe: FrozenSet[Tuple[str, int, str]] = frozenset()
    takes_in: Callable[[Address, Address], bool] = _everything
    tunnel: bool = True
    services: Services = field(default_factory=lambda: Services(_any))

    @property
    def host(self) -> Host:
        """As an end."""
        return Host(self.ends, self.tunnel_port, self.failsafe, self.takes_in)

    def change(self, policies: Policies, failsafe: FrozenSet[Tuple[str, int, str]]) -> None:
        """Other policies, from the next packet on."""
        self.ends.policies, self.failsafe = policies, failsafe
        self.ends.generation += 1

    def sends(self, name: str, frame: bytes) -> Fate:
        """A workload sends a frame."""
        return self.fate(lambda: self._sends(name, frame))

    def receives(self, name: str, frame: bytes, via: str) -> Fate:
        """The stack, or another device, sends a frame to a workload; it came in by that device, or is the host's own
        ("")."""
        return self.fate(lambda: self._receives(name, frame, via))

    def comes(self, device: str, frame: bytes) -> Fate:
        """The network sends a frame."""
        return self.fate(lambda: self._comes(device, frame))

    def leaves(self, device: str, frame: bytes, via: str) -> Fate:
        """The stack sends a frame to the network; via: see receives."""
        return self.fate(lambda: self._leaves(device, frame, via))

    def enters_tunnel(self, frame: bytes, via: str) -> Fate:
        """The stack sends a frame to workloads of other nodes; via: see receives."""
        return self.fate(lambda: self._enters_tunnel(frame, via))

    def fate(self, way: Callable[[], On]) -> Fate:
        """What becomes of a packet that goes that way."""
        self.ends.events, self.ends.audited = [], 0
        try:
            (reason, left), passes = way(), True
        except (Dropped, Unreadable) as dropped:
            reason, left, passes = str(dropped), None, False
            if isinstance(dropped, Answered):
                left, passes = dropped.answer, dropped.answer is not None
            if not reason.startswith("denied"):
                self.ends.events.append(("drop", 0, ""))
        return Fate(reason, passes, tuple(self.ends.events), self.ends.audited, left)

    def _sends(self, name: str, frame: bytes) -> On:
        if name not in self.ends.identities:
            raise Dropped("no_endpoint")
        if frame[12:14] == ARP:
            return "neighbour", None
        left = read(frame)
        packet = self.ends.begin(name, left)
        if self._is_for_gateway(name, packet):
            return "neighbour", None
        if self.ends.identities[name] == WAITING:
            raise Dropped("waiting")
        packet = self.ends.of_endpoint(packet)
        found = self.ends.find(EGRESS, packet)
        backend = self._balance(name, packet, found)
        if backend:
            packet, left = exchanged(packet, 1, backend), exchanged(left, 1, backend)
            found = self.ends.find(EGRESS, packet)
        if packet.kind != "related" and not found.is_reply:  # it is answered as it was sent
            found.translated = bool(backend)
            if found.record and found.record.at == name:
                found.record.translated = bool(backend)
        if self.ends.established(name, packet, found):
            assert found.record
            to = found.record.way
        else:
            to = self.ends.admit(name, EGRESS, packet, self._reached(name, packet), found)
        if to == HOST and self.is_judged:
            self.host.takes(packet, name)
        if to in (WORLD, HOST):
            return "to_stack", left
        if to in self.ends.identities:
            found = self.ends.find(INGRESS, packet)
            if not self.ends.established(to, packet, found):
                self.ends.admit(to, INGRESS, packet, name, found)
        if packet.hops <= 1:
            raise Answered("hop_limit", time_exceeded(frame, self.gateways[packet.source.version]))
        left = replace(left, hops=left.hops - 1)
        if to in self.taps:
            return "", left
        if to in self.ends.identities:
            return "to_endpoint", self.answered(packet, left, found)
        if not self.tunnel:
            raise Dropped("no_tunnel_device")
        return "to_tunnel", left

    def _reached(self, name: str, packet: Reading) -> str:
        """Where a workload's packet goes, if it may be one of its."""
        if is_multicast(packet.destination):
            raise Dropped("multicast")
        if self.ends.place(packet.source) != name:
            raise Dropped("spoofed_source")
        to = self.ends.place(packet.destination)
        if to.startswith(f"{UNATTACHED}/"):
            raise Dropped("no_endpoint")
        if to == WORLD and self.takes_in(packet.source, packet.destination):
            to = HOST
        if packet.protocol == UDP and packet.ports[1] == self.tunnel_port and to in (HOST, REMOTE_NODE, WORLD):
            raise Dropped("own_tunnel")
        return to

    def _balance(self, name: str, packet: Reading, found: Found) -> Optional[Tuple[Address, int]]:
        """The backend that a packet to a frontend, or an error about one's answer, is sent to. A connection to the
        address itself goes before. Raises Answered."""
        if packet.kind not in ("any", "opens", "related") or packet.connection_protocol not in (TCP, UDP):
            return None
        if found.record and not found.record.denies:
            return None
        if packet.kind == "related":
            return self.services.sent_to(packet)
        listed = self.services.backends(packet)
        if listed is None:
            return None
        if self.ends.place(packet.source) != name:
            raise Dropped("spoofed_source")
        backend = self.services.backend(packet, tuple(one for one in listed if self.ends.place(one[0]) != name))
        if not backend:
            raise Answered("service_no_backend", refusal(packet))
        return backend

    def answered(self, packet: Reading, left: Reading, found: Found) -> Reading:
        """As a client gets it: an answer of a backend comes from the frontend."""
        if not (found.is_reply and found.translated):
            return left
        frontend = self.services.answers_for(packet)
        if not frontend:
            raise Dropped("service_flow")
        return exchanged(left, 0, frontend)

    def _receives(self, name: str, frame: bytes, via: str) -> On:
        if name not in self.ends.identities:
            raise Dropped("no_endpoint")
        if frame[12:14] == ARP:
            return "neighbour", None
        left = read(frame)
        packet = self.ends.begin(name, left)
        if not via and packet.source.version == 6 and packet.part != "whole" and self.ends.place(packet.source) != HOST:
            via = FORGOTTEN
        if not via and (is_discovery(packet) or is_dhcp(packet, SERVER_PORTS)):
            return "neighbour", None
        if via == name and self._is_refusal(packet):
            return "service", None
        if via == name and is_expiry(packet) and packet.source == self.gateways[packet.source.version]:
            return "to_endpoint", None
        if self.is_judged and not via:
            self.host.sends(packet, name)
        found = self.ends.find(INGRESS, packet)
        is_from_there = found.record and self._fits(found.record.way, via)
        if not (is_from_there and self.ends.established(name, packet, found)):
            self.ends.admit(name, INGRESS, packet, self._sender(name, packet, via, found), found)
        return "to_endpoint", self.answered(packet, left, found)

    def _sender(self, name: str, packet: Reading, via: str, found: Found) -> str:
        """Who sent a packet for a workload, if it may be from there."""
        if is_multicast(packet.destination):
            raise Dropped("multicast")
        if self.ends.place(packet.destination) != name:
            raise Dropped("unknown_destination")
        place = self.ends.place(packet.source)
        if not self._fits(place, via):
            raise Dropped("spoofed_source")
        # A connection that the workload opened was judged by the address it went to, and still is.
        return place if via or (found.record and found.is_reply) else HOST

    @staticmethod
    def _fits(place: str, via: str) -> bool:
        """Whether what is sent from a place may have come in by that device."""
        if not via:
            return True
        if is_beyond_tunnel(place):
            return via == TUNNEL
        return place in (WORLD, via)

    def _is_refusal(self, packet: Reading) -> bool:
        """What a workload is told when there is no backend comes from its own device."""
        is_one = packet.kind == "related" or packet.flags & RST
        return (
            bool(is_one)
            and self.services.backends(replace(packet, ends=packet.ends[::-1], ports=packet.ports[::-1])) is not None
        )

    def _is_for_gateway(self, name: str, packet: Reading) -> bool:
        """What a workload and its gateway say to each other, whatever policy says; not what only routers say."""
        if is_dhcp(packet, CLIENT_PORTS):
            if not (_has_none(packet.source) or self.ends.place(packet.source) == name):
                return False
        elif not is_discovery(packet) or packet.message[0] in ROUTERS_ONLY:
            return False
        return _is_of_link(packet.destination) or self.ends.place(packet.destination) == HOST

    def _comes(self, device: str, frame: bytes) -> On:
        try:
            packet = self.ends.begin(device, read(frame))
        except (Unreadable, Dropped) as broken:
            ends = broken.ends if isinstance(broken, Unreadable) else read(frame).ends
            if ends:
                self._is_from_where_it_may(*ends, isinstance(broken, Unreadable) and broken.udp_ports)
            # What is not understood is dropped if it is the host's, or nobody can say whose it is.
            if self.is_judged and str(broken) != "unsupported" and (not ends or self.host.is_for_host(*ends)):
                raise
            return "underlay", None
        is_udp = packet.protocol == UDP and packet.kind != "fragment"
        is_tunnel = self._is_from_where_it_may(packet.source, packet.destination, is_udp and packet.ports)
        if self.is_judged and not is_tunnel:
            self.host.comes(packet)
        return "underlay", None

    def _is_from_where_it_may(
        self, source: Address, destination: Address, udp_ports: Union[Ports, Literal[False]]
    ) -> bool:
        """Whether a packet of the network is one of the tunnel. Raises Dropped: those come from members only, and no
        others from workloads, nor from this node to anybody else."""
        place = self.ends.place(source)
        if udp_ports and udp_ports[1] == self.tunnel_port:
            if place != REMOTE_NODE:
                raise Dropped("underlay_tunnel")
            if udp_ports[0] not in TUNNEL_SOURCES:
                raise Dropped("tunnel_source_port")
            return True
        if place not in (HOST, REMOTE_NODE, WORLD):
            raise Dropped("underlay_workload")
        if place == HOST and not source.is_link_local and not self.host.is_for_host(source, destination):
            raise Dropped("spoofed_source")
        return False

    def _leaves(self, device: str, frame: bytes, via: str) -> On:
        if not self.is_judged:
            return "underlay", None
        try:
            packet = self.ends.begin(device, read(frame))
        except (Unreadable, Dropped) as broken:
            if via or str(broken) == "unsupported":
                return "underlay", None
            raise
        return self.host.leaves(packet, via), None

    def _enters_tunnel(self, frame: bytes, via: str) -> On:
        packet = self.ends.begin(TUNNEL, read(frame))
        if is_multicast(packet.destination):
            raise Dropped("multicast")
        if self.ends.place(packet.source) != HOST:
            raise Dropped("not_host_source")
        to = self.ends.place(packet.destination)
        if not is_beyond_tunnel(to):
            raise Dropped("unknown_destination")
        if self.is_judged:
            self.host.sends(packet, to, via)
        return "to_tunnel", None


def is_beyond_tunnel(place: str) -> bool:
    """Another node, or an endpoint there."""
    return place == REMOTE_NODE or place.startswith("tunnel/")


def _has_none(source: Address) -> bool:
    """Of a client that has no address yet (RFC 2131 4.1), or only that of its link (RFC 8415 13.1)."""
    return source in ipaddress.ip_network("fe80::/10") if source.version == 6 else not int(source)


def _is_of_link(address: Address) -> bool:
    """On this link only; of IPv4 the broadcast that DHCP goes to."""
    if address.version == 4:
        return address == ipaddress.ip_address("255.255.255.255")
    return address in ipaddress.ip_network("fe80::/10") or address in ipaddress.ip_network("ff02::/16")
