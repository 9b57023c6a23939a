"""Two phases over several nodes: what is applied where, what is put back, what each node's outcome says."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.errors import HostFailed, NumberTaken, TransactionFailed, Unreachable
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Failed, Refused, Unchanged, Unreached
from bpfleet.transport.target import Target
from tests.unit.transport_support import Hosts, free_port

pytestmark = pytest.mark.root

NAMES = ("h1", "h2", "h3")


@pytest.fixture(scope="module", params=["local", "ssh"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(request.param, tmp_path_factory.mktemp("hosts"))
    yield made
    made.stop()


@pytest.fixture
def targets(hosts: Hosts) -> dict[str, Target]:
    return {name: hosts.target(name) for name in NAMES}


@pytest.fixture
def fleet(hosts: Hosts) -> Iterator[Fleet]:
    with hosts.fleet() as made:
        yield made


def item(name: str, **spec: Any) -> wire.Item:
    return {"document": {"kind": "policy", "name": name, "spec": spec}, "owner": "o", "metadata": {}}


def put(name: str, **spec: Any) -> Changes:
    return Changes(puts=[item(name, **spec)], owner="o")


def states(fleet: Fleet, targets: dict[str, Target]) -> dict[str, Any]:
    return {name: fleet.call(target, "state") for name, target in targets.items()}


def fail(fleet: Fleet, target: Target, *methods: str) -> None:
    fleet.call(target, "fail", {"methods": list(methods)})


def test_all_commit_over_two_connections_each(fleet: Fleet, targets: dict[str, Target]) -> None:
    outcomes = fleet.transact(targets, put("a", n=1))
    assert list(outcomes) == list(NAMES)
    for name, target in targets.items():
        outcome = outcomes[name]
        assert isinstance(outcome, Committed)
        assert (outcome.generation, outcome.writes, dict(outcome.steps)) == (1, 1, {"step": 1})
        assert fleet.counters(target).connections == 2
    assert all(state["documents"] == {"policy/a": {"n": 1}} for state in states(fleet, targets).values())
    assert all(fleet.counters(target).connections == 2 for target in targets.values())


def test_the_agent_that_made_a_change_makes_the_next_unless_it_is_gone(
    fleet: Fleet, targets: dict[str, Target]
) -> None:
    target = targets["h1"]

    def change(number: int) -> int:
        assert isinstance(fleet.transact({"h1": target}, put("again", n=number))["h1"], Committed)
        pid = fleet.call(target, "hello")["pid"]
        assert isinstance(pid, int)
        return pid

    first = change(1)
    assert change(2) == first
    assert fleet.counters(target).connections == 3
    fail(fleet, target, "confirm kills the one before")
    assert change(3) != first
    assert fleet.counters(target).connections == 4


def test_an_unchanged_update_takes_one_connection_and_no_write(
    hosts: Hosts, fleet: Fleet, targets: dict[str, Target]
) -> None:
    fleet.transact(targets, put("a"))
    with hosts.fleet(root=fleet.root) as again:
        outcomes = again.transact(targets, put("a"))
        assert all(isinstance(outcome, Unchanged) for outcome in outcomes.values())
        assert all(again.counters(target).connections == 1 for target in targets.values())
        assert all(state["writes"] == 1 for state in states(again, targets).values())


def test_each_node_may_have_changes_of_its_own(fleet: Fleet, targets: dict[str, Target]) -> None:
    fleet.transact(targets, put("a"))
    outcomes = fleet.transact(
        targets, {"h1": put("b"), "h2": Changes(), "h3": Changes(deletes=["policy/a"], owner="o")}
    )
    assert [type(outcome) for outcome in outcomes.values()] == [Committed, Unchanged, Committed]
    documents = [sorted(state["documents"]) for state in states(fleet, targets).values()]
    assert documents == [["policy/a", "policy/b"], ["policy/a"], []]


def test_one_refusal_stops_the_change_everywhere(fleet: Fleet, targets: dict[str, Target]) -> None:
    before = states(fleet, targets)
    outcomes = fleet.transact(targets, {"h1": put("a"), "h2": put("a", bad=True), "h3": put("a")})
    mine, refused = outcomes["h1"], outcomes["h2"]
    assert isinstance(refused, Refused)
    assert [refusal.document for refusal in refused.refusals] == ["policy/a"]
    assert isinstance(refused.refusals[0].error, NumberTaken)
    assert refused.refusals[0].error.where["node"] == "h2"
    assert mine == outcomes["h3"] == Refused((), ["h2"])
    assert states(fleet, targets) == before


def test_a_node_that_fails_to_stage_stays_behind_alone(fleet: Fleet, targets: dict[str, Target]) -> None:
    fail(fleet, targets["h2"], "stage")
    outcomes = fleet.transact(targets, put("a"))
    assert [type(outcome) for outcome in outcomes.values()] == [Committed, Failed, Committed]


@pytest.mark.parametrize("how", ["apply", "apply die", "confirm", "confirm die"])
def test_a_node_that_fails_after_staging_is_put_back_and_the_others_go_on(
    fleet: Fleet, targets: dict[str, Target], how: str
) -> None:
    fail(fleet, targets["h2"], how)
    outcomes = fleet.transact(targets, put("a"))
    assert [type(outcome) for outcome in outcomes.values()] == [Committed, Failed, Committed]
    failed = outcomes["h2"]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, HostFailed)
    assert failed.rolled_back
    assert failed.error.where["node"] == "h2"
    left = states(fleet, targets)["h2"]
    assert (left["pending"], left["generation"]) == (None, 0)
    # And the next run finishes it, there only.
    again = fleet.transact(targets, put("a"))
    assert [type(outcome) for outcome in again.values()] == [Unchanged, Committed, Unchanged]


def test_no_node_waits_for_a_slow_one_with_its_confirmation(hosts: Hosts, targets: dict[str, Target]) -> None:
    seen: list[tuple[str, str]] = []
    with hosts.fleet(progress=lambda node, phase, detail: seen.append((node, phase))) as fleet:
        fail(fleet, targets["h2"], "apply slowly")
        assert all(isinstance(outcome, Committed) for outcome in fleet.transact(targets, put("a")).values())
    assert max(seen.index(("h1", "done")), seen.index(("h3", "done"))) < seen.index(("h2", "confirm"))


def test_a_node_that_cannot_be_put_back_is_said_so(fleet: Fleet, targets: dict[str, Target]) -> None:
    fail(fleet, targets["h2"], "apply", "rollback")
    failed = fleet.transact(targets, put("a"))["h2"]
    assert isinstance(failed, Failed)
    assert not failed.rolled_back
    assert failed.error.details["rollback"]["what"] == "rollback failed as told"


def test_a_lost_answer_to_a_confirmation_is_asked_for(fleet: Fleet, targets: dict[str, Target]) -> None:
    fail(fleet, targets["h2"], "confirm then die")
    outcome = fleet.transact(targets, put("a"))["h2"]
    assert isinstance(outcome, Committed)
    assert outcome.generation == 1


def test_who_is_overtaken_stages_again(hosts: Hosts, fleet: Fleet, targets: dict[str, Target]) -> None:
    overtaken = threading.Event()

    def progress(node: str, phase: str, detail: str) -> None:
        if phase == "apply" and node == "h1" and not overtaken.is_set():
            overtaken.set()
            assert isinstance(fleet.transact({"h1": targets["h1"]}, put("other"))["h1"], Committed)

    with hosts.fleet(progress=progress, root=fleet.root) as late:
        outcomes = late.transact(targets, put("a"))
    assert overtaken.is_set()
    assert all(isinstance(outcome, Committed) for outcome in outcomes.values())
    assert sorted(states(fleet, targets)["h1"]["documents"]) == ["policy/a", "policy/other"]


@pytest.mark.parametrize(("phase", "before"), [("stage", "apply"), ("apply", "confirm")])
def test_cancelling_stops_between_phases_and_puts_back(
    hosts: Hosts, targets: dict[str, Target], phase: str, before: str
) -> None:
    cancelled = threading.Event()

    def progress(node: str, now: str, detail: str) -> None:
        if now == phase:
            cancelled.set()

    with hosts.fleet(progress=progress) as fleet:
        fleet.each(targets.values(), fleet.install)
        outcomes = fleet.transact(targets, put("a"), cancelled)
        for outcome in outcomes.values():
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, TransactionFailed)
            assert outcome.error.what in (f"cancelled before {before}", f"cancelled during {phase}")
        for state in states(fleet, targets).values():
            assert (state["documents"], state["pending"], state["generation"]) == ({}, None, 0)


def test_ctrl_c_puts_back_before_it_ends_the_program(hosts: Hosts, targets: dict[str, Target]) -> None:
    pressed, cancelled = threading.Event(), threading.Event()

    def progress(node: str, phase: str, detail: str) -> None:
        if phase == "apply" and not pressed.is_set():
            pressed.set()
            signal.raise_signal(signal.SIGINT)
            assert cancelled.wait(30)

    with hosts.fleet(progress=progress) as fleet:
        with pytest.raises(KeyboardInterrupt):
            fleet.transact(targets, put("a"), cancelled)
        for state in states(fleet, targets).values():
            assert (state["documents"], state["pending"], state["generation"]) == ({}, None, 0)


def test_transactions_of_many_threads_all_happen(fleet: Fleet, targets: dict[str, Target]) -> None:
    results: list[Any] = []

    def work(number: int) -> None:
        results.extend(fleet.transact(targets, put(f"p{number}")).values())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(result) for result in results] == [Committed] * 12
    assert all(len(state["documents"]) == 4 for state in states(fleet, targets).values())


class TestUnreachable:
    """Over SSH: a local channel always reaches."""

    @pytest.fixture
    def over_ssh(self, tmp_path: Path) -> Iterator[Hosts]:
        made = Hosts("ssh", tmp_path)
        yield made
        made.stop()

    @pytest.fixture
    def targets(self, over_ssh: Hosts) -> dict[str, Target]:
        return {name: over_ssh.target(name) for name in NAMES}

    def test_a_dead_node_does_not_stop_the_others(self, over_ssh: Hosts, targets: dict[str, Target]) -> None:
        with over_ssh.fleet(schedule=Schedule(2, 20.0, 0.05)) as fleet:
            targets["dead"] = over_ssh.sshd().target("dead", port=free_port())
            outcomes = fleet.transact(targets, put("a"))
        dead = outcomes.pop("dead")
        assert isinstance(dead, Unreached)
        assert isinstance(dead.error, Unreachable)
        assert dead.error.where["node"] == "dead"
        assert not dead.in_doubt
        assert all(isinstance(outcome, Committed) for outcome in outcomes.values())

    def test_a_node_that_takes_no_new_connection_is_put_back_over_the_old(
        self, over_ssh: Hosts, targets: dict[str, Target]
    ) -> None:
        def progress(node: str, phase: str, detail: str) -> None:
            if (node, phase) == ("h2", "apply"):
                # As if the change had cut sshd's port: what stands goes on, nothing new comes in.
                server = over_ssh.sshd("h2").process
                assert server is not None
                server.kill()
                server.wait()

        with over_ssh.fleet(progress=progress, schedule=Schedule(2, 20.0, 0.05)) as fleet:
            fleet.each(targets.values(), fleet.install)
            outcomes = fleet.transact(targets, put("a"))
            assert [type(outcome) for outcome in outcomes.values()] == [Committed, Failed, Committed]
            failed = outcomes["h2"]
            assert isinstance(failed, Failed)
            assert failed.rolled_back
            # Not "unreachable": it answers, and the user has to know that nothing was changed, and why.
            assert isinstance(failed.error, TransactionFailed)
            assert failed.error.where["node"] == "h2"
            assert "was put back" in failed.error.what and "not reachable" in failed.error.what
            assert "new SSH connections" in failed.error.remedy
            assert fleet.call(targets["h2"], "state")["generation"] == 0
            assert fleet.counters(targets["h2"]).connections == 1

    def test_a_node_that_goes_off_before_confirming_is_in_doubt(
        self, over_ssh: Hosts, targets: dict[str, Target]
    ) -> None:
        def progress(node: str, phase: str, detail: str) -> None:
            if (node, phase) == ("h2", "confirm"):
                over_ssh.sshd("h2").stop()

        with over_ssh.fleet(progress=progress, schedule=Schedule(2, 20.0, 0.05)) as fleet:
            outcomes = fleet.transact(targets, put("a"))
        assert [type(outcome) for outcome in outcomes.values()] == [Committed, Unreached, Committed]
        left = outcomes["h2"]
        assert isinstance(left, Unreached)
        assert left.in_doubt
        assert left.error.where["node"] == "h2"
