"""Packets lost while every program of two hosts is replaced under 1,000 numbered packets a second.

A workload of one host sends to a workload of the other; the object files of both hosts are changed (a byte after the
end of the ELF file: the same code under another digest, which an agent must take for a new version), and a
transaction then loads and attaches all of them anew. The receiver counts the distinct numbers that arrived.

    python -m bench.survival_swap
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

from bench.report import Measurement, table
from bench.survival_fleet import CLUSTER, Documents, change, document, host_target, identity, node
from bpfleet.agent.wire import STATE_ROOT
from bpfleet.lab import Host, Lab
from bpfleet.transport.fleet import Fleet

RATE = 1_000
SWAPS = 5
PORT = 7_000
SETTLE_SECONDS = 1.0
END_SECONDS = 30.0

_RECEIVE = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: a slow reader must not lose what arrived
s.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
seen = set()
while True:
    number = struct.unpack("!q", s.recv(64))[0]
    if number < 0:
        break
    seen.add(number)
    s.settimeout(60)
print(len(seen), flush=True)
"""
_SEND = """
import select, socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
to = sys.argv[1], int(sys.argv[2])  # not connected: that the receiver has ended is no error of the last packet
rate, number, began = int(sys.argv[3]), 0, time.monotonic()
while not select.select([sys.stdin], [], [], 0)[0]:
    due = int((time.monotonic() - began) * rate)
    while number <= due:
        s.sendto(struct.pack("!q", number), to)
        number += 1
        if number % 100 == 0:
            break
    time.sleep(0.0005)
time.sleep(0.5)
for _ in range(3):
    s.sendto(struct.pack("!q", -1), to)
print(number, flush=True)
"""
_OTHER_OBJECTS = f"for f in $(find {STATE_ROOT}/agent -name '*.bpf.o'); do printf x >>$f; done"


def measure() -> List[Measurement]:
    """swap_lost_packets."""
    name = f"bench-swap-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, 2, 1, directory=Path(directory), guarded=True) as lab, Fleet() as fleet:
            targets = {host.name: host_target(lab, host) for host in lab.hosts.values()}
            change(fleet, targets, _documents(lab))
            before = {host: _drops(fleet.call(target, "status")) for host, target in targets.items()}
            with _python(lab.host("h2"), _RECEIVE, str(PORT)) as receiver:
                assert receiver.stdout is not None
                receiver.stdout.readline()
                began = time.perf_counter()
                with _python(lab.host("h1"), _SEND, _address(lab.host("h2")), str(PORT), str(RATE)) as sender:
                    attached = 0
                    for swap in range(SWAPS):
                        time.sleep(SETTLE_SECONDS)
                        attached += _swap(lab, fleet, swap)
                    time.sleep(SETTLE_SECONDS)
                    sent = int(sender.communicate("end\n", timeout=END_SECONDS)[0])
                seconds = time.perf_counter() - began
                received = int(receiver.communicate(timeout=END_SECONDS)[0])
            after = {host: _drops(fleet.call(target, "status")) for host, target in targets.items()}
    return [
        Measurement(
            "swap_lost_packets",
            sent - received,
            "packets",
            at_most=0,
            sides={
                "sent": sent,
                "received": received,
                "programs replaced": attached,
                "a second": sent / seconds,
                "dropped by ours": sum(after.values()) - sum(before.values()),
            },
            note=f"{SWAPS} transactions, in each every program of both hosts is loaded and attached anew",
        )
    ]


def _swap(lab: Lab, fleet: Fleet, number: int) -> int:
    """Replace every program on both hosts; how many programs were replaced."""
    for host in lab.hosts.values():
        host.run(["sh", "-c", _OTHER_OBJECTS])
    targets = {host.name: host_target(lab, host) for host in lab.hosts.values()}
    committed = change(fleet, targets, [_policy(f"version {number}")])
    replaced = [int(outcome.steps.get("Attach", 0)) for outcome in committed.values()]
    if not all(replaced):
        raise RuntimeError(f"nothing was replaced: {committed}")
    return sum(replaced)


def _documents(lab: Lab) -> Documents:
    return [
        document("cluster", CLUSTER, id=1, members=sorted(lab.hosts)),
        *(node(host) for host in lab.hosts.values()),
        identity("app", {"app": "app"}),
        *(
            document(
                "endpoint",
                f"e{host.index}",
                node=host.name,
                identity="app",
                addresses=[_address(host)],
                attach={"netns": "w1"},
            )
            for host in lab.hosts.values()
        ),
        _policy("first"),
    ]


def _policy(description: str) -> Dict[str, Any]:
    rule = {"peers": [{"labels": {"app": "app"}}], "ports": [{"protocol": "udp", "port": PORT}]}
    return document("policy", "numbered", description=description, selector={"app": "app"}, ingress=[rule])


def _address(host: Host) -> str:
    return f"{host.workload_cidrs[0].partition('/')[0].rpartition('.')[0]}.10"


def _python(host: Host, script: str, *arguments: str) -> subprocess.Popen[str]:
    return host.popen(
        ["/usr/bin/python3", "-c", script, *arguments],
        workload="w1",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _drops(status: Dict[str, Any]) -> int:
    return sum(int(row["packets"]) for row in status["counters"] if row["drop"])


if __name__ == "__main__":
    found = measure()
    print(table(found), json.dumps([one.to_json() for one in found]), sep="\n")
