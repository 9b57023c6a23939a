"""The small world all packet cases live in, and what a case is made of.

This node has the endpoints a, b and q (q waits for its identity), all delivered to by bpf_redirect_peer; t, a tap whose
workload's MAC is not known; and u, which is not attached yet. Another member has the endpoint c. Every name has an
address of each family.
"""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.real import jiffy_ns, shows_contexts
from tests.packet.frames import ICMP, ICMP6, TCP, UDP
from tests.packet.kernel import Datapath

TUNNEL_PORT = 8472
UNDERLAY, UNDERLAY_2, UNDERLAY_6 = "192.0.2.1", "192.0.2.2", "2001:db8::3"
UNDERLAY_MAC = "02:00:00:00:00:20"
MACHINE_MAC = "02:00:00:00:00:14"
"""Of the workload t, as the neighbour table has it."""
DEVICES = {"a": 11, "b": 12, "q": 13, "t": 14, "eth0": 20, "vxlan": 21, "nobody": 30}
IDENTITIES = {
    "a": 70001, "b": 70002, "c": 70003, "t": 70004, "d": 70005, "u": 70006,
    "q": 5, "host": 1, "node2": 6, "world": 2,
}  # fmt: skip
MACS = {name: (f"02:00:00:00:01:{index:02x}", f"02:00:00:00:02:{index:02x}") for name, index in DEVICES.items()}
ADDRESSES = {
    4: {
        "a": "10.1.0.1", "b": "10.1.0.2", "q": "10.1.0.9", "u": "10.1.0.8", "t": "10.1.0.4",
        "c": "10.2.0.1", "d": "10.3.0.1",
        "host": UNDERLAY, "node2": UNDERLAY_2, "world": "198.51.100.7", "gateway": "10.1.0.254",
    },
    6: {
        "a": "fd00:1::1", "b": "fd00:1::2", "q": "fd00:1::9", "u": "fd00:1::8", "t": "fd00:1::4",
        "c": "fd00:2::1", "d": "fd00:3::1",
        "host": "2001:db8::1", "node2": "2001:db8::2", "world": "2001:db8:ffff::7", "gateway": "fd00:1::fe",
    },
}  # fmt: skip
# Where the names that are not of this node are. d is on a node with an IPv6 underlay.
TUNNELS = {"c": UNDERLAY_2, "node2": UNDERLAY_2, "d": UNDERLAY_6}
CONSTANTS = {
    "tunnel_port": TUNNEL_PORT, "node_address": UNDERLAY, "events_slots_mask": 1023, "blocked_at_tc": 1,
    "services_at_tc": 1, "flows_passed": 48, "flows_dropped": 16, "jiffy_ns": jiffy_ns(),
    "kernel_contexts": int(shows_contexts()),
    "gateway_v4": ADDRESSES[4]["gateway"], "gateway_v6": ADDRESSES[6]["gateway"],
}  # fmt: skip
HOST_CONSTANTS = {**CONSTANTS, "host_policy": 1}
"""Of a node that a policy selects."""
DEFAULT_DENY = {"ingress": 9001, "egress": 9002}

_SHAPES = ENUMS["policy_shape"]
_DIRECTIONS = ENUMS["direction"]


@dataclass(frozen=True)
class Rule:
    """One policy entry; 0 stands for any peer, protocol or port."""

    direction: str
    rule_id: int
    peer: int = 0
    protocol: int = 0
    port: int = 0
    action: str = "allow"


@dataclass(frozen=True)
class Send:
    """A frame, where it appears, and everything that must come of it. `out` or `events` None: not looked at."""

    program: str
    frame: bytes
    action: str
    counters: Mapping[str, int]
    at: str = ""
    via: str = ""
    out: Optional[bytes] = None
    events: Optional[Tuple[Mapping[str, Any], ...]] = ()


@dataclass(frozen=True)
class Policy:
    """A change of one name's policy; `selected` are the directions that deny by default."""

    name: str
    rules: Tuple[Rule, ...] = ()
    selected: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Move:
    """Any other change of one map record."""

    map: str
    key: Mapping[str, Any]
    value: Mapping[str, Any]


@dataclass(frozen=True)
class Frontend:
    """A service's frontend, written again: its backends, and the number of their list."""

    address: str
    port: int
    protocol: int
    backends: Tuple[Tuple[str, int], ...] = ()
    number: int = 1


@dataclass(frozen=True)
class Forget:
    """Every record of a map is gone, as evicted."""

    map: str


@dataclass(frozen=True)
class Wait:
    """So many ticks pass: all that is remembered grows older."""

    ticks: int


Change = Union[Policy, Move, Frontend, Forget, Wait]


@dataclass(frozen=True)
class Case:
    """One story; its steps happen in order."""

    name: str
    steps: Tuple[Union[Send, Change], ...]
    family: int = field(default=4)

    def __str__(self) -> str:
        return f"v{self.family}: {self.name}"


def icmp_of(family: int) -> int:
    """The protocol number of ICMP in that family."""
    return ICMP if family == 4 else ICMP6


def address_record(name: str) -> Dict[str, Any]:
    """What `addresses` says about a name."""
    identity = 1 if name == "gateway" else IDENTITIES[name]
    local = name in ("a", "b", "q", "t")
    return {"identity": identity, "ifindex": DEVICES[name] if local else 0, "tunnel_endpoint": TUNNELS.get(name, "")}


def endpoint_record(name: str) -> Dict[str, Any]:
    """What `endpoints` says about a name."""
    workload, device = MACS[name]
    return {
        "identity": IDENTITIES[name],
        "workload_mac": "00:00:00:00:00:00" if name == "t" else workload,
        "device_mac": device,
        "flags": 0 if name == "t" else ENUMS["endpoint_flag"]["peer"],
    }


def node_record(**changed: int) -> Dict[str, Any]:
    """What `node` says."""
    return {"addresses_revision": 1, "tunnel_ifindex": DEVICES["vxlan"], **changed}


def build(datapath: Datapath) -> None:
    """Put the world into empty maps."""
    maps = datapath.maps
    for family in ADDRESSES.values():
        for name, address in family.items():
            if name != "world":
                maps["addresses"].update({"address": address}, address_record(name))
    maps["addresses"].update({"address": UNDERLAY_6}, {"identity": 6, "ifindex": 0, "tunnel_endpoint": UNDERLAY_6})
    for name in ("a", "b", "q", "t"):
        maps["endpoints"].update({"ifindex": DEVICES[name]}, endpoint_record(name))
    maps["node"].update({"index": 0}, node_record())
    for protocol, port, direction in ((TCP, 22, "ingress"), (UDP, 53, "egress"), (TCP, 853, "egress")):
        key = {"port": port, "protocol": protocol, "direction": _DIRECTIONS[direction]}
        maps["failsafe"].update(key, {"listed": 1})


def entry(rule_id: int, action: int, shapes: int = 0, denies: int = 0, flags: int = 0) -> Dict[str, int]:
    """The value of a policy entry; only a header has more than the first two."""
    return {"rule_id": rule_id, "action": action, "shapes": shapes, "denies": denies, "flags": flags}


def entries(rules: Tuple[Rule, ...], selected: Tuple[str, ...]) -> List[Tuple[Dict[str, Any], Dict[str, Any]]]:
    """Rules as the entries of an inner policy map, headers included."""
    found = []
    shapes, denies = dict.fromkeys(_DIRECTIONS, 0), dict.fromkeys(_DIRECTIONS, 0)
    for rule in rules:
        shape = ("peer" if rule.peer else "any") + ("_port" if rule.port else "_protocol" if rule.protocol else "")
        shapes[rule.direction] |= _SHAPES[shape]
        denies[rule.direction] |= _SHAPES[shape] if rule.action == "deny" else 0
        key = {
            "peer": rule.peer,
            "direction": _DIRECTIONS[rule.direction],
            "protocol": rule.protocol,
            "port": rule.port,
        }
        action = ENUMS["policy_action"][rule.action]
        found.append((key, entry(rule.rule_id, action)))
    deny = ENUMS["policy_action"]["deny"]
    for direction in selected:
        key = {
            "peer": ENUMS["policy_peer"]["header"],
            "direction": _DIRECTIONS[direction],
            "protocol": 0,
            "port": 0,
        }
        found.append((key, entry(DEFAULT_DENY[direction], deny, shapes[direction], denies[direction])))
    return found


def apply(datapath: Datapath, change: Change) -> None:
    """Make a change, while no packet is under way."""
    if isinstance(change, Forget):
        datapath.maps[change.map].clear()
        return
    if isinstance(change, Wait):
        grow_older(datapath, change.ticks)
        return
    if isinstance(change, Frontend):
        listed = sorted(change.backends, key=lambda one: (ipaddress.ip_address(one[0]).packed, one[1]))
        rows = [({"index": index}, {"address": address, "port": port}) for index, (address, port) in enumerate(listed)]
        if rows:
            datapath.set_inner("backends", {"id": change.number}, rows)
        key = {"address": change.address, "port": change.port, "protocol": change.protocol}
        datapath.maps["services"].update(key, {"backends": change.number if rows else 0, "count": len(rows)})
        return
    if isinstance(change, Move):
        datapath.maps[change.map].update(change.key, change.value)
        return
    datapath.set_policy(IDENTITIES[change.name], entries(change.rules, change.selected))
    datapath.next_generation()


def grow_older(datapath: Datapath, ticks: int) -> None:
    """All that is remembered for a time, by writing when it was seen."""
    for name, field_name in (("connections", "last_seen"), ("fragments", "seen")):
        one = datapath.maps[name]
        at = next(part["offset"] for part in MAPS[name]["value"]["fields"] if part["name"] == field_name)
        for key in tuple(one.keys()):
            value = bytearray(one.lookup_raw(key))
            seen = int.from_bytes(value[at : at + 4], sys.byteorder)
            value[at : at + 4] = ((seen - ticks) & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
            one.update_raw(key, bytes(value))
