"""Two CPUs that see the two sides of a connection at the same moment: what each writes into the record counts."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import struct
from collections import Counter

import pytest

from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import ENUMS
from tests.packet import frames as f
from tests.packet.kernel import TEST_RUN, Datapath, bpf, buffer, pointer
from tests.packet.place import context_of
from tests.packet.world import ADDRESSES, DEVICES

pytestmark = pytest.mark.root

CONNECTIONS = 5000
PATIENCE = 200_000
"""How often one looks whether the other is as far; it may not be running at all."""
STATE = ENUMS["connection_state"]


def closes(program: int, cpu: int, device: int, sent: list[bytes], steps: memoryview) -> None:
    """Send one packet after the other, each when the other CPU is about to send its own."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[cpu]})
    data, out, context = buffer(sent[0]), buffer(bytes(len(sent[0]) + 256)), buffer(context_of(device))
    sizes = len(sent[0]), len(sent[0]) + 256
    ends = pointer(data), pointer(out)
    attributes = struct.pack("<IIIIQQIIIIQQ", program, 0, *sizes, *ends, 1, 0, 192, 0, pointer(context), 0)
    for number, frame in enumerate(sent, 1):
        ctypes.memmove(data, frame, len(frame))
        steps[8 * cpu] = number  # a cache line each
        for _ in range(PATIENCE):
            if steps[8 * (1 - cpu)] >= number:
                break
        bpf(TEST_RUN, attributes, (data, out, context))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs")
def test_both_sides_end_a_connection_at_once(datapath: Datapath) -> None:
    """Neither FIN is lost: a record that knew of one only would count for hours."""
    a, b = ADDRESSES[4]["a"], ADDRESSES[4]["b"]
    program = datapath.programs["from_endpoint"]
    pairs = [(1024 + number, 80) for number in range(CONNECTIONS)]
    for pair in pairs:
        datapath.run_raw("from_endpoint", f.ether(f.tcp(a, b, pair)), context_of(DEVICES["a"]))
    sides = (
        (DEVICES["a"], [f.ether(f.tcp(a, b, pair, f.FIN | f.ACK)) for pair in pairs]),
        (DEVICES["b"], [f.ether(f.tcp(b, a, pair[::-1], f.FIN | f.ACK)) for pair in pairs]),
    )
    with mmap.mmap(-1, mmap.PAGESIZE) as shared, memoryview(shared) as raw, raw.cast("Q") as steps:
        forking = multiprocessing.get_context("fork")
        ran = [
            forking.Process(target=closes, args=(program, cpu, device, sent, steps))
            for cpu, (device, sent) in enumerate(sides)
        ]
        for process in ran:
            process.start()
        for process in ran:
            process.join()
    connections = datapath.maps["connections"]
    keys = connections.keys()
    values = [connections.lookup_raw(key) for key in keys]
    states = Counter(layout.decode("connections", "value", value)["state"] for value in values if value)
    assert states == {STATE["replied"] | STATE["end_initiator"] | STATE["end_responder"]: 2 * CONNECTIONS}
