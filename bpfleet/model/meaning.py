"""What the peers and ports of a checked rule mean, the same for every way of writing the same, so as to be compared.

Entities and networks are compared by name: that two of them may cover a third is not looked at.
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

PORT_PROTOCOLS = ("tcp", "udp", "sctp")
"""Protocols that have ports; `any` with a port, or a port without protocol, means all of these."""

PeerMeaning = Tuple[str, Any]
Range = Tuple[str, int, int]
"""A protocol, and the first and last of its ports, or of its messages as type << 8 | code."""

EVERYBODY: PeerMeaning = ("entity", "all")
NOBODY: PeerMeaning = ("entity", "none")
_WHOLE = (-1, 0xFFFF)
"""All of a protocol, also packets that have no port; that is more than every port."""
EVERYTHING: Range = ("any", *_WHOLE)


def of_peer(peer: Mapping[str, Any]) -> PeerMeaning:
    """Whom one peer means. A label is an expression of one value; the order of expressions says nothing."""
    if "labels" in peer:
        asked = {(key, "In", (value,)) for key, value in peer["labels"].items()}
        asked |= {(one["key"], one["operator"], tuple(one.get("values", ()))) for one in peer.get("expressions", ())}
        return "labels", frozenset(asked)
    if "cidr" in peer:
        return "cidr", (peer["cidr"], *peer.get("except", ()))
    kind = "entity" if "entity" in peer else "cidr_group"
    return kind, peer[kind]


def of_peers(peers: Optional[Sequence[Mapping[str, Any]]]) -> FrozenSet[PeerMeaning]:
    """Whom all peers of a rule mean; None where it has no `peers`."""
    if peers is None:
        return frozenset([EVERYBODY])
    found = frozenset(map(of_peer, peers)) - {NOBODY}
    return frozenset([EVERYBODY]) if EVERYBODY in found else found


def of_port(port: Mapping[str, Any]) -> FrozenSet[Range]:
    """What one entry of a rule's ports means."""
    protocol = port["protocol"]
    if "type" in port:
        first = port["type"] << 8 | port.get("code", 0)
        return frozenset([(protocol, first, first if "code" in port else first | 0xFF)])
    if "port" not in port:
        return frozenset([(protocol, *_WHOLE)])
    protocols = PORT_PROTOCOLS if protocol == "any" else (protocol,)
    return frozenset((one, port["port"], port.get("end_port", port["port"])) for one in protocols)


def of_ports(ports: Optional[Sequence[Mapping[str, Any]]]) -> FrozenSet[Range]:
    """What all ports of a rule mean, ranges that touch as one; None where it has no `ports`."""
    if ports is None:
        return frozenset([EVERYTHING])
    found = frozenset().union(*map(of_port, ports)) if ports else frozenset()
    if EVERYTHING in found:
        return frozenset([EVERYTHING])
    merged: Dict[str, List[Tuple[int, int]]] = {}
    for protocol, first, last in sorted(found):
        known = merged.setdefault(protocol, [])
        if known and first <= known[-1][1] + 1:
            known[-1] = (known[-1][0], max(last, known[-1][1]))
        else:
            known.append((first, last))
    return frozenset((protocol, *ends) for protocol, known in merged.items() for ends in known)
