"""What a policy verdict costs with 10, 1,000 and 10,000 rules, in the real bpfl_from_ep.

The endpoint has one egress rule for each of N identities. There are always 10,000 workloads on other nodes, spread
evenly over the identities, and packets go to workloads drawn at random over all of them: so that only the number of
rules differs, and not how much of the rest is warm. Established: one connection to each workload. New: a SYN from a
random port. What 10,000 workloads cost against 10, with 10 rules, is a figure of its own: cache misses, mostly.

Timed as bench/timing.py says, net of an empty program.

    python -m bench.spine_verdicts
"""

from __future__ import annotations

import random
import struct
from typing import Dict, List, Optional, Tuple

from bench import timing
from bench.report import Measurement, table
from bpfleet.loader import layout
from bpfleet.loader.cpus import new_copy_sets
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.real import jiffy_ns
from tests.packet import frames, kernel

RULES = (10, 1_000, 10_000)
WORKLOADS = 10_000
ROUNDS, WARM, CALLS = {"established": 15, "new": 8}, {"established": 64_000, "new": 10_000}, 4_000
"""Established: one time through its packets does not yet bring a population back into the caches that others used."""
ESTABLISHED_PACKETS = 16_000
COPY_SETS = new_copy_sets(kernel.CPUS, MAPS["connections"]["max_entries"])
CLIENT_PORT = 40_000
LOOPBACK = 1  # the device of a packet in BPF_PROG_TEST_RUN unless told otherwise
SUBJECT, FIRST_IDENTITY = 70_000, timing.TUNNEL_IDENTITY
SOURCE, NODE, MEMBER = "10.0.0.1", "192.0.2.1", timing.TUNNEL_MEMBER
PORT = 80
_CHECKSUM_AT, _PORTS_AT = 14 + 10, 14 + 20
NOTHING = {"rule_id": 0, "action": 0, "shapes": 0, "denies": 0, "flags": 0}


def workload_address(number: int) -> str:
    """The address of a workload."""
    return f"10.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def populate(rules: int, workloads: int, copy_sets: int = COPY_SETS) -> kernel.Datapath:
    """A loaded datapath with that many rules and workloads, and room for copies of connections."""
    datapath = kernel.Datapath(
        {
            "node_address": NODE,
            "events_slots_mask": kernel.SLOTS - 1,
            "jiffy_ns": jiffy_ns(),
            "copies_mask": copy_sets - 1,
        }
    )
    maps = datapath.maps
    maps["node"].update({"index": 0}, {"addresses_revision": 1, "tunnel_ifindex": LOOPBACK})
    maps["endpoints"].update(
        {"ifindex": LOOPBACK},
        {"identity": SUBJECT, "workload_mac": "", "device_mac": "", "flags": 0},
    )
    maps["addresses"].update({"address": SOURCE}, {"identity": SUBJECT, "ifindex": LOOPBACK, "tunnel_endpoint": ""})
    for number in range(workloads):
        record = {"identity": FIRST_IDENTITY + number % rules, "ifindex": 0, "tunnel_endpoint": MEMBER}
        maps["addresses"].update({"address": workload_address(number)}, record)
    egress = ENUMS["direction"]["egress"]
    header = {"peer": ENUMS["policy_peer"]["header"], "direction": egress, "protocol": 0, "port": 0}
    entries = [(header, {**NOTHING, "shapes": ENUMS["policy_shape"]["peer_port"]})]
    for number in range(rules):
        key = {"peer": FIRST_IDENTITY + number, "direction": egress, "protocol": frames.TCP, "port": PORT}
        entries.append((key, {**NOTHING, "rule_id": 1 + number, "action": ENUMS["policy_action"]["allow"]}))
    datapath.set_policy(SUBJECT, entries)
    return datapath


def packet(number: int, source_port: int, flags: int) -> bytes:
    """A frame to a workload."""
    return frames.ether(frames.tcp(SOURCE, workload_address(number), (source_port, PORT), flags))


def establish(datapath: kernel.Datapath, count: int) -> None:
    """An answered connection to each workload. Raises RuntimeError if one is missing."""
    context = bytes(192)
    for number in range(count):
        datapath.run_raw("from_endpoint", packet(number, CLIENT_PORT, frames.SYN), context)
    connections = datapath.maps["connections"]
    keys = connections.keys()
    if len(keys) != count:
        raise RuntimeError(f"{len(keys)} connections where {count} were made")
    for key in keys:
        record = layout.decode("connections", "value", connections.lookup_raw(key))
        record["state"] = ENUMS["connection_state"]["replied"]
        connections.update_raw(key, layout.encode("connections", "value", record))


def variant(program: int, flags: int, packets: List[Tuple[int, int]]) -> timing.Variant:
    """Packets (workload, source port) to a program: they differ in destination, and so in checksum, and ports."""
    ends = {number: packet(number, 0, flags)[_CHECKSUM_AT:_PORTS_AT] for number in {number for number, _ in packets}}
    differences = [ends[number] + struct.pack("!HH", port, PORT) for number, port in packets]
    return timing.Variant(program, packet(0, 0, flags), _CHECKSUM_AT, differences)


def drawn(kind: str, workloads: int, dice: random.Random) -> List[Tuple[int, int]]:
    """Packets (workload, source port) at random; of new connections enough that hardly any repeats, and so few that the
    kernel need not evict any."""
    if kind == "established":
        return [(dice.randrange(workloads), CLIENT_PORT) for _ in range(ESTABLISHED_PACKETS)]
    count = (WARM[kind] + CALLS) * ROUNDS[kind]
    return [(dice.randrange(workloads), dice.randrange(1024, 65536)) for _ in range(count)]


def time_verdicts(kind: str, variants: Dict[str, Tuple[int, int]]) -> timing.Timed:
    """Kind: "established" or "new". Variants: name -> (rules, workloads).

    New connections are timed apart from established ones: each writes memory of its own, which would push the others'
    out of the caches. Needs root.
    """
    dice = random.Random(1)  # the same packets in every run
    loaded: List[kernel.Datapath] = []
    timed: Dict[str, timing.Variant] = {}
    flags = frames.ACK if kind == "established" else frames.SYN
    try:
        for name, (rules, workloads) in variants.items():
            datapath = populate(rules, workloads)
            loaded.append(datapath)
            if kind == "established":
                establish(datapath, workloads)
            timed[name] = variant(datapath.programs["from_endpoint"], flags, drawn(kind, workloads, dice))
        return timing.run(timed, ROUNDS[kind], CALLS, WARM[kind])
    finally:
        for datapath in loaded:
            datapath.close()


def measure() -> List[Measurement]:
    """Nanoseconds by number of rules, and most rules over least. Needs root and built objects."""
    results: List[Measurement] = []
    few, many = RULES[0], RULES[-1]
    for kind in ("established", "new"):
        variants = {str(rules): (rules, WORKLOADS) for rules in RULES}
        variants["few_workloads"] = (few, few)
        timed = time_verdicts(kind, variants)
        ns = timed.ns
        note = f"net of {timed.empty_ns} ns for an empty program"
        results += [Measurement(f"verdict_{kind}_{rules}", ns[str(rules)], "ns", note=note) for rules in RULES]
        results.append(_ratio(f"verdict_{kind}_10k_over_10", timed, str(many), str(few), at_most=1.3))
        name = f"verdict_{kind}_workloads_10k_over_10"
        results.append(_ratio(name, timed, str(few), "few_workloads", note="both with 10 rules"))
    return results


def _ratio(
    name: str, timed: timing.Timed, most: str, least: str, at_most: Optional[float] = None, note: str = ""
) -> Measurement:
    sides = {"10k": timed.ns[most], "10": timed.ns[least]}
    return Measurement(name, timed.over(most, least), "ratio", at_most=at_most, sides=sides, note=note)


if __name__ == "__main__":
    print(table(measure()))
