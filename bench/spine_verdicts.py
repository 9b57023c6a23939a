"""What a policy verdict costs with 10, 1,000 and 10,000 rules, in the real bpfl_from_ep.

The endpoint has one egress rule for each of N peers, every peer an identity and an address of its own on another node.
Packets go to peers drawn at random over all N: to established connections (one to each peer), or as a SYN from a
random port. Timed by bench/harness/verdict_bench.c, net of an empty program. What is timed is everything from the
endpoint's look-up to the tunnel key and redirect, not the encapsulation behind it.

    python -m bench.spine_verdicts
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from bench.report import Measurement, table
from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import ENUMS
from tests.packet import frames, kernel

ROOT = Path(__file__).resolve().parents[1]
HARNESS = ROOT / "build/bench/verdict_bench"

RULES = (10, 1_000, 10_000)
ROUNDS, CALLS = 15, 4_000
LOOPBACK = 1  # the device of a packet in BPF_PROG_TEST_RUN unless told otherwise
SUBJECT, FIRST_PEER = 70_000, 80_000
SOURCE, NODE, MEMBER = "10.0.0.1", "192.0.2.1", "192.0.2.2"
PORT = 80

_PROG_LOAD, _SCHED_CLS = 5, 3
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def peer_address(number: int) -> str:
    """The address of a peer."""
    return f"10.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def populate(count: int) -> kernel.Datapath:
    """A loaded datapath with that many peers and rules."""
    datapath = kernel.Datapath({"node_address": NODE, "events_slots_mask": kernel.SLOTS - 1})
    maps = datapath.maps
    maps["node"].update({"index": 0}, {"addresses_revision": 1, "tunnel_ifindex": LOOPBACK})
    maps["endpoints"].update(
        {"ifindex": LOOPBACK},
        {"identity": SUBJECT, "policy_revision": 1, "workload_mac": "", "device_mac": "", "flags": 0},
    )
    maps["addresses"].update({"address": SOURCE}, {"identity": SUBJECT, "ifindex": LOOPBACK, "tunnel_endpoint": ""})
    entries = []
    egress = ENUMS["direction"]["egress"]
    for number in range(count):
        peer = {"identity": FIRST_PEER + number, "ifindex": 0, "tunnel_endpoint": MEMBER}
        maps["addresses"].update({"address": peer_address(number)}, peer)
        key = {"peer": FIRST_PEER + number, "direction": egress, "protocol": frames.TCP, "port": PORT}
        entries.append((key, {"rule_id": 1 + number, "action": ENUMS["policy_action"]["allow"], "classes": 0}))
    header = {"peer": ENUMS["policy_peer"]["header"], "direction": egress, "protocol": 0, "port": 0}
    entries.append((header, {"rule_id": 0, "action": 0, "classes": ENUMS["policy_class"]["peer_port"]}))
    datapath.set_policy(SUBJECT, entries)
    return datapath


def packet(number: int, source_port: int, flags: int) -> bytes:
    """A frame to a peer."""
    return frames.ether(frames.tcp(SOURCE, peer_address(number), (source_port, PORT), flags))


def establish(datapath: kernel.Datapath, count: int) -> None:
    """One connection to each peer, answered. Raises RuntimeError if one is missing."""
    context = bytes(192)
    for number in range(count):
        datapath.run_raw("from_endpoint", packet(number, 40_000, frames.SYN), context)
    connections = datapath.maps["connections"]
    keys = connections.keys()
    if len(keys) != count:
        raise RuntimeError(f"{len(keys)} connections where {count} were made")
    for key in keys:
        record = layout.decode("connections", "value", connections.lookup_raw(key))
        record["state"] = ENUMS["connection_state"]["replied"]
        connections.update_raw(key, layout.encode("connections", "value", record))


def write_packets(path: Path, flags: int, packets: List[Tuple[int, int]]) -> None:
    """Packets (peer, source port) as the harness reads them: a frame, and destination and ports of each."""
    frame = packet(0, 0, flags)
    at, size = 14 + 16, 8  # destination address and ports of an IPv4 packet without options
    differences = b"".join(
        socket.inet_aton(peer_address(number)) + struct.pack("!HH", port, PORT) for number, port in packets
    )
    path.write_bytes(struct.pack("=III", len(frame), at, size) + frame + differences)


def empty_program() -> int:
    """A program that returns 0; its descriptor."""
    instructions, licence = kernel.buffer(_RETURN_0), kernel.buffer(b"GPL\0")
    attributes = struct.pack("<IIQQ", _SCHED_CLS, 2, kernel.pointer(instructions), kernel.pointer(licence))
    return kernel.bpf(_PROG_LOAD, attributes, (instructions, licence))[0]


def time_verdicts(kind: str, rounds: int = ROUNDS, calls: int = CALLS) -> Dict[str, Any]:
    """What the harness prints for a variant of each number of rules. Kind: "established" or "new". Needs root.

    The two kinds are timed apart: every new connection writes memory of its own, which would push the established
    ones out of the caches.
    """
    subprocess.run(["make", "-s", "-C", str(ROOT / "bench/harness")], check=True)
    dice = random.Random(1)  # the same packets in every run
    loaded: List[kernel.Datapath] = []
    empty = empty_program()
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments, descriptors = [], [empty]
            for count in RULES:
                datapath = populate(count)
                loaded.append(datapath)
                if kind == "established":
                    establish(datapath, count)
                    flags, ports = frames.ACK, [40_000] * calls
                else:  # enough that hardly any SYN repeats within the rounds
                    flags = frames.SYN
                    ports = [dice.randrange(1024, 65536) for _ in range(calls * (rounds + 1))]
                path = Path(folder) / str(count)
                write_packets(path, flags, [(dice.randrange(count), port) for port in ports])
                descriptor = datapath.programs["from_endpoint"]
                descriptors.append(descriptor)
                arguments.append(f"{count}:{descriptor}:{path}")
            cpu = max(os.sched_getaffinity(0))
            command = [str(HARNESS), str(cpu), str(rounds), str(calls), str(empty), *arguments]
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            done = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=descriptors)
    finally:
        os.close(empty)
        for datapath in loaded:
            datapath.close()
    result: Dict[str, Any] = json.loads(done.stdout)
    return result


def measure() -> List[Measurement]:
    """Nanoseconds by number of rules, and most rules over least. Needs root and built objects."""
    results: List[Measurement] = []
    for kind in ("established", "new"):
        timed = time_verdicts(kind)
        ns = {count: timed["variants"][str(count)]["ns"] for count in RULES}
        note = f"net of {timed['empty_ns']} ns for an empty program"
        results += [Measurement(f"verdict_{kind}_{count}", ns[count], "ns", note=note) for count in RULES]
        most, least = ns[RULES[-1]], ns[RULES[0]]
        ratio = round(most / least, 3)
        sides = {"10k": most, "10": least}
        results.append(Measurement(f"verdict_{kind}_10k_over_10", ratio, "ratio", at_most=1.3, sides=sides))
    return results


if __name__ == "__main__":
    print(table(measure()))
