"""Resources applied and destroyed in random order and batch size end in the same state.

The provider is called as the engine calls it, but in orders and batches that the engine would take long to hit upon.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulumi.provider.experimental import provider as sdk

from bpfleet.lab import Lab
from bpfleet.model.identity import candidates
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target
from provider.engine import Engine
from provider.provider import BpfleetProvider
from provider.sdk import DeleteRequest
from provider.values import from_pulumi, to_pulumi

pytestmark = [pytest.mark.root, pytest.mark.lab]

CLUSTER_ID = 9
ROLES = ("web", "api", "db")
Digests = dict[str, tuple[str, str | None]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("order")
    with Lab.up(f"pulumi-order-{os.getpid()}", 2, 2, directory=folder, guarded=True) as up:
        yield up


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:test::order::bpfleet:index:{kind}::{name}"


def leaves(lab: Lab) -> dict[tuple[str, str], dict[str, Any]]:
    """Everything in the cluster: identities, endpoints on both hosts, policies that refer to each other's labels."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    places = [(host, workload) for host in ("h1", "h2") for workload in ("w1", "w2")]
    for index, role in enumerate(ROLES):
        host, workload = places[index]
        address = lab.host(host).workload_cidrs[0].replace("0/24", str(10 + index))
        found["Identity", role] = {"labels": {"role": role}}
        found["Endpoint", f"{role}-1"] = {
            "node": host, "identity": role, "addresses": [address], "attach": {"netns": workload}
        }  # fmt: skip
        other = ROLES[(index + 1) % len(ROLES)]
        rule = {"peers": [{"labels": {"role": other}}], "ports": [{"protocol": "tcp", "port": 80 + index}]}
        found["Policy", f"{role}-from-{other}"] = {"selector": {"role": role}, "ingress": [rule]}
    return found


class Program:
    """Calls the provider as the engine does: Check, then Create; Delete with the inputs."""

    def __init__(self, provider: BpfleetProvider) -> None:
        self.provider = provider
        self.inputs: dict[tuple[str, str], Any] = {}
        self.outputs: dict[tuple[str, str], Any] = {}

    async def check(self, key: tuple[str, str], properties: dict[str, Any]) -> None:
        checked = await self.provider.check(sdk.CheckRequest(urn(*key), {}, to_pulumi(properties), b""))
        assert not checked.failures and checked.inputs is not None
        self.inputs[key] = checked.inputs

    async def create(self, key: tuple[str, str]) -> None:
        response = await self.provider.create(sdk.CreateRequest(urn(*key), self.inputs[key], 0, False))
        self.outputs[key] = from_pulumi(response.properties)[0]

    async def delete(self, key: tuple[str, str]) -> None:
        request = DeleteRequest(urn(*key), key[1], {}, 0)
        request.old_inputs = self.inputs[key]
        await self.provider.delete(request)

    async def create_cluster(self, lab: Lab) -> Any:
        """Every host of the lab as a node, and the cluster of them; its handle."""
        for name, host in lab.hosts.items():
            ssh = {"privateKeyFile": str(lab.private_key), "hostKey": host.host_key}
            node = {"address": host.address, "devices": [{"name": host.device}], "ssh": ssh}
            await self.check(("Node", name), {**node, "workloadCidrs": list(host.workload_cidrs)})
        await each(self.create, [("Node", name) for name in lab.hosts])
        members = {name: self.outputs["Node", name]["handle"] for name in lab.hosts}
        await self.check(("Cluster", "fleet"), {"id": CLUSTER_ID, "members": members})
        await self.create(("Cluster", "fleet"))
        return self.outputs["Cluster", "fleet"]["handle"]

    async def delete_cluster(self, lab: Lab) -> None:
        """The inverse of `create_cluster`."""
        await self.delete(("Cluster", "fleet"))
        await each(self.delete, [("Node", name) for name in lab.hosts])


def in_batches(keys: Sequence[Any], sizes: Sequence[int]) -> Iterator[Sequence[Any]]:
    """`keys` cut into runs of these sizes, over and over."""
    start = turn = 0
    while start < len(keys):
        size = sizes[turn % len(sizes)]
        yield keys[start : start + size]
        start, turn = start + size, turn + 1


async def each(work: Callable[[Any], Awaitable[None]], keys: Sequence[Any]) -> None:
    await asyncio.gather(*(work(key) for key in keys))


@pytest.fixture(scope="module")
def seen() -> list[tuple[Digests, Digests]]:
    """What the examples ended in: digests with everything applied, and with all of it gone again."""
    return []


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(9)), batches=sizes, back=st.permutations(range(9)), back_batches=sizes)
def test_any_order_and_batching_ends_in_the_same_state(
    lab: Lab,
    seen: list[tuple[Digests, Digests]],
    order: list[int],
    batches: list[int],
    back: list[int],
    back_batches: list[int],
) -> None:
    async def scenario() -> tuple[Digests, Digests]:
        provider = BpfleetProvider(Engine(""))
        program = Program(provider)
        properties = leaves(lab)
        keys = list(properties)
        try:
            handle = await program.create_cluster(lab)
            for batch in in_batches([keys[index] for index in order], batches):
                for key in batch:
                    await program.check(key, {"cluster": handle, **properties[key]})
                await each(program.create, batch)
            applied = digests(lab)
            for batch in in_batches([keys[index] for index in back], back_batches):
                await each(program.delete, batch)
            emptied = digests(lab)
            await program.delete_cluster(lab)
            return applied, emptied
        finally:
            await provider.cancel()

    applied, emptied = asyncio.run(scenario())
    assert len({documents for documents, _ in applied.values()}) == 1, "all nodes hold the same documents"
    assert applied["h1"] != emptied["h1"]
    seen.append((applied, emptied))
    assert seen[-1] == seen[0]


def digests(lab: Lab) -> Digests:
    """Digests of documents and of NodeState, as each host tells them to somebody else."""
    with Fleet() as fleet:
        found = {}
        for name, host in lab.hosts.items():
            target = Target(name, host.address, private_key_file=str(lab.private_key), host_key=host.host_key)
            hello = fleet.install(target)
            found[name] = (hello["documents_digest"], hello["state_digest"])
        return found


def colliding_labels() -> list[dict[str, str]]:
    """Two sets of labels that would like the same number."""
    wanted: dict[int, dict[str, str]] = {}
    for index in range(65536):
        labels = {"n": str(index)}
        other = wanted.setdefault(next(candidates(CLUSTER_ID, labels)), labels)
        if other is not labels:
            return [other, labels]
    raise AssertionError("no two of so many labels collide")


def test_two_controllers_at_once_cannot_give_one_number_twice(lab: Lab) -> None:
    async def scenario() -> list[int]:
        programs = [Program(BpfleetProvider(Engine(""))) for _ in range(2)]
        keys = [("Identity", "one"), ("Identity", "two")]
        try:
            handle = await programs[0].create_cluster(lab)
            for program, key, labels in zip(programs, keys, colliding_labels()):
                await program.check(key, {"cluster": handle, "labels": labels})
            await asyncio.gather(*(program.create(key) for program, key in zip(programs, keys)))
            numbers = [program.outputs[key]["number"] for program, key in zip(programs, keys)]
            for program, key in zip(programs, keys):
                await program.delete(key)
            await programs[0].delete_cluster(lab)
            return numbers
        finally:
            for program in programs:
                await program.provider.cancel()

    first, second = asyncio.run(scenario())
    assert first != second
    assert {first, second} == set(itertools.islice(candidates(CLUSTER_ID, colliding_labels()[0]), 2))
