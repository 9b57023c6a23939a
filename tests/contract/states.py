"""NodeStates for the contract: what a compiler makes, small."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping, Sequence, Tuple

from bpfleet.model.state import (
    CGROUP_ROOT,
    TUNNEL_DEVICE,
    Adopted,
    NodeState,
    Program,
    Route,
    Row,
    Table,
    Tap,
    Veth,
    Vxlan,
)
from tests.contract.rigs import TAP, UNDERLAY

OBJECTS = ("from_endpoint", "to_endpoint", "from_tunnel", "to_tunnel", "from_underlay")
POLICY_KEY = ("peer", "direction", "protocol", "port")
POLICY_VALUE = ("rule_id", "action", "shapes")

SOCKETS = {"connect4": "socket_connect4", "getpeername6": "socket_getpeername6"}
"""Two of the socket hooks stand for all: loading eight programs in every state would take minutes."""

MACHINE = Tap("vm1", "02:00:00:00:03:01", 1450, "12345", "", False, ("169.254.1.1", "fe80::1"))
"""The tap of a virtual machine."""

Rules = Sequence[Tuple[int, int, int, int]]  # peer, direction, protocol, port


def veth(number: int, **changes: Any) -> Veth:
    """The device of endpoint w<number>."""
    described = Veth(
        name=f"bpf-00000000{number:02x}",
        mac=f"02:00:00:00:01:{number:02x}",
        mtu=1450,
        netns=f"w{number}",
        peer_name="eth0",
        peer_mac=f"02:00:00:00:02:{number:02x}",
        peer_addresses=(f"10.77.1.{number}", f"fd77::1:{number:x}"),
        gateways=("169.254.1.1", "fe80::1"),
    )
    return dataclasses.replace(described, **changes)


def entries(rules: Rules) -> Table:
    """An inner map: each rule an allow."""
    rows: Dict[Row, Row] = {rule: (1000 + n, 1, 0) for n, rule in enumerate(rules)}
    return Table(POLICY_KEY, POLICY_VALUE, rows)


def backends(octets: Sequence[int]) -> Table:
    """An inner map of backends."""
    return Table(("index",), ("address", "port"), {(n,): (f"10.77.1.{octet}", 8080) for n, octet in enumerate(octets)})


def state(
    endpoints: Mapping[int, int],
    policies: Mapping[int, Rules] = {},
    *,
    remote: int = 1,
    port: int = 8472,
    tap: bool = False,
    machine: bool = False,
    tunnel_mtu: int = 1450,
    services: Mapping[int, Sequence[int]] = {},
    **changes: Any,
) -> NodeState:
    """A node with endpoints {number: identity}, and policies {identity: rules}, services {port: last
    octets of their backends}, among `remote` other nodes."""
    veths = [veth(number) for number in endpoints]
    addresses: Dict[Row, Row] = {("192.0.2.1",): (1, 0, "::")}
    for number, device in zip(endpoints, veths):
        addresses.update({(address,): (endpoints[number], device.name, "::") for address in device.peer_addresses})
    for number in range(remote):
        addresses[(f"192.0.2.{number + 2}",)] = (6, 0, f"192.0.2.{number + 2}")
        addresses[(f"10.77.{number + 2}.1",)] = (70000, 0, f"192.0.2.{number + 2}")
    rows: Dict[Row, Row] = {
        (device.name,): (endpoints[number], 1, device.peer_mac, device.mac) for number, device in zip(endpoints, veths)
    }
    devices: Dict[str, Any] = {TUNNEL_DEVICE: Vxlan(TUNNEL_DEVICE, port, tunnel_mtu, "02:00:00:00:00:01")}
    devices.update({device.name: device for device in veths})
    routes = [
        Route(f"{address}/{128 if ':' in address else 32}", device.name)
        for device in veths
        for address in device.peer_addresses
    ]
    if remote:
        routes.append(Route("10.77.2.0/24", TUNNEL_DEVICE, "192.0.2.1"))
        routes.append(Route("fd77::2:0/112", TUNNEL_DEVICE))
    attachments = {
        (TUNNEL_DEVICE, "ingress"): "from_tunnel",
        (TUNNEL_DEVICE, "egress"): "to_tunnel",
        (UNDERLAY, "ingress"): "from_underlay",
    }
    judged = [device.name for device in veths]
    if tap:
        devices[TAP] = Adopted(TAP)
        judged.append(TAP)
        rows[(TAP,)] = (70001, 0, "", "")
        addresses[("10.77.1.99",)] = (70001, TAP, "::")
    if machine:
        devices[MACHINE.name] = MACHINE
        judged.append(MACHINE.name)
        rows[(MACHINE.name,)] = (70002, 0, "", "")
        addresses[("10.77.1.98",)] = (70002, MACHINE.name, "::")
        routes.append(Route("10.77.1.98/32", MACHINE.name))
    for name in judged:
        attachments[(name, "ingress")] = "from_endpoint"
        attachments[(name, "egress")] = "to_endpoint"
    lists = {tuple(octets): _revision(tuple(octets)) for octets in services.values() if octets}
    frontends: Dict[Row, Row] = {
        ("10.96.0.1", number, 6): (lists[tuple(octets)], len(octets)) if octets else (0, 0)
        for number, octets in services.items()
    }
    objects = list(OBJECTS)
    if services:
        attachments.update({(CGROUP_ROOT, hook): name for hook, name in SOCKETS.items()})
        objects += SOCKETS.values()
    made = NodeState(
        programs={name: Program(name, {"tunnel_port": port}) for name in objects},
        attachments=attachments,
        tables={
            "addresses": Table(("address",), ("identity", "ifindex", "tunnel_endpoint"), addresses),
            "endpoints": Table(("ifindex",), ("identity", "flags", "workload_mac", "device_mac"), rows),
            "node": Table(
                ("index",),
                ("addresses_revision", "tunnel_ifindex"),
                {(0,): (_revision(sorted(addresses.items())), TUNNEL_DEVICE)},
            ),
            "services": Table(("address", "port", "protocol"), ("backends", "count"), frontends),
        },
        nested={
            "policies": {identity: entries(rules) for identity, rules in policies.items() if rules},
            "policies_staged": {},
            "backends": {number: backends(octets) for octets, number in lists.items()},
        },
        devices=devices,
        routes={(route.destination, route.device): route for route in routes},
        sysctls={f"net/ipv4/conf/{UNDERLAY}/accept_local": "1"},
    )
    return dataclasses.replace(made, **changes)


def _revision(of: Any) -> int:
    return 1 if not of else sum(repr(of).encode()) * 7919 % (1 << 32)


EMPTY = NodeState()
WEB = [(66000, 0, 6, 80), (0xFFFFFFFF, 0, 0, 0)]
ONE = state({1: 65900})
TWO = state({1: 65900, 2: 66000}, {65900: WEB, 66000: [(0xFFFFFFFF, 1, 0, 0)]})
OTHER_RULES = state({1: 65900, 2: 66000}, {65900: [*WEB, (0, 0, 17, 53)], 66000: [(0xFFFFFFFF, 1, 0, 0)]})
MORE_NODES = state({2: 66000}, {66000: []}, remote=3, tap=True, machine=True)
OTHER_PORT = state({1: 65900, 2: 66000}, {65900: WEB}, port=4789)
SERVICES = state({1: 65900}, services={80: [1, 2], 81: [1], 82: []})
ALL = {
    "one": ONE,
    "two": TWO,
    "other rules": OTHER_RULES,
    "more nodes": MORE_NODES,
    "other port": OTHER_PORT,
    "small packets": state({1: 65900}, tunnel_mtu=1400),
    "services": SERVICES,
    "empty": EMPTY,
}
