"""The node itself under policy: its failsafe ports, and what would cut the way by which it is administered.

The policies that select a node are compiled like an endpoint's (see policy.py), under the identity HOST.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from bpfleet.compile import entries, lookup
from bpfleet.errors import Conflict
from bpfleet.model import identity
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.resources import DEFAULT_FAILSAFE_PORTS, PROTOCOL_NUMBERS
from bpfleet.model.state import Compiled, Row, RuleName, Table

FAILSAFE_KEY = ("port", "protocol", "direction")
FAILSAFE_VALUE = ("listed",)


def failsafe_ports(cluster: Document) -> Sequence[Mapping[str, Any]]:
    """What the cluster declares, or the default."""
    declared: Optional[Sequence[Mapping[str, Any]]] = cluster.spec.get("failsafe_ports")
    return DEFAULT_FAILSAFE_PORTS if declared is None else declared


def is_failsafe(cluster: Document, protocol: str, port: int, direction: str = "ingress") -> bool:
    """Whether no policy can close that port of a node (or, egress, that port elsewhere to a node)."""
    return {"protocol": protocol, "port": port, "direction": direction} in failsafe_ports(cluster)


def failsafe_table(cluster: Document) -> Table:
    """The map `failsafe`."""
    rows: Dict[Row, Row] = {}
    for entry in failsafe_ports(cluster):
        code = entries.DIRECTION_NUMBERS[entry["direction"]]
        rows[(entry["port"], PROTOCOL_NUMBERS[entry["protocol"]], code)] = (1,)
    return Table(FAILSAFE_KEY, FAILSAFE_VALUE, rows)


def failsafe_warnings(node: str, cluster: Document, maps: lookup.Maps, names: Mapping[int, RuleName]) -> List[str]:
    """What the node's policies would cut if failsafe did not keep it: policy and port named."""
    found: Dict[str, None] = {}
    for entry in failsafe_ports(cluster):
        asked = entry["direction"], entry["protocol"], entry["port"]
        refusing = (_refusing(maps, names, (peer, None), *asked) for peer in _strangers(maps, entry["direction"]))
        what = f"{entry['protocol']} port {entry['port']}"
        what += f" of node {node}" if entry["direction"] == "ingress" else f" elsewhere to node {node}"
        for rule in (*filter(None, refusing), *_denying(maps, names, *asked)):
            for name in rule.policy.split(", "):
                found[f"policy/{name}, {_path(rule)}: would close {what}, a failsafe port: it stays open"] = None
    return list(found)


def _strangers(maps: lookup.Maps, direction: str) -> Tuple[int, ...]:
    """Other nodes, and by family who is in no network that rules name but the whole family."""
    code = entries.DIRECTION_NUMBERS[direction]
    named = (maps.entries or {}).get((entries.HEADER_PEER, code, entries.HEADER_PREFIXES, 0))
    classes = maps.prefix_sets[named[0]].rows if named is not None else {}
    (six,) = classes.get((0, "::"), (identity.WORLD,))
    (four,) = classes.get((96, "0.0.0.0"), (six,))
    return identity.REMOTE_NODE, four, six


def _denying(
    maps: lookup.Maps, names: Mapping[int, RuleName], direction: str, protocol: str, port: int
) -> List[RuleName]:
    """The rules that deny a port to somebody."""
    keys = lookup.keys_of(maps, lookup.Question(direction, identity.WORLD, PROTOCOL_NUMBERS[protocol], port))
    denying = {
        row[0]
        for key, row in (maps.entries or {}).items()
        if row[1] == entries.DENY and key[0] != entries.HEADER_PEER and key[1:] in keys
    }
    return sorted((names[rule_id] for rule_id in denying), key=lambda rule: (rule.policy, rule.rule))


def session_refusal(
    documents: DocumentSet, compiled: Compiled, node: str, session: Optional[Tuple[str, int]]
) -> Optional[Conflict]:
    """The policy that would cut the very connection over which it comes, where no failsafe port keeps that open.

    session: of an SSH connection the client's address, and the TCP port of the node that it came to.
    """
    nested = compiled.state.nested
    table = nested.get("policies", {}).get(identity.HOST)
    clusters = documents.of_kind("cluster")
    if session is None or table is None:
        return None
    client, port = session
    if is_failsafe(clusters[min(clusters)], "tcp", port):
        return None
    peer = _peer(compiled, client)
    if peer == identity.HOST:  # from the node itself: never judged
        return None
    maps = lookup.Maps(table.rows, nested["prefix_sets"], nested["port_sets"])
    rule = _refusing(maps, compiled.rules, (peer, _address(client)), "ingress", "tcp", port)
    if rule is None:
        return None
    return Conflict(
        f"would cut the SSH connection over which it is applied: tcp port {port} of node {node}, "
        f"from {client} ({compiled.identities.get(peer, str(peer))})",
        resource=f"policy/{rule.policy.split(', ')[0]}",
        field=_path(rule),
        remedy=f"Allow it in a policy that selects the node, or list {{protocol: tcp, port: {port}}} in "
        "failsafe_ports of the cluster.",
        details={"policies": rule.policy.split(", "), "port": port, "client": client},
    )


def _refusing(
    maps: lookup.Maps,
    names: Mapping[int, RuleName],
    peer: Tuple[int, Optional[str]],
    direction: str,
    protocol: str,
    port: int,
) -> Optional[RuleName]:
    """The rule that drops what a peer (its number, its address) sends."""
    number, address = peer
    question = lookup.Question(direction, number, PROTOCOL_NUMBERS[protocol], port, address)
    found = lookup.judge(maps, question)
    return names[found.rule_id] if found.verdict in (lookup.DENIED, lookup.DENIED_BY_DEFAULT) else None


def _path(rule: RuleName) -> str:
    return rule.direction if rule.rule == entries.DEFAULT_DENY else rule.rule


def _peer(compiled: Compiled, client: str) -> int:
    """The identity of a client's address as the programs see it on the underlay."""
    address = _address(client)
    if address is None or ipaddress.ip_address(address).is_link_local:
        return identity.WORLD
    if ipaddress.ip_address(address).is_loopback:
        return identity.HOST
    found: Tuple[Any, ...] = compiled.state.tables["addresses"].rows.get((address,), (identity.WORLD,))
    return int(found[0])


def _address(client: str) -> Optional[str]:
    """A client's address in canonical form, without its zone."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
