"""What balancing at the socket costs a connection: set up through a service's frontend against directly."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import List

from bench.report import Measurement
from bpfleet.lab import Lab
from examples.demo import EXAMPLE, Pulumi, serving

ROUNDS = 61
CONNECTS = 200

# Alternates rounds of connections to two addresses; prints the seconds of each round, as JSON.
CLIENT = """
import json, socket, struct, sys, time
rounds, connects, port, *addresses = sys.argv[1:]
def once(address):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.connect((address, int(port)))
found = {address: [] for address in addresses}
for number in range(int(rounds)):
    for address in addresses if number % 2 else addresses[::-1]:
        began = time.perf_counter()
        for _ in range(int(connects)):
            once(address)
        found[address].append(time.perf_counter() - began)
print(json.dumps(found))
"""


def measure() -> List[Measurement]:
    """socket_lb_connect_ratio: between hosts of a lab, on the quickstart's service with its one backend."""
    name = f"bench-sockets-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, nodes=3, workloads=2, directory=Path(directory), guarded=True) as lab:
            try:
                pulumi = Pulumi(lab, name)
                pulumi.select()
                pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
                outputs = pulumi.outputs()
            finally:
                (EXAMPLE / f"Pulumi.{name}.yaml").unlink(missing_ok=True)
            port, service, workloads = int(outputs["port"]), outputs["service"], outputs["workloads"]
            direct, frontend = workloads[service["backend"]]["address"], service["address"]
            client = workloads["web"]
            with serving(lab, workloads, port):
                words = ["python3", "-S", "-c", CLIENT, ROUNDS, CONNECTS, port, direct, frontend]
                done = lab.host(client["host"]).run([str(word) for word in words], workload=client["workload"])
    seconds = json.loads(done.stdout)
    ratios = [through / plain for through, plain in zip(seconds[frontend], seconds[direct])]
    return [
        Measurement(
            "socket_lb_connect_ratio",
            statistics.median(ratios),
            "",
            at_most=1.10,
            sides={
                "direct": statistics.median(seconds[direct]) / CONNECTS,
                "frontend": statistics.median(seconds[frontend]) / CONNECTS,
            },
            note=f"median of {ROUNDS} paired rounds of {CONNECTS} connections, seconds each",
        )
    ]
