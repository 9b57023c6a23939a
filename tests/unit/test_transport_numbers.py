"""Identity numbers under two controllers at once, with hashes that collide: real agents, each over a kernel in memory,
real provider code on top. What is random is drawn from a seed that the test's name shows."""

from __future__ import annotations

import functools
import json
import os
import random
import select
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent.node import Agent
from bpfleet.agent.serve import serve
from bpfleet.agent.session import boot_ticks
from bpfleet.errors import Unreachable
from bpfleet.loader.fake import FakeKernel
from bpfleet.model.document import canonical_json, parse_document
from bpfleet.model.identity import candidates
from bpfleet.transport.channel import Broken, Connection, Deadline, DialFailed, Stream
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed
from bpfleet.transport.target import Target
from provider.directory import Directory
from provider.writing import Put, Result, Writer
from tests.agent.agent_process import DeadWatchdog

NODES = ("h1", "h2", "h3")
CLUSTER_ID = 7
AT_ONCE = 3


@functools.cache
def colliding(key: str = "app") -> Sequence[dict[str, str]]:
    """2 x AT_ONCE sets of labels whose first candidates are one and the same number."""
    found: dict[int, list[dict[str, str]]] = defaultdict(list)
    for value in range(200_000):
        labels = {key: f"v{value}"}
        same = found[next(candidates(CLUSTER_ID, labels))]
        same.append(labels)
        if len(same) == 2 * AT_ONCE:
            return same
    raise AssertionError("the hash got better")


class Machine:
    """A host: the agents' folder and a kernel."""

    def __init__(self, folder: Path, address: str) -> None:
        self.root = folder
        self.address = address
        self.kernel = FakeKernel({"eth0": (1500, (address,))})


class Agents:
    """A connector to agents in threads of this process. `pause` is slept before each request; `away` is not reached."""

    local = True

    def __init__(self, machines: dict[str, Machine], seed: int, away: Sequence[str] = ()) -> None:
        self._machines = machines
        self._random = random.Random(seed)
        self._away = away

    def __call__(self, target: Target, until: Deadline) -> Connection:
        if target.name in self._away:
            raise DialFailed("away", again=False)
        return InProcess(self._machines[target.name], self._random)

    def close(self) -> None:
        """Nothing is kept."""


class InProcess:
    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self._machine = machine
        self._random = chance
        self.alive = True

    def open(self, command: str, until: Deadline) -> Stream:
        return Pipes(self._machine, self._random)

    def close(self) -> None:
        self.alive = False


class Pipes:
    """A `Stream` to an agent in a thread."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self._random = chance
        source, self._in = os.pipe()
        self._out, target = os.pipe()
        self._closed = False

        def run() -> None:
            try:
                arm: Any = lambda transaction: DeadWatchdog()  # noqa: E731
                agent = Agent(machine.root, lambda: machine.kernel, local=True, arm=arm)
                # A thread is as old as the process: what counts is when this conversation began.
                agent.session_started = boot_ticks()
                serve(agent, source, target)
            finally:
                os.close(source)
                os.close(target)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def send(self, data: bytes, until: Deadline) -> None:
        time.sleep(self._random.choice([0, 0, 0.002, 0.01, 0.03]))
        os.write(self._in, data)

    def end_input(self) -> None:
        raise NotImplementedError

    def receive(self, until: Deadline) -> bytes:
        while not select.select([self._out], [], [], until.look)[0]:
            if self._closed:
                raise Broken("closed")
            until.check("answer")
        return os.read(self._out, 1 << 16)

    def complaint(self) -> str:
        return ""

    def exit_status(self, until: Deadline) -> int | None:
        return 0

    def leave(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._in)
            self._thread.join(60)
            os.close(self._out)


def document(kind: str, name: str, spec: dict[str, Any]) -> Any:
    parsed = parse_document({"kind": kind, "name": name, "spec": spec}).to_json()
    return {"document": parsed, "owner": "setup", "metadata": {}}


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, Machine]:
    """Three nodes that are a cluster."""
    made = {name: Machine(tmp_path / name, f"192.168.77.{index}") for index, name in enumerate(NODES, 1)}
    puts = []
    for index, (name, machine) in enumerate(made.items(), 1):
        spec = {"address": machine.address, "devices": [{"name": "eth0"}], "workload_cidrs": [f"10.77.{index}.0/24"]}
        puts.append(document("node", name, spec))
    puts.append(document("cluster", "prod", {"id": CLUSTER_ID, "members": list(NODES)}))
    with Fleet(connector=Agents(made, 0)) as fleet:
        outcomes = fleet.transact(targets(), Changes(puts, owner="setup"))
    assert {type(outcome) for outcome in outcomes.values()} == {Committed}, outcomes
    return made


def targets() -> dict[str, Target]:
    return {name: Target(name, "localhost") for name in NODES}


@contextmanager
def controller(machines: dict[str, Machine], owner: str, seed: int, away: Sequence[str] = ()) -> Iterator[Writer]:
    """What a provider process has."""
    schedule = Schedule(attempts=1, rest=0.0)
    with Fleet(connector=Agents(machines, seed, away), schedule=schedule) as fleet, ThreadPoolExecutor(8) as pool:
        directory = Directory(lambda: fleet, pool)
        seeds = {name: target for name, target in targets().items() if name not in away}
        view = directory.view("prod", seeds)
        assert view is not None
        yield Writer(fleet, directory, view, owner, threading.Event())


def identities(owner: str, labels: Sequence[dict[str, str]]) -> list[Put]:
    return [Put("identity", f"{owner}-{index}", {"labels": each}) for index, each in enumerate(labels)]


def write_at_once(machines: dict[str, Machine], seed: int) -> dict[str, dict[str, Result]]:
    """Both controllers put their identities at the same moment."""
    start = threading.Barrier(2, timeout=60)

    def work(owner: str, labels: Sequence[dict[str, str]], number: int) -> dict[str, Result]:
        with controller(machines, owner, number) as writer:
            start.wait()
            return writer.write(identities(owner, labels), [])

    labels = colliding()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(work, "one", labels[:AT_ONCE], 2 * seed)
        two = pool.submit(work, "two", labels[AT_ONCE:], 2 * seed + 1)
        return {"one": one.result(120), "two": two.result(120)}


def generations(machine: Machine) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((machine.root / "generations").glob("*.json"))]


def numbers(generation: dict[str, Any]) -> dict[int, str]:
    """Labels by number, as one generation holds them."""
    specs = [item["document"]["spec"] for item in generation["items"] if item["document"]["kind"] == "identity"]
    found = {spec["number"]: canonical_json(spec["labels"]) for spec in specs}
    assert len(found) == len(specs), "a number is used for two"
    return found


def ever(machines: dict[str, Machine]) -> dict[int, set[str]]:
    """Every meaning that any node ever confirmed for a number."""
    meanings: dict[int, set[str]] = defaultdict(set)
    for machine in machines.values():
        kept = generations(machine)
        assert kept[0]["generation"] == 1, "the whole history is still there"
        for generation in kept:
            for number, labels in numbers(generation).items():
                meanings[number].add(labels)
    return meanings


def now(machines: dict[str, Machine]) -> list[dict[int, str]]:
    return [numbers(generations(machine)[-1]) for machine in machines.values()]


def test_the_labels_collide() -> None:
    """What the tests below rest on."""
    assert len({next(candidates(CLUSTER_ID, labels)) for labels in colliding()}) == 1
    assert len({canonical_json(labels) for labels in colliding()}) == 2 * AT_ONCE


@pytest.mark.parametrize("seed", range(12))
def test_two_controllers_never_use_a_number_for_two(machines: dict[str, Machine], seed: int) -> None:
    results = write_at_once(machines, seed)
    for owner in results.values():
        for key, result in owner.items():
            assert result.error is None, f"{key}: {result.error}"
            assert not result.lagging, f"{key}: {result.lagging}"
    one, *others = now(machines)
    assert len(one) == 2 * AT_ONCE
    assert all(other == one for other in others), "two nodes disagree"
    assert all(len(labels) == 1 for labels in ever(machines).values()), "a number had two meanings at some time"
    told = [result.spec for owner in results.values() for result in owner.values()]
    assert {spec["number"]: canonical_json(spec["labels"]) for spec in told} == one, (
        "the controllers were told what the nodes hold"
    )


@pytest.mark.parametrize("seed", range(4))
def test_they_agree_again_after_one_of_them_could_not_reach_the_deciding_node(
    machines: dict[str, Machine], seed: int
) -> None:
    """The one that cannot reach h1 takes its number at h2; the next run of either finds out, and ends it."""
    labels = colliding()
    with controller(machines, "one", seed, away=["h1"]) as writer:
        for result in writer.write(identities("one", labels[:AT_ONCE]), []).values():
            assert isinstance(result.lagging["h1"], Unreachable)
    write_at_once(machines, seed)
    write_at_once(machines, seed + 100)
    one, *others = now(machines)
    assert len(one) == 2 * AT_ONCE
    assert all(other == one for other in others)
