"""Services at the sockets of processes: a model of which peer a socket reaches, and of what its process is told.

docs/services.md says what it means. It resolves services from documents itself and shares no code with the compiler.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Dict, FrozenSet, Iterable, List, Mapping, Optional, Tuple

from bpfleet.model.document import Document
from tests.reference.reading import Address

Target = Tuple[Address, int]
REFUSED, UNREACHABLE, NOT_CONNECTED, CONNECTED = "ECONNREFUSED", "ENETUNREACH", "ENOTCONN", "EISCONN"


def frontends_of(documents: Iterable[Document]) -> Dict[Tuple[Target, str], Tuple[Target, ...]]:
    """The backends of every frontend, by that and its protocol."""
    world = list(documents)
    found = {}
    for service in (one.spec for one in world if one.kind == "service"):
        for frontend in service["frontends"]:
            address = ipaddress.ip_address(frontend["address"])
            backends = set()
            for backend in service["backends"]:
                port = backend.get("port", frontend["port"])
                backends |= {(one, port) for one in _addresses(world, backend) if one.version == address.version}
            listed = tuple(sorted(backends, key=lambda one: (one[0].packed, one[1])))
            found[(address, frontend["port"]), frontend["protocol"]] = listed
    return found


def _addresses(world: List[Document], backend: Mapping[str, object]) -> List[Address]:
    if "address" in backend:
        return [ipaddress.ip_address(str(backend["address"]))]
    wanted = backend["labels"]
    assert isinstance(wanted, Mapping)
    labels = {one.name: one.spec["labels"] for one in world if one.kind == "identity"}
    return [
        ipaddress.ip_address(address)
        for endpoint in world
        if endpoint.kind == "endpoint" and wanted.items() <= labels[endpoint.spec["identity"]].items()
        for address in endpoint.spec["addresses"]
    ]


@dataclass(frozen=True)
class Expected:
    """error: its name; else one of those peers is reached. counted: by which reason, "" if no service is in it."""

    error: str = ""
    peers: Tuple[Target, ...] = ()
    counted: str = ""


@dataclass
class Socket:
    """kept: the backend that datagrams to a frontend have; chosen: which one of a list falls to this socket; shown: the
    frontend for which a backend stood last."""

    protocol: str
    peer: Optional[Target] = None
    kept: Dict[Target, Target] = field(default_factory=dict)
    chosen: Dict[Tuple[Target, ...], Target] = field(default_factory=dict)
    shown: Dict[Target, Target] = field(default_factory=dict)


@dataclass
class Sockets:
    """Of processes of a host. listening: where somebody answers, by protocol; what is at none of those addresses cannot
    be reached."""

    listening: FrozenSet[Tuple[Target, str]]
    frontends: Dict[Tuple[Target, str], Tuple[Target, ...]] = field(default_factory=dict)

    def connect(self, socket: Socket, target: Target) -> Expected:
        """A backend is chosen once for all of a connection."""
        if socket.protocol == "tcp" and socket.peer:
            return Expected(CONNECTED)
        return self._reach(socket, target, None)

    def send_to(self, socket: Socket, target: Target) -> Expected:
        """A datagram to a frontend goes where those before it went, as long as that is listed."""
        return self._reach(socket, target, socket.kept.get(target))

    def connected(self, socket: Socket, target: Target, peer: Target) -> None:
        """So it was."""
        socket.peer = peer
        self._reached(socket, target, peer, None)

    def sent_to(self, socket: Socket, target: Target, peer: Target) -> None:
        """So it was."""
        listed = self._reached(socket, target, peer, socket.kept.get(target))
        if listed is not None:
            socket.kept[target] = peer

    @staticmethod
    def seen(socket: Socket, peer: Target) -> Target:
        """What the process is told of a peer."""
        return socket.shown.get(peer, peer)

    @staticmethod
    def is_heard(socket: Socket, peer: Target) -> bool:
        """Whether the answer of a peer reaches the process: a connected socket hears only whom it is connected to."""
        return socket.peer in (None, peer)

    def _reach(self, socket: Socket, target: Target, kept: Optional[Target]) -> Expected:
        listed = self.frontends.get((target, socket.protocol))
        if listed is None:
            return self._beyond(socket, (target,), "")
        if not listed:
            return Expected(REFUSED, counted="service_no_backend")
        if kept in listed:
            listed = (kept,)
        elif listed in socket.chosen:
            listed = (socket.chosen[listed],)
        return self._beyond(socket, listed, "service")

    def _beyond(self, socket: Socket, peers: Tuple[Target, ...], counted: str) -> Expected:
        """What the network says. (Of several backends, all listen or none does.)"""
        if all((peer, socket.protocol) in self.listening for peer in peers):
            return Expected("", peers, counted)
        is_near = any(peers[0][0] == address for (address, _), _ in self.listening)
        return Expected(REFUSED if is_near else UNREACHABLE, counted=counted)

    def _reached(
        self, socket: Socket, target: Target, peer: Target, kept: Optional[Target]
    ) -> Optional[Tuple[Target, ...]]:
        listed = self.frontends.get((target, socket.protocol))
        if listed is not None:
            socket.shown[peer] = target
            if kept not in listed:
                socket.chosen[listed] = peer
        return listed
