"""Group `frontends`: one fleet of 20 lab hosts by `pulumi up` and by a play. What it takes is counted on the hosts.

Transactions are those of the agents' journals, connections the "Accepted" lines of the hosts' sshd, bytes those of the
hosts' devices, whoever sent them; so a front end cannot flatter itself. Each way starts with fresh hosts, then changes
one policy, then nothing. Every host here shares the cores of this one machine, so seconds are for standing side by
side; counts and CPU seconds are what a fleet of real hosts sees too.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence

from bench import frontends_fleet as fleet
from bench.frontends_nodes import Took, between, look
from bench.report import Measurement
from bpfleet.lab import Lab
from tests.e2e.ansible_play import Controller
from tests.e2e.pulumi_stack import Stack, cli_folder
from tools.build_collection import assemble

PARALLEL = 256
CHANGED_PORT = 8080
MOST_TRANSACTIONS = 1
MOST_CONNECTIONS = 2

Run = Callable[[fleet.Documents], object]


class Step:
    """What one run of a front end took: each host, and the controller."""

    def __init__(self, nodes: Sequence[Took], seconds: float, controller_cpu: float) -> None:
        self.nodes = nodes
        self.seconds = seconds
        self.controller_cpu = controller_cpu

    def worst(self, figure: Callable[[Took], float]) -> float:
        """The host with the highest figure."""
        return max(figure(node) for node in self.nodes)

    def mean(self, figure: Callable[[Took], float]) -> float:
        """Over all hosts."""
        return statistics.mean(figure(node) for node in self.nodes)


Steps = Mapping[str, Step]
"""By what was to be done: "up", "change", "noop"."""


def measure() -> List[Measurement]:
    """All figures of the group."""
    ways = {"pulumi": by_pulumi("--parallel", str(PARALLEL)), "pulumi_default": by_pulumi(), "ansible": by_ansible()}
    return [
        *_goals("up20", ways["pulumi"]["up"], MOST_TRANSACTIONS, MOST_CONNECTIONS, f"--parallel {PARALLEL}"),
        *_goals("up20_default", ways["pulumi_default"]["up"], None, None, "Pulumi's own parallelism, 4 x cores"),
        *_goals("play20", ways["ansible"]["up"], None, None, "a playbook, 20 forks; makes members in the same one"),
        *_goals("change20", ways["pulumi"]["change"], 1, MOST_CONNECTIONS, "one policy changed, by pulumi up"),
        *(one for step in ("up", "change", "noop") for one in _side_by_side(step, ways)),
    ]


def by_pulumi(*options: str) -> Steps:
    """`pulumi up` with these options, on fresh hosts."""
    cli = cli_folder()

    def ready(lab: Lab, folder: Path, after: ExitStack) -> Run:
        stack = Stack(folder / "stack", cli, parallel=None)

        def up(documents: fleet.Documents) -> None:
            stack.resources = fleet.resources(lab, documents)
            stack.up(*options)

        return up

    return _steps(ready)


def by_ansible() -> Steps:
    """A play of the role and `documents`, on fresh hosts."""

    def ready(lab: Lab, folder: Path, after: ExitStack) -> Run:
        assemble(folder / "collections")
        controller = Controller(lab, folder / "collections", folder)
        after.callback(controller.close)

        def play(documents: fleet.Documents) -> None:
            try:
                controller.play(fleet.playbook(documents))
            finally:
                controller.disconnect()  # connections that ControlPersist keeps would be the next run's

        return play

    return _steps(ready)


def _steps(ready: Callable[[Lab, Path, ExitStack], Run]) -> Steps:
    """Fresh hosts, and on them what `ready` makes: first all documents, then one changed, then the same again."""
    steps: Dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as directory:
        name, files = f"bench-{os.getpid()}", Path(directory, "lab")
        with (
            Lab.up(name, fleet.HOSTS, fleet.WORKLOADS, directory=files, guarded=True) as lab,
            ExitStack() as after,
        ):
            run = ready(lab, Path(directory), after)
            for step, port in (("up", 80), ("change", CHANGED_PORT), ("noop", CHANGED_PORT)):
                documents = fleet.documents(lab, port)
                seen, cpu, began = look(lab), _controller_cpu(), time.perf_counter()
                run(documents)
                seconds, cpu = time.perf_counter() - began, _controller_cpu() - cpu
                took = between(seen, look(lab), len(documents))
                steps[step] = Step(took, seconds, cpu)
    return steps


def _controller_cpu() -> float:
    """CPU seconds of all commands run here that have ended; the hosts' processes are none of them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _goals(
    prefix: str, step: Step, most_transactions: float | None, most_connections: float | None, note: str
) -> List[Measurement]:
    """Transactions after enrolment, and connections for each transaction: the worst host, beside it the mean."""

    def datapath(node: Took) -> float:
        return node.transactions - node.enrolment

    def connections(node: Took) -> float:
        return node.connections_per_transaction

    worst = max(step.nodes, key=connections)
    return [
        Measurement(
            f"{prefix}_transactions_per_node",
            step.worst(datapath),
            "transactions",
            at_most=most_transactions,
            sides={"mean": step.mean(datapath), "enrolment": step.worst(lambda node: node.enrolment)},
            note=f"{note}; the worst node, by the agents' journals",
        ),
        Measurement(
            f"{prefix}_ssh_connections_per_transaction",
            connections(worst),
            "connections",
            at_most=most_connections,
            sides={
                "connections": worst.connections,
                "transactions": worst.transactions,
                "mean": step.mean(connections),
            },
            note=f"{note}; the worst node, by sshd's Accepted lines, enrolment included",
        ),
    ]


def _side_by_side(step: str, ways: Mapping[str, Steps]) -> List[Measurement]:
    """One run's cost by each way, a node's as the mean over all; the value is Pulumi's."""
    words = {"up": "fresh hosts", "change": "one policy changed", "noop": "nothing changed"}[step]
    of = {way: steps[step] for way, steps in ways.items()}

    def figure(name: str, unit: str, value: Callable[[Step], float]) -> Measurement:
        sides = {way: round(value(one), 3) for way, one in of.items()}
        return Measurement(f"frontends_{step}_{name}", sides["pulumi"], unit, sides=sides, note=words)

    return [
        figure("seconds", "s", lambda one: one.seconds),
        figure("controller_cpu_seconds", "s", lambda one: one.controller_cpu),
        figure("node_cpu_seconds", "s", lambda one: one.mean(lambda node: node.cpu_seconds)),
        figure("connections_per_node", "connections", lambda one: one.mean(lambda node: node.connections)),
        figure("bytes_per_node", "bytes", lambda one: one.mean(lambda node: node.bytes)),
        figure("bytes_to_node", "bytes", lambda one: one.mean(lambda node: node.received)),
    ]
