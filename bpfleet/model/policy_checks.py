"""What the fields of a selector, a peer, a port and a rule must fulfil together.

What can match nothing, or says two things at once, is a mistake of whoever wrote it, and is refused where it was
written rather than enforced as it stands.
"""

from __future__ import annotations

import ipaddress
from typing import AbstractSet, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.model import meaning
from bpfleet.model.address_checks import GATEWAYS, NETWORKS
from bpfleet.model.schema import Check, Problem, contains_unknown

IN, NOT_IN, EXISTS, DOES_NOT_EXIST = OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")

_DIRECTIONS = ("ingress", "egress")
_FAMILY_OF = {"icmp": 4, "icmpv6": 6}
_GROUPS = tuple(network for kind, network in NETWORKS if kind in ("multicast", "broadcast"))
"""From which nothing comes (RFC 1122 3.2.1.3, RFC 4291 2.7)."""
_NOT_FOR_ENDPOINTS = tuple(map(ipaddress.ip_network, ("224.0.0.0/3", "ff00::/8")))
"""What the programs take for it (address_is_multicast in bpf/include/bpfleet/address.h): no endpoint may send there."""
_LOOPBACK = tuple(network for kind, network in NETWORKS if kind == "loopback")
_UNSPECIFIED = tuple(network for kind, network in NETWORKS if kind == "unspecified")
_GATEWAY = (ipaddress.ip_network(GATEWAYS[0]),)
"""IPv6's may be another node's beyond an endpoint's link."""
_LINK = (ipaddress.ip_network("fe80::/10"),)
"""Never routed (RFC 4291 2.5.6). IPv4's 169.254.0.0/16 is by Linux, to where clouds have their metadata."""


def expression(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """In and NotIn compare with values, Exists and DoesNotExist with none."""
    operator, values = spec["operator"], spec.get("values")
    if contains_unknown(operator) or contains_unknown(values):
        return
    if operator in (IN, NOT_IN) and not values:
        yield Problem("values", f"is needed by {operator}", "Give at least one value, or use Exists or DoesNotExist.")
    if operator in (EXISTS, DOES_NOT_EXIST) and values is not None:
        yield Problem("values", f"cannot be given with {operator}", "Leave it out, or use In or NotIn.")


class _Key:
    """What a selector asks of one label so far. `values`: None for any."""

    def __init__(self) -> None:
        self.values: Optional[Set[str]] = None
        self.refused: Set[str] = set()
        self.must_exist = False
        self.must_not = False

    def contradicts(self) -> bool:
        exists = self.must_exist or self.values is not None
        return (exists and self.must_not) or (self.values is not None and not self.values - self.refused)


def selector(*fields: str) -> Check:
    """The check of a selector whose labels are in one of the fields: its expressions must leave something to match."""

    def check(spec: Mapping[str, Any]) -> Iterator[Problem]:
        labels: Mapping[str, str] = next((spec[field] for field in fields if spec.get(field)), {})
        expressions: Sequence[Mapping[str, Any]] = spec.get("expressions") or ()
        if contains_unknown(labels) or contains_unknown(expressions):
            return
        keys: Dict[str, _Key] = {}
        for key, value in labels.items():
            keys.setdefault(key, _Key()).values = {value}
        for index, one in enumerate(expressions):
            known = keys.setdefault(one["key"], _Key())
            values = set(one.get("values") or ())
            if one["operator"] == IN:
                known.values = values if known.values is None else known.values & values
            elif one["operator"] == NOT_IN:
                known.refused |= values
            elif one["operator"] == EXISTS:
                known.must_exist = True
            else:
                known.must_not = True
            if known.contradicts():
                what = f"contradicts what is asked of label {one['key']} before it: nothing can match"
                yield Problem(f"expressions[{index}]", what, "Remove one of the two.")
                return

    return check


def peer_networks(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Each exception lies inside the CIDR, and they leave something of it."""
    if contains_unknown(spec.get("cidr")) or contains_unknown(spec.get("except")) or spec.get("except") is None:
        return
    whole: Any = ipaddress.ip_network(spec["cidr"])
    parts: List[Any] = []
    for text in spec["except"]:  # sorted by now: its place is no longer that where it was written
        part: Any = ipaddress.ip_network(text)
        if part.version != whole.version or not part.subnet_of(whole):
            yield Problem("except", f"{text} is not inside {whole}", f"Use a part of {whole}, or remove it.")
            return
        parts.append(part)
    if list(ipaddress.collapse_addresses(parts)) == [whole]:
        yield Problem("except", f"leaves nothing of {whole}", "Remove the peer, or except less of it.")


def port_range(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """A range does not end before it begins."""
    first, last = spec.get("port"), spec.get("end_port")
    if isinstance(first, int) and isinstance(last, int) and last < first:
        yield Problem("end_port", f"{last} comes before port {first}", "Give the higher of the two as end_port.")


def families(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """A rule whose peers are CIDRs of one family has no ICMP of the other."""
    peers, ports = spec.get("peers"), spec.get("ports")
    if not peers or contains_unknown(peers) or contains_unknown(ports) or any("cidr" not in peer for peer in peers):
        return
    yield from icmp_of_no_family(ports, {version_of(peer["cidr"]) for peer in peers})


def version_of(cidr: str) -> int:
    """Of IP."""
    return 6 if ":" in cidr else 4


def icmp_of_no_family(ports: Optional[Sequence[Mapping[str, Any]]], versions: AbstractSet[int]) -> Iterator[Problem]:
    """The first of a rule's ports that is ICMP of the family which none of its networks, of these versions, has."""
    if len(versions) != 1:
        return
    (version,) = versions
    for index, port in enumerate(ports or ()):
        protocol = port["protocol"]
        wanted = _FAMILY_OF.get(protocol)
        if wanted not in (None, version):
            what = f"{protocol} cannot come from peers that are IPv{version} networks only"
            yield Problem(f"ports[{index}].protocol", what, "Remove it, or add a network of its family.")
            return


def says_something(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """A policy has rules, or closes a direction, as an empty list of them does unless default_deny says otherwise."""
    switch = spec.get("default_deny", {})
    if contains_unknown(switch) or any(spec.get(direction) for direction in _DIRECTIONS):
        return
    if any(switch.get(direction, direction in spec) for direction in _DIRECTIONS):
        return
    remedy = "Give rules; an empty list of them, or default_deny, closes a direction."
    yield Problem("ingress", "says nothing: the policy has no rules in either direction and closes none", remedy)


def nothing_twice(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """No peer and no port of a rule means the same as another, however the two are written."""
    for direction in _DIRECTIONS:
        rules = spec.get(direction) or ()
        for number, rule in enumerate(rules if not contains_unknown(rules) else ()):
            for name, meaning_of in _MEANINGS.items():
                first: Dict[Any, int] = {}
                for index, item in enumerate(rule.get(name, ())):
                    known = first.setdefault(meaning_of(item), index)
                    if known != index:
                        where = f"{direction}[{number}].{name}"
                        what = f"means the same as {where}[{known}]"
                        yield Problem(f"{where}[{index}]", what, "Remove one of the two.")


_MEANINGS: Dict[str, Callable[[Mapping[str, Any]], Any]] = {"peers": meaning.of_peer, "ports": meaning.of_port}


def rules_apart(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """No rule says what another of its direction says, nor denies the very same that another allows, in any words."""
    for direction in _DIRECTIONS:
        rules = spec.get(direction) or ()
        first: Dict[Any, int] = {}
        for index, rule in enumerate(rules if not contains_unknown(rules) else ()):
            about = meaning.of_peers(rule.get("peers")), meaning.of_ports(rule.get("ports"))
            known = first.setdefault(about, index)
            if known == index:
                continue
            if rules[known]["action"] == rule["action"]:
                what = f"says what {direction}[{known}] says"
            else:
                what = (
                    f"contradicts {direction}[{known}]: one allows what the other denies, and a deny beats every allow"
                )
            yield Problem(f"{direction}[{index}]", what, "Remove one of the two.")


def host_of_nodes(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """In a policy of nodes, `host` would be the node itself, to which nothing is judged."""
    if "node_selector" not in spec:
        return
    for direction in _DIRECTIONS:
        rules = spec.get(direction) or ()
        for number, rule in enumerate(rules if not contains_unknown(rules) else ()):
            for index, peer in enumerate(rule.get("peers") or ()):
                if peer.get("entity") == "host":
                    path = f"{direction}[{number}].peers[{index}].entity"
                    what = "host is the node itself, and what a node says to itself is not judged"
                    yield Problem(path, what, "Remove the peer; other nodes are remote-node.")
                    return


def networks_of_somebody(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """No CIDR peer is a network that means nobody, nor is what its exceptions leave."""
    for direction in _DIRECTIONS:
        rules = spec.get(direction) or ()
        for number, rule in enumerate(rules if not contains_unknown(rules) else ()):
            for index, peer in enumerate(rule.get("peers") or ()):
                if "cidr" not in peer:
                    continue
                where = f"{direction}[{number}].peers[{index}]"
                network, side = ipaddress.ip_network(peer["cidr"]), (direction, "node_selector" in spec)
                why = nobodys(network, *side)
                if why:
                    yield Problem(f"{where}.cidr", why, "Remove the peer.")
                elif "except" in peer and _leaves_nobody(network, peer["except"], *side):
                    what = f"leaves of {network} only addresses that mean nobody, such as loopback or multicast"
                    yield Problem(f"{where}.except", what, "Remove the peer, or except less of it.")


def nobodys(network: Any, direction: str, of_nodes: bool) -> str:
    """Why a parsed network as a peer of nodes or endpoints means nobody, whatever policy says; "" if it may not."""
    for networks, what in _nobodys(direction, of_nodes):
        if any(network.version == one.version and network.subnet_of(one) for one in networks):
            return f"{network} {what}, whatever policy says"
    return ""


def _leaves_nobody(network: Any, parts: Sequence[str], direction: str, of_nodes: bool) -> bool:
    """Whether the exceptions and what means nobody anyway make up the network."""
    nobody = [one for networks, _ in _nobodys(direction, of_nodes) for one in networks]
    covered = [one for one in (*map(ipaddress.ip_network, parts), *nobody) if one.version == network.version]
    return any(network.subnet_of(one) for one in ipaddress.collapse_addresses(covered))


def _nobodys(direction: str, of_nodes: bool) -> List[Tuple[Sequence[Any], str]]:
    """Networks that mean nobody as peers of nodes or endpoints, and why.

    Nothing comes from multicast and broadcast addresses, and to them only nodes may send. What has a loopback address,
    or none yet, is on no network; but who asks a node for an address (DHCP, RFC 2131 4.1) has none yet. An endpoint
    shares its link with its node alone.
    """
    kinds: List[Tuple[Sequence[Any], str]] = [
        (_LOOPBACK, "is loopback, and no packet of a network is from or to such an address"),
        (_GATEWAY, "is the gateway of endpoints, their own node, which is the entity host"),
    ]
    if direction == "ingress":
        kinds.append((_GROUPS, "is multicast or broadcast, and nothing comes from such addresses"))
    elif not of_nodes:
        kinds.append((_NOT_FOR_ENDPOINTS, "is multicast, broadcast or reserved, and no endpoint may send there"))
    if not of_nodes:
        kinds.append((_LINK, "is link-local, and on an endpoint's link is only its node, which is the entity host"))
    if direction == "egress" or not of_nodes:
        kinds.append((_UNSPECIFIED, "is the address of who has none yet, and no packet gets there or comes from there"))
    return kinds
