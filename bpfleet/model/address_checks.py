"""Addresses by which nobody is reached from elsewhere, with which nodes, endpoints and services may not be declared;
and ports that hosts need for themselves."""

from __future__ import annotations

import ipaddress
from typing import Any, Iterator, Mapping, Tuple, Union

from bpfleet.model.schema import UNKNOWN, Problem, contains_unknown

_KINDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("link-local", ("169.254.0.0/16", "fe80::/10")),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("unspecified", ("0.0.0.0/32", "::/128")),
    ("broadcast", ("255.255.255.255/32",)),
)
"""RFC 6890 for the first two and the unspecified ones, RFC 5771, RFC 4291 2.7, RFC 919."""
NETWORKS = tuple((kind, ipaddress.ip_network(text)) for kind, texts in _KINDS for text in texts)
GATEWAYS = ("169.254.1.1", "fe80::1")
"""Next hops inside a workload's namespace: its node, link-local, the same everywhere, with a fixed neighbour entry."""
TO_DHCP_SERVER, TO_DHCP_CLIENT = {4: 67, 6: 547}, {4: 68, 6: 546}
"""UDP ports by IP version: RFC 2131 4.1, RFC 8415 7.2."""
_REMEDY = "Give an address by which the other nodes can reach it."


def nobody_s(address: str) -> str:
    """What kind of address it is, as "a loopback address", if nobody can be reached by it from elsewhere; else ""."""
    return _kind(ipaddress.ip_network(address))


def node_addresses(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """A node's underlay address, and its workloads' networks, in which every address may become an endpoint's."""
    if spec["address"] is not UNKNOWN:
        yield from _problem("address", nobody_s(spec["address"]), _REMEDY)
    for index, text in enumerate(spec["workload_cidrs"] if not contains_unknown(spec["workload_cidrs"]) else ()):
        network = ipaddress.ip_network(text)
        kind = _kind(network)
        if kind:
            remedy = "Give a network of its own to the workloads of each node."
            yield Problem(f"workload_cidrs[{index}]", f"{text} holds {kind}", remedy)


def endpoint_addresses(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """An endpoint's addresses."""
    for index, text in enumerate(spec["addresses"] if not contains_unknown(spec["addresses"]) else ()):
        yield from _problem(f"addresses[{index}]", nobody_s(text), _REMEDY)


def tunnel_port(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """A tunnel's UDP port."""
    if spec.get("port") in {*TO_DHCP_SERVER.values(), *TO_DHCP_CLIENT.values()}:
        yield Problem("port", f"{spec['port']} is a port of DHCP", "Take another, such as 8472 or 4789.")


def _problem(path: str, kind: str, remedy: str) -> Iterator[Problem]:
    if kind:
        yield Problem(path, f"is {kind}", remedy)


def _kind(network: Union[ipaddress.IPv4Network, ipaddress.IPv6Network]) -> str:
    for kind, other in NETWORKS:
        if network.version == other.version and network.overlaps(other):
            return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} address"
    return ""
