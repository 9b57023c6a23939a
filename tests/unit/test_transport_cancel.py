"""Calling work off: at every point of it, over every kind of channel. What would otherwise wait, waits for ever here:
that a test ends shows that it was called off."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.errors import TransactionFailed
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Counters, Timeouts
from bpfleet.transport.outcome import Changes, Committed, Failed, Outcome
from bpfleet.transport.ssh import SshConnector, SshTimeouts
from bpfleet.transport.target import Jump, Target
from tests.unit.transport_support import Hosts, eventually, set_after

pytestmark = pytest.mark.root

FOR_EVER = 3600.0
PATIENT = Timeouts(FOR_EVER, FOR_EVER, FOR_EVER, {})
NAMES = ("h1", "h2")


@pytest.fixture(scope="module", params=["local", "ssh"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(request.param, tmp_path_factory.mktemp("hosts"))
    yield made
    made.stop()


@pytest.fixture
def targets(hosts: Hosts) -> dict[str, Target]:
    return {name: hosts.target(name) for name in NAMES}


@pytest.fixture
def other(hosts: Hosts) -> Iterator[Fleet]:
    """A fleet beside the one that is cancelled, over the same state."""
    with hosts.fleet() as made:
        yield made


def put(name: str) -> Changes:
    document: Any = {"kind": "policy", "name": name, "spec": {"selector": {}}}
    return Changes(puts=[{"document": document, "owner": "test", "metadata": {}}], owner="test")


def transact(fleet: Fleet, targets: dict[str, Target], cancelled: threading.Event | None = None) -> dict[str, Outcome]:
    """A transaction that must end by itself."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fleet.transact, targets, put("a"), cancelled).result(120)


def called_off(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert isinstance(outcome.error, TransactionFailed), outcome.error
    assert outcome.error.details["cancelled"] is True
    return outcome


class Teller:
    """Cancels when a node begins a phase that will not end."""

    def __init__(self, phase: str, node: str = "h2") -> None:
        self.cancelled = threading.Event()
        self.at = (node, phase)

    def __call__(self, node: str, phase: str, detail: str) -> None:
        if (node, phase) == self.at:
            self.cancelled.set()


def test_a_stage_is_left_and_nothing_is_changed(hosts: Hosts, other: Fleet, targets: dict[str, Target]) -> None:
    for target in targets.values():
        other.call(target, "fail", {"methods": ["stage waits"]})
    teller = Teller("stage")
    with hosts.fleet(root=other.root, progress=teller, timeouts=PATIENT) as fleet:
        for outcome in transact(fleet, targets, teller.cancelled).values():
            called_off(outcome)
    for target in targets.values():
        other.call(target, "go")
        state = other.call(target, "state")
        assert (state["documents"], state["pending"], state["writes"]) == ({}, None, 0)
    assert {type(outcome) for outcome in transact(other, targets).values()} == {Committed}


def test_an_apply_is_told_to_put_itself_back(hosts: Hosts, other: Fleet, targets: dict[str, Target]) -> None:
    other.call(targets["h2"], "fail", {"methods": ["apply waits"]})
    other.install(targets["h1"])
    cancelled, done = threading.Event(), threading.Event()

    def progress(node: str, phase: str, detail: str) -> None:
        if (node, phase) == ("h1", "done"):
            done.set()

    set_after(done, cancelled)
    with hosts.fleet(root=other.root, progress=progress, timeouts=PATIENT) as fleet:
        outcomes = transact(fleet, targets, cancelled)
    # What was done before stays done.
    assert isinstance(outcomes["h1"], Committed)
    assert not called_off(outcomes["h2"]).rolled_back
    assert other.call(targets["h2"], "state")["writes"] == 0
    other.call(targets["h2"], "go")

    def put_back() -> bool:
        state = other.call(targets["h2"], "state")
        return bool(state["writes"]) and state["pending"] is None

    assert eventually(put_back)
    assert other.call(targets["h2"], "state")["generation"] == 0
    assert isinstance(transact(other, targets)["h2"], Committed)


def test_what_is_applied_and_not_confirmed_is_put_back(hosts: Hosts, targets: dict[str, Target]) -> None:
    """By two requests, over the connection that is there: was it confirmed after all? Then go back."""
    teller = Teller("confirm", "h1")
    before: list[Counters] = []

    def progress(node: str, phase: str, detail: str) -> None:
        if phase == "confirm" and not before:
            before.append(fleet.totals())
        teller(node, phase, detail)

    with hosts.fleet(progress=progress, timeouts=PATIENT) as fleet:
        outcomes = transact(fleet, {"h1": targets["h1"]}, teller.cancelled)
        after = fleet.totals()
        assert called_off(outcomes["h1"]).rolled_back
        assert (after.requests - before[0].requests, after.connections - before[0].connections) == (2, 0)
        state = fleet.call(targets["h1"], "state")
        assert (state["documents"], state["pending"], state["generation"]) == ({}, None, 0)
        assert state["writes"] == 1


def test_a_confirmation_that_gets_no_answer_is_left(hosts: Hosts, other: Fleet, targets: dict[str, Target]) -> None:
    other.call(targets["h1"], "fail", {"methods": ["confirm waits"]})
    teller = Teller("confirm", "h1")
    confirming = threading.Event()

    def progress(node: str, phase: str, detail: str) -> None:
        # Once it dials for the confirmation; the request is under way soon after.
        if phase == "confirm":
            threading.Timer(1.0, teller.cancelled.set).start()
            confirming.set()

    with hosts.fleet(root=other.root, progress=progress, timeouts=PATIENT) as fleet:
        outcome = called_off(transact(fleet, {"h1": targets["h1"]}, teller.cancelled)["h1"])
    assert confirming.is_set()
    other.call(targets["h1"], "go")
    assert eventually(lambda: other.call(targets["h1"], "state")["pending"] is None)
    # In doubt, and said so, unless it never was sent.
    assert outcome.rolled_back is (other.call(targets["h1"], "state")["generation"] == 0)


def test_everything_of_a_fleet_is_called_off(hosts: Hosts, targets: dict[str, Target]) -> None:
    cancelled = threading.Event()
    with hosts.fleet(cancelled=cancelled, timeouts=PATIENT) as fleet, ThreadPoolExecutor(3) as pool:
        fleet.install(targets["h1"])
        stream = fleet.stream(targets["h1"], "events", {"count": 1, "follow": True})
        assert next(stream) == {"count": 0}
        # One is under way, the other waits for its turn.
        asked = [pool.submit(fleet.call, targets["h1"], "silence", {"seconds": 1.0}) for _ in range(2)]
        rest = pool.submit(next, stream)
        cancelled.set()
        for future in (*asked, rest):
            with pytest.raises(TransactionFailed, match="cancelled"):
                future.result(60)


class TestDialling:
    """Over SSH."""

    @pytest.fixture
    def silent(self) -> Iterator[tuple[Target, threading.Event]]:
        """A host that accepts connections and says nothing, and whether it did."""
        accepted = threading.Event()
        kept = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                kept.append(listener.accept()[0])
                accepted.set()

            thread = threading.Thread(target=accept)
            thread.start()
            yield Target("h1", "127.0.0.1", listener.getsockname()[1]), accepted
            thread.join(60)
            for connection in kept:
                connection.close()

    @pytest.mark.parametrize("through", [False, True])
    def test_a_dial_is_given_up(self, tmp_path: Path, silent: tuple[Target, threading.Event], through: bool) -> None:
        target, accepted = silent
        if through:
            target = Target("h1", "192.0.2.1", jump=Jump("127.0.0.1", target.port))
        cancelled = threading.Event()
        connector = SshConnector(SshTimeouts(FOR_EVER, FOR_EVER, FOR_EVER))
        set_after(accepted, cancelled)
        with Hosts("ssh", tmp_path).fleet(connector=connector, schedule=Schedule(6, FOR_EVER)) as fleet:
            outcome = called_off(transact(fleet, {"h1": target}, cancelled)["h1"])
        assert "dialling" in outcome.error.what

    def test_a_pause_between_dials_is_given_up(self, tmp_path: Path) -> None:
        teller = Teller("dial", "h1")
        hosts = Hosts("ssh", tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]

        def progress(node: str, phase: str, detail: str) -> None:
            if detail.startswith("attempt"):
                teller.cancelled.set()

        with hosts.fleet(progress=progress, schedule=Schedule(6, 2 * FOR_EVER, FOR_EVER)) as fleet:
            outcome = called_off(transact(fleet, {"h1": Target("h1", "127.0.0.1", port)}, teller.cancelled)["h1"])
        assert "dialling" in outcome.error.what


def test_the_agent_puts_back_for_a_caller_that_is_gone(tmp_path: Path) -> None:
    """The real agent, over a kernel in memory: of what was sent by somebody who is gone, it does the rollback alone."""
    script = Path(__file__).parents[1] / "agent" / "agent_process.py"
    command = [sys.executable, str(script), str(tmp_path / "root"), str(tmp_path / "kernel")]

    def run(*requests: tuple[str, dict[str, Any]], listen: bool) -> list[dict[str, Any]]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for number, (method, params) in enumerate(requests):
            process.stdin.write(json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n")
            process.stdin.flush()
            if listen or number == 0:
                answers.append(json.loads(process.stdout.readline()))
            elif number == 1:
                process.stdout.close()
        process.stdin.close()
        process.stdout.close()
        process.wait(60)
        return answers

    spec = {"address": "192.168.77.1", "devices": [{"name": "eth0"}], "workload_cidrs": ["10.0.1.0/24"]}
    item = {"document": {"kind": "node", "name": "h1", "spec": spec}, "owner": "test", "metadata": {}}
    stage = ("stage", {"node": "h1", "puts": [item], "deletes": [], "owner": "test"})
    (staged,) = run(stage, ("apply", {}), ("stage", stage[1]), ("apply", {}), ("rollback", {}), listen=False)
    assert staged["result"]["transaction"]
    hello, journal = run(("hello", {}), ("journal", {"limit": 10}), listen=True)
    assert hello["result"]["pending"] is None
    assert hello["result"]["generation"] == 0
    assert [entry["event"] for entry in journal["result"]] == ["applied", "rolled back"]
