"""Identity numbers under two Pulumi processes at once, with hashes that collide, over lab hosts.

The two meet where only the order of nodes keeps a number from being two: both have staged the same ones everywhere, and
each would be first on other nodes. tests/unit/test_transport_numbers.py goes through many random interleavings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.kept import meanings
from tests.e2e.meeting import Meeting
from tests.e2e.pulumi_stack import Stack, cli_folder, cluster, node
from tests.e2e.test_transport import target_of
from tests.unit.test_transport_numbers import AT_ONCE, colliding

pytestmark = [pytest.mark.root, pytest.mark.lab]

NODES = ("h1", "h2", "h3")


@pytest.fixture
def lab(tmp_path: Path, needs_root: None) -> Iterator[Lab]:
    with Lab.up(f"numbers-{os.getpid()}", len(NODES), 0, directory=tmp_path / "lab", guarded=True) as up:
        yield up


def handle(lab: Lab) -> dict[str, Any]:
    """The cluster's handle, as a stack of other people writes it down."""
    seeds = {
        name: {
            "name": name,
            "address": host.address,
            "ssh": {"privateKeyFile": str(lab.private_key), "hostKey": host.host_key},
        }
        for name, host in lab.hosts.items()
    }
    return {"cluster": "fleet", "seeds": seeds}


def identity(of: Any, labels: dict[str, str]) -> dict[str, Any]:
    return {"type": "bpfleet:Identity", "properties": {"cluster": of, "labels": labels}}


def numbers(lab: Lab) -> dict[str, dict[str, int]]:
    """Numbers by identity, by node."""
    with Fleet() as fleet:
        held = {
            name: fleet.call(target_of(lab, host), "documents", {"kinds": ["identity"]})["items"]
            for name, host in lab.hosts.items()
        }
    return {
        name: {item["document"]["name"]: item["document"]["spec"]["number"] for item in items}
        for name, items in held.items()
    }


def test_two_stacks_that_want_the_same_numbers_both_finish(lab: Lab, tmp_path: Path) -> None:
    cli, labels, meeting = cli_folder(), colliding(), Meeting(tmp_path / "meeting")
    meeting.plan({})
    one, two = (Stack(tmp_path / name, cli, name, meeting=meeting.folder) for name in ("one", "two"))
    for name, host in lab.hosts.items():
        one.resources[name] = node(host, lab.private_key)
    one.resources["fleet"] = cluster(*NODES)
    one.up()
    for index in range(AT_ONCE):
        one.resources[f"one-{index}"] = identity("${fleet.handle}", labels[index])
        two.resources[f"two-{index}"] = identity(handle(lab), labels[AT_ONCE + index])
    # If both went to all nodes at once: one would be first on h1, two on the others.
    staged = {who: [f"{who}.{name}.stage.answered" for name in NODES] for who in ("one", "two")}
    first, *rest = NODES
    meeting.plan(
        {
            f"one.{first}.apply.before": staged["two"],
            f"two.{first}.apply.before": [f"one.{first}.confirm.answered"],
            **{f"one.{name}.apply.before": [f"two.{name}.confirm.answered"] for name in rest},
            **{f"two.{name}.apply.before": staged["one"] for name in rest},
        }
    )
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(stack.up) for stack in (one, two)]:
            assert not run.result(300).all_errors
    assert all(len(meant) == 1 for meant in meanings(lab).values()), "a number meant two at some time"
    held = numbers(lab)
    assert len(held["h1"]) == len(set(held["h1"].values())) == 2 * AT_ONCE
    assert held["h2"] == held["h3"] == held["h1"]
    told = {
        name: int(entry["outputs"]["number"])
        for stack in (one, two)
        for name, entry in stack.state().items()
        if name.startswith(("one-", "two-"))
    }
    assert told == held["h1"]
    # Nobody takes a number back: what is declared stays what it is.
    assert not one.up().ops
    assert not two.up().ops
    two.destroy()
    assert set(numbers(lab)["h3"]) == {f"one-{index}" for index in range(AT_ONCE)}
    one.destroy()
