"""What each tc hook costs a packet of an established connection.

Two hosts' worth of records in one set of maps: an endpoint here, a workload on another node, the host. A hundred
connections of each kind, packets drawn at random over them, timed as bench/timing.py says. A packet from the tunnel is
given its tunnel key by a program in front, whose own cost is measured beside it and taken off.

    python -m bench.policy_hooks
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

from bench import timing
from bench.report import Measurement, table
from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.real import jiffy_ns, shows_contexts
from tests.packet import frames, kernel

ROUNDS, WARM, CALLS = 21, 500, 4_000
CONNECTIONS = 100
LOOPBACK = 1  # the device of a packet in BPF_PROG_TEST_RUN unless told otherwise
NEIGHBOUR = 2  # the device of the other endpoint of this node
NODE, MEMBER, HOST_PEER = "192.0.2.1", timing.TUNNEL_MEMBER, "192.0.2.9"
HERE, THERE, NEXT_DOOR = "10.0.0.1", "10.1.0.1", "10.0.0.2"
IDENTITY, OTHER = 70_000, timing.TUNNEL_IDENTITY
PORT, HIGH_PORT, FIRST_PORT = 80, 50_000, 40_000

_PORTS_AT, _INNER_PORTS_AT = 14 + 20, 14 + 50 + 20
_LOOPBACK_MAC = "00:00:00:00:00:00"
_REDIRECT = 7  # TC_ACT_REDIRECT
_MAC = "02:00:00:00:00:01"


def populate(host_policy: bool, direct: bool) -> kernel.Datapath:
    """Programs and maps of a node on which every direction is selected and all that is sent here is allowed.

    Only what the long way carries renews what lets datagrams go directly. So where those are timed alone, a tick takes
    weeks.
    """
    constants = {
        "node_address": NODE,
        "events_slots_mask": kernel.SLOTS - 1,
        "host_policy": int(host_policy),
        "jiffy_ns": 1 if direct else jiffy_ns(),
        "kernel_contexts": int(shows_contexts()),
        "direct_delivery": int(direct),
    }
    datapath = kernel.Datapath(constants)
    maps = datapath.maps
    maps["node"].update({"index": 0}, {"addresses_revision": 1, "tunnel_ifindex": LOOPBACK})
    for ifindex in (LOOPBACK, NEIGHBOUR):
        record = {
            "workload_mac": _MAC,
            "device_mac": _MAC,
            "flags": ENUMS["endpoint_flag"]["peer"],
        }
        maps["endpoints"].update({"ifindex": ifindex}, {**record, "identity": IDENTITY})
    for address, identity, ifindex, tunnel in (
        (HERE, IDENTITY, LOOPBACK, ""),
        (NEXT_DOOR, IDENTITY, NEIGHBOUR, ""),
        (THERE, OTHER, 0, MEMBER),
        (MEMBER, ENUMS["identity"]["remote_node"], 0, MEMBER),
        (NODE, ENUMS["identity"]["host"], 0, ""),
    ):
        maps["addresses"].update(
            {"address": address}, {"identity": identity, "ifindex": ifindex, "tunnel_endpoint": tunnel}
        )
    entries = []
    for direction in (ENUMS["direction"]["ingress"], ENUMS["direction"]["egress"]):
        nothing = {"rule_id": 0, "action": 0, "shapes": 0, "denies": 0, "flags": 0}
        header = {"peer": ENUMS["policy_peer"]["header"], "direction": direction, "protocol": 0, "port": 0}
        entries.append((header, {**nothing, "shapes": ENUMS["policy_shape"]["any_port"]}))
        for protocol, port in ((frames.TCP, PORT), (frames.TCP, HIGH_PORT), (frames.UDP, PORT)):
            key = {"peer": 0, "direction": direction, "protocol": protocol, "port": port}
            entries.append((key, {**nothing, "rule_id": 1, "action": ENUMS["policy_action"]["allow"]}))
    for identity in (IDENTITY, ENUMS["identity"]["host"]):
        datapath.set_policy(identity, entries)
    return datapath


@dataclass(frozen=True)
class Flow:
    """Packets at a hook, and how their connections came about: a SYN (UDP: the first packet) at the hook `opened_by`,
    from the packets' source, or if they are replies from their destination. None: the hook knows no connections."""

    hook: str
    source: str
    destination: str
    opened_by: Optional[str]
    is_reply: bool = False
    host_policy: bool = False
    tunnelled: bool = False  # it comes with a tunnel key
    direct: bool = False  # datagrams that go straight from or to the endpoint, in tunnel packets beyond it
    notes: bool = False  # tunnel packets of the stack, which show how others go directly
    protocol: int = frames.TCP
    port: int = PORT
    goal: bool = True

    @property
    def bed(self) -> Tuple[bool, bool]:
        """Whether a policy selects the node, and whether packets may go directly there."""
        return self.host_policy, self.direct or self.notes


TUNNEL_PORT = 8472
FLOWS: Dict[str, Flow] = {
    "from_endpoint": Flow("from_endpoint", HERE, THERE, "from_endpoint"),
    "from_endpoint_reply": Flow("from_endpoint", HERE, THERE, "from_tunnel", is_reply=True),
    "from_endpoint_both_ends": Flow("from_endpoint", HERE, NEXT_DOOR, "from_endpoint", goal=False),
    "from_tunnel": Flow("from_tunnel", THERE, HERE, "from_tunnel", tunnelled=True),
    "from_tunnel_reply": Flow("from_tunnel", THERE, HERE, "from_endpoint", is_reply=True, tunnelled=True),
    "from_tunnel_high_port": Flow(
        "from_tunnel", THERE, HERE, "from_tunnel", tunnelled=True, port=HIGH_PORT, goal=False
    ),
    "to_endpoint": Flow("to_endpoint", NODE, HERE, "to_endpoint"),
    "to_tunnel_with_key": Flow("to_tunnel", HERE, THERE, None, tunnelled=True),
    "to_tunnel": Flow("to_tunnel", NODE, THERE, None),
    "from_underlay": Flow("from_underlay", HOST_PEER, NODE, None),
    "from_underlay_tunnel": Flow("from_underlay", MEMBER, NODE, None, protocol=frames.UDP),
    "from_underlay_direct": Flow("from_underlay", THERE, HERE, "from_tunnel", protocol=frames.UDP, direct=True),
    "from_endpoint_direct": Flow("from_endpoint", HERE, THERE, "from_endpoint", protocol=frames.UDP, direct=True),
    "to_underlay_tunnel": Flow("to_underlay", NODE, MEMBER, None, protocol=frames.UDP, notes=True),
    "from_underlay_host": Flow("from_underlay", HOST_PEER, NODE, "from_underlay", host_policy=True),
    "to_underlay_host": Flow("to_underlay", NODE, HOST_PEER, "to_underlay", host_policy=True),
    "to_underlay_host_tunnel": Flow("to_underlay", NODE, MEMBER, None, host_policy=True, protocol=frames.UDP),
}
"""With `host`: a policy selects this node. Outside the goal: local delivery, which judges for both ends and is two
hooks in one, and a service whose port is higher than its client's, whose packets are looked up twice (admit.h)."""


class Bed:
    """A node's programs and maps, and a tunnel in front of those that want one."""

    def __init__(self, host_policy: bool, direct: bool) -> None:
        self.datapath = populate(host_policy, direct)
        self._tunnels: Dict[str, timing.Programs] = {}

    def close(self) -> None:
        """Unload."""
        for one in self._tunnels.values():
            one.close()
        self.datapath.close()

    def program(self, hook: str, tunnelled: bool) -> int:
        """What to run for a packet at a hook ("empty": for none)."""
        if not tunnelled:
            return self.datapath.programs[hook]
        if hook not in self._tunnels:
            self._tunnels[hook] = programs = timing.Programs(self.datapath)
            programs.go_on_in(self.datapath.programs.get(hook) or programs.descriptors["bench_empty"])
        return self._tunnels[hook].descriptors["bench_tunnel"]

    def open(self, flow: Flow) -> None:
        """Make the flow's connections, answered."""
        if flow.opened_by is None:
            return
        source, destination = (flow.destination, flow.source) if flow.is_reply else (flow.source, flow.destination)
        name = f"opener of {flow.hook}"
        self.datapath.programs[name] = self.program(flow.opened_by, flow.opened_by == "from_tunnel")
        make = frames.udp if flow.direct else frames.tcp
        for number in range(CONNECTIONS):
            frame = frames.ether(make(source, destination, (FIRST_PORT + number, flow.port)))
            self.datapath.run_raw(name, frame, bytes(192))
        if flow.direct:
            self._renew(name, flow)
            return
        connections = self.datapath.maps["connections"]
        keys = connections.keys()
        for key in keys:
            record = layout.decode("connections", "value", connections.lookup_raw(key))
            state = ENUMS["connection_state"]["replied"]
            connections.update_raw(key, layout.encode("connections", "value", {**record, "state": state}))

    def _renew(self, opener: str, flow: Flow) -> None:
        """What the long way brings and sends, on the CPU that will be timed. Raises RuntimeError if a datagram of the
        flow then takes the long way."""
        home = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(home)})
        try:
            for number in range(CONNECTIONS):
                datagram = frames.udp(flow.source, flow.destination, (FIRST_PORT + number, flow.port))
                self.datapath.run_raw(opener, frames.ether(datagram), bytes(192))
                self.datapath.run_raw("to_underlay", stacks_packet(), bytes(192))
                direct = direct_packet(flow, FIRST_PORT + number)
                code, frame = self.datapath.run_raw(flow.hook, direct, bytes(192))
                if code != _REDIRECT or len(frame) == len(direct):
                    raise RuntimeError("a datagram that should go directly does not")
        finally:
            os.sched_setaffinity(0, home)

    def variant(self, flow: Flow, dice: random.Random) -> timing.Variant:
        """The flow's packets."""
        drawn = [FIRST_PORT + dice.randrange(CONNECTIONS) for _ in range(CALLS)]
        if flow.direct:
            ports_at = _INNER_PORTS_AT if flow.hook == "from_underlay" else _PORTS_AT
            inner = [struct.pack("!HH", port, flow.port) for port in drawn]
            return timing.Variant(self.program(flow.hook, False), direct_packet(flow, FIRST_PORT), ports_at, inner)
        if flow.protocol == frames.UDP:
            bare = frames.ether(frames.udp(flow.source, flow.destination, (frames.TUNNEL_SOURCE, TUNNEL_PORT)))
            frame = stacks_packet() if flow.notes else bare
            ports = [(frames.TUNNEL_SOURCE + port - FIRST_PORT, TUNNEL_PORT) for port in drawn]
        else:
            frame = frames.ether(frames.tcp(flow.source, flow.destination, (FIRST_PORT, flow.port), frames.ACK))
            ports = [(flow.port, port) if flow.is_reply else (port, flow.port) for port in drawn]
        program = self.program(flow.hook, flow.tunnelled)
        return timing.Variant(program, frame, _PORTS_AT, [struct.pack("!HH", *pair) for pair in ports])


def direct_packet(flow: Flow, port: int) -> bytes:
    """A datagram of the flow as its workload sends it, or as it arrives from its node."""
    datagram = frames.ether(frames.udp(flow.source, flow.destination, (port, flow.port)))
    if flow.hook == "from_endpoint":
        return datagram
    return frames.ether(frames.vxlan(MEMBER, NODE, TUNNEL_PORT, OTHER, datagram), destination=_LOOPBACK_MAC)


def stacks_packet() -> bytes:
    """A tunnel packet that the node's own stack sends to the member."""
    datagram = frames.ether(frames.udp(HERE, THERE, (1, PORT)))
    return frames.ether(frames.vxlan(NODE, MEMBER, TUNNEL_PORT, IDENTITY, datagram))


def time_hooks() -> Tuple[timing.Timed, Dict[str, float]]:
    """What the harness measured, and each flow's nanoseconds without what stands in front of it. Needs root.

    Raises RuntimeError if a packet was dropped or judged anew.
    """
    dice = random.Random(1)  # the same packets in every run
    beds = {kind: Bed(*kind) for kind in ((False, False), (True, False), (False, True))}
    try:
        for flow in FLOWS.values():
            beds[flow.bed].open(flow)
        variants = {name: beds[flow.bed].variant(flow, dice) for name, flow in FLOWS.items()}
        variants["key"] = replace(variants["from_tunnel"], program=beds[False, False].program("empty", True))
        for bed in beds.values():
            bed.datapath.maps["counters"].clear()
        with contextlib.ExitStack() as watches:
            seen = [watches.enter_context(bed.datapath.watch()) for bed in beds.values()]
            timed = timing.run(variants, ROUNDS, CALLS, WARM)
        for (result,) in seen:
            if result.events:
                raise RuntimeError(f"not established: {result.events[:3]}, {len(result.events)} in all")
    finally:
        for bed in beds.values():
            bed.close()
    ns = {name: timed.less(name, "key") if flow.tunnelled else timed.ns[name] for name, flow in FLOWS.items()}
    return timed, ns


def measure() -> List[Measurement]:
    """hook_established_ns_max, and the others beside it."""
    timed, ns = time_hooks()
    most = max(ns[name] for name, flow in FLOWS.items() if flow.goal)
    note = f"net of {timed.empty_ns} ns for an empty program; {CONNECTIONS} connections of each kind"
    return [
        Measurement("hook_established_ns_max", round(most, 1), "ns", at_most=200, sides=ns, note=note),
        *(Measurement(f"hook_{name}", round(value, 1), "ns", note=note) for name, value in ns.items()),
    ]


if __name__ == "__main__":
    print(table(measure()))
