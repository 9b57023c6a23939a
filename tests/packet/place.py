"""A kernel with pins of its own, whose policies change by the real plan and apply while packets pass its programs."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, List

from bpfleet.compile.compiler import Compiler
from bpfleet.loader import syscall
from bpfleet.loader.apply import apply
from bpfleet.loader.maps import closing
from bpfleet.loader.pins import Pins, open_pin
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.loader.steps import Step
from bpfleet.model.document import Document, DocumentSet
from bpfleet.model.state import Facts, NodeState
from tests import fleet

_SK_BUFF_SIZE, _IFINDEX = 192, 40

Work = Callable[[str, int, Connection], None]


LABELS = {"a": {"app": "a"}, "b": {"app": "b"}}
NUMBERS = {name: fleet.identity(name, labels).spec["number"] for name, labels in LABELS.items()}


def two_ends() -> List[Document]:
    """A cluster in which a and b are on the first node."""
    found = [fleet.cluster(["h1", "h2"]), fleet.node(1), fleet.node(2)]
    for host, name in enumerate(LABELS, 1):
        attach = {"interface": f"dev-{name}"}
        found += [
            fleet.identity(name, LABELS[name]),
            fleet.document("endpoint", name, node="h1", identity=name, addresses=[f"10.77.1.{host}"], attach=attach),
        ]
    return found


def state_of(world: Sequence[Document]) -> NodeState:
    """What the compiler makes, without what is not of the tests' namespace."""
    facts = Facts("h1", dict.fromkeys(("eth0", "dev-a", "dev-b"), (1500, ())))
    made = Compiler().compile(DocumentSet(world), facts).state
    node = made.tables["node"]
    tables = {
        **made.tables,
        "node": replace(node, rows={key: (row[0], "dev-vxlan") for key, row in node.rows.items()}),
    }
    programs = {name: program for name, program in made.programs.items() if name == "from_endpoint"}
    return replace(made, programs=programs, attachments={}, tables=tables, devices={}, routes={}, sysctls={})


@dataclass
class Place:
    """The kernel, and the device whose packets are fed to it."""

    kernel: RealKernel
    pins: str
    ifindex: int

    def bring(self, want: NodeState) -> List[Step]:
        """As the agent: stage, plan against what is there, apply."""
        self.kernel.prepare(want.programs)
        steps = plan(want, self.kernel.read(want))
        apply(self.kernel, steps)
        self.kernel.release()
        return steps


def pinned_program(pins: str) -> int:
    """A descriptor of the only program that is pinned there."""
    named = Pins(pins)
    ((object_name, digest),) = named.list_programs()
    return syscall.get(str(named.program(object_name, digest)))


def inner_of(pins: str, subject: int) -> int:
    """A descriptor of the policy map of an identity."""
    handle = open_pin(Pins(pins).map("policies"))
    assert handle is not None
    with closing(handle):
        found = syscall.map_lookup(handle, subject.to_bytes(4, "little"), 4)
    assert found is not None
    return syscall.map_by_id(int.from_bytes(found, "little"))


def context_of(ifindex: int) -> bytes:
    """What a packet that comes in by that device brings along."""
    context = bytearray(_SK_BUFF_SIZE)
    struct.pack_into("<I", context, _IFINDEX, ifindex)
    return bytes(context)


class Hammer:
    """A process on a CPU of its own that feeds packets until it is stopped.

    `work` gets the pins, the device's index and a connection, over which it says "ready", and at the end, once there is
    something to be read, what it saw.
    """

    def __init__(self, work: Work, place: Place) -> None:
        forking = multiprocessing.get_context("fork")
        self._talk, other = forking.Pipe()
        self._process = forking.Process(target=_alone, args=(work, place.pins, place.ifindex, other), daemon=True)
        self._process.start()
        assert self._talk.poll(30) and self._talk.recv() == "ready"

    def stop(self) -> Any:
        """What it saw."""
        self._talk.send("stop")
        assert self._talk.poll(30)
        report = self._talk.recv()
        self._process.join(30)
        return report

    def kill(self) -> None:
        """If a test failed before it was stopped."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def hammered(place: Place, work: Work, flip: Callable[[int], None], times: int) -> Any:
    """What a hammer saw while that many flips were made."""
    hammering = Hammer(work, place)
    try:
        for number in range(times):
            flip(number)
            time.sleep(0.005)
        return hammering.stop()
    finally:
        hammering.kill()


def _alone(work: Work, pins: str, ifindex: int, talk: Connection) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    work(pins, ifindex, talk)
