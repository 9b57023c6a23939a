"""The agent's size, how soon it answers, and what an update that changes nothing writes on the nodes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, List

from bench.report import Measurement
from bpfleet.agent import install
from bpfleet.lab import Host, Lab
from bpfleet.transport import artefact
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target
from examples.demo import EXAMPLE, Pulumi

HELLO_ROUNDS = 21


def measure() -> List[Measurement]:
    """agent_bytes, agent_hello_seconds, noop_writes: on lab hosts provisioned by `pulumi up` of the quickstart."""
    agent = artefact.current()
    name = f"bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, nodes=3, workloads=2, directory=Path(directory), guarded=True) as lab:
            try:
                pulumi = Pulumi(lab, name)
                pulumi.select()
                pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
                before = _writes(lab)
                # A plain second `up` has nothing to ask the nodes; with a refresh, each is read in full.
                pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
                pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs", "--refresh")
                noop = {host: after - before[host] for host, after in _writes(lab).items()}
            finally:
                (EXAMPLE / f"Pulumi.{name}.yaml").unlink(missing_ok=True)
            hello = sorted(_hello_seconds(lab.host("h1"), agent.digest) for _ in range(HELLO_ROUNDS))
    return [
        Measurement("agent_bytes", len(agent.data), "bytes", at_most=2_000_000),
        Measurement(
            "agent_hello_seconds",
            statistics.median(hello),
            "s",
            at_most=0.3,
            sides={"least": hello[0], "most": hello[-1]},
            note="from starting the process on the host to its answer",
        ),
        Measurement("noop_writes", sum(noop.values()), "writes", at_most=0, sides=noop, note="a second and a third up"),
    ]


def _writes(lab: Lab) -> Dict[str, int]:
    """What each node has counted: every mutating system call, netlink request and file write since it was enrolled."""
    hosts = json.loads((lab.directory / "lab.json").read_text())["hosts"]
    with Fleet() as fleet:
        return {
            host: int(fleet.call(Target.from_metadata(host, data["ssh"], data["address"]), "hello")["writes"])
            for host, data in hosts.items()
        }


def _hello_seconds(host: Host, digest: str) -> float:
    began = time.perf_counter()
    with host.popen(
        ["sh", "-c", install.launch_command(digest, local=True)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"id":1,"method":"hello","params":{}}\n')
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        seconds = time.perf_counter() - began
        process.stdin.close()
    if "result" not in answer:
        raise RuntimeError(f"no hello: {answer}")
    return seconds
