"""Who decides over identity numbers in a playbook: real agents, each over a kernel in memory, asked as Ansible asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from bpfleet.agent.node import Agent
from bpfleet.agent.serve import serve
from bpfleet.agent.session import boot_ticks
from bpfleet.model.identity import candidates
from tests.agent.agent_process import DeadWatchdog
from tests.unit.collection import module
from tests.unit.test_transport_numbers import (
    CLUSTER_ID,
    NODES,
    Machine,
    colliding,
    generations,
    machines,
    numbers,
)

__all__ = ["machines"]

deciding = module("deciding")
transaction = module("transaction")
channels = module("channel")
errors = module("vendored.bpfleet.errors")

OWNER = "ansible:prod"
FIRST = next(candidates(CLUSTER_ID, colliding()[0]))


def channel_to(machine: Machine) -> Any:
    """One command is one agent that answers what is on its stdin."""

    def execute(command: str, stdin: bytes) -> Any:
        source, into = os.pipe()
        out, target = os.pipe()
        os.write(into, stdin)
        os.close(into)
        arm: Any = lambda transaction: DeadWatchdog()  # noqa: E731
        agent = Agent(machine.root, lambda: machine.kernel, local=True, arm=arm)
        agent.session_started = boot_ticks()

        def run() -> None:
            serve(agent, source, target)
            os.close(target)

        thread = threading.Thread(target=run)
        thread.start()
        with os.fdopen(out, "rb") as answers:
            said = answers.read()
        thread.join(60)
        os.close(source)
        return channels.Executed(0, said.decode(), "")

    return channels.Channel(execute, channels.Artefact("0" * 64, b""), local=True)


def identity(labels: dict[str, str], number: int = FIRST) -> dict[str, Any]:
    document = {"kind": "identity", "name": "ours", "spec": {"labels": labels, "number": number}}
    return {"document": document, "owner": OWNER, "metadata": {}}


class Fork:
    """What the task of one node has. away: nodes that do not answer; outside: those that are not in the play."""

    def __init__(
        self,
        machines: dict[str, Machine],
        node: str,
        item: dict[str, Any],
        *,
        away: Sequence[str] = (),
        outside: Sequence[str] = (),
    ) -> None:
        change = transaction.Change(node, OWNER, [item], [], 0.5)
        self.own = 0

        def reach(name: str) -> Any:
            if name in away:
                return None
            return deciding.There(channel_to(machines[name]), lambda: None, name not in outside)

        def make_own() -> dict[str, Any]:
            self.own += 1
            made: dict[str, Any] = transaction.make(channel_to(machines[node]), change, lambda: None, 60.0)
            return made

        self.decision = deciding.Decision(change, reach, make_own, 60.0)

    def decide(self, before: Sequence[str] = NODES, after: Sequence[str] = NODES) -> None:
        self.decision.decide(before, after)


def holding(machines: dict[str, Machine]) -> set[str]:
    return {name for name, machine in machines.items() if numbers(generations(machine)[-1])}


def test_the_lowest_named_has_it_before_any_other(machines: dict[str, Machine]) -> None:
    fork = Fork(machines, "h3", identity(colliding()[0]))
    fork.decide()
    assert holding(machines) == {"h1"}
    assert fork.own == 0 and fork.decision.answer is None
    # For the result of h1's own task.
    assert fork.decision.made["h1"].before == {"identity/ours": None}
    again = Fork(machines, "h2", identity(colliding()[0]))
    again.decide()
    assert again.decision.made == {}, "once is enough"


def test_the_one_that_decides_makes_its_whole_change_at_once(machines: dict[str, Machine]) -> None:
    fork = Fork(machines, "h1", identity(colliding()[0]))
    fork.decide()
    assert fork.own == 1 and fork.decision.answer["generation"] == 2
    assert holding(machines) == {"h1"}


def test_a_number_that_another_has_is_refused_before_it_is_anywhere(machines: dict[str, Machine]) -> None:
    Fork(machines, "h1", identity(colliding()[0])).decide()
    other = identity(colliding()[1])
    other["document"]["name"] = "other"
    fork = Fork(machines, "h2", other)
    with pytest.raises(transaction.Refused) as refused:
        fork.decide()
    ((key, error),) = refused.value.errors
    assert (key, type(error)) == ("identity/other", errors.NumberTaken)
    assert error.where["node"] == "h1"
    assert fork.own == 0 and holding(machines) == {"h1"}


def test_one_that_is_away_does_not_stop_the_fleet(machines: dict[str, Machine]) -> None:
    Fork(machines, "h3", identity(colliding()[0]), away=["h1"]).decide()
    assert holding(machines) == {"h2"}


def test_one_that_is_not_in_the_play_is_never_changed(machines: dict[str, Machine]) -> None:
    item = identity(colliding()[0])
    fork = Fork(machines, "h3", item, outside=["h1"])
    with pytest.raises(errors.InvalidInput, match="h1, which decides over the cluster's numbers, is not in this run"):
        fork.decide()
    assert holding(machines) == set() and fork.own == 0
    Fork(machines, "h1", item).decide()
    Fork(machines, "h3", item, outside=["h1"]).decide()


def test_one_that_is_kept_busy_stops_it(machines: dict[str, Machine]) -> None:
    """The other's change may have the same number: going past it would give it out twice."""
    other = {**identity(colliding()[1]), "owner": "test:other"}
    busy = transaction.Change("h1", "test:other", [other], [])
    channel_to(machines["h1"]).ask(("stage", busy.params()), ("apply", {"deadline_seconds": 600}))
    fork = Fork(machines, "h3", identity(colliding()[0]))
    with pytest.raises(errors.TransactionFailed, match="awaits its confirmation") as failed:
        fork.decide()
    assert failed.value.where["node"] == "h1"
    assert fork.own == 0


def test_while_members_change_both_views_are_served(machines: dict[str, Machine]) -> None:
    """Another controller may still know the members of before, or already those of after."""
    Fork(machines, "h3", identity(colliding()[0])).decide(before=["h2", "h3"], after=NODES)
    assert holding(machines) == {"h1", "h2"}


def test_of_two_that_see_different_members_the_second_is_refused(machines: dict[str, Machine]) -> None:
    Fork(machines, "h3", identity(colliding()[0])).decide(before=["h2", "h3"], after=NODES)
    other = identity(colliding()[1])
    other["document"]["name"] = "other"
    for view in (["h2", "h3"], NODES):
        with pytest.raises(transaction.Refused):
            Fork(machines, "h3", other).decide(view, view)
