"""Agent, watchdog and both killed at each step of a change on the real kernel, with traffic under way.

Afterwards the node holds the old generation or the new one, whole; no packet of what both allow is lost; the next
change works. Each place has one kind of victims in turn; with BPFLEET_KILLS=all (`make kills`) each has all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bpfleet.agent import wire
from bpfleet.agent.artefact import BUILT
from bpfleet.agent.install import digest_of, launch_command
from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic.ground import OWNER, Ground
from tests.e2e.traffic.streams import Streams
from tests.fleet import document, node_policy, policy

pytestmark = [pytest.mark.root, pytest.mark.lab]

CHECKOUT = Path(__file__).resolve().parents[2]
VICTIMS = ("agent", "agent+watchdog", "watchdog")
ALL = os.environ.get("BPFLEET_KILLS") == "all"
DEADLINE_SECONDS = 4.0
"""Of what is applied and not confirmed; after it, the watchdog puts back."""
LONGEST_SECONDS = 120.0
INTERVAL_SECONDS = 0.005

UDP = [{"protocol": "udp", "port": 7001}]
WEB = [{"peers": [{"labels": {"app": "web"}}], "ports": UDP}]
FREE = [{"peers": [{"labels": {"app": "free"}}], "ports": UDP}]
ROUTES = [("web-1", "db-2", "udp", 4), ("free-2", "web-1", "udp", 6)]
"""Through the host that changes, out and in; allowed before and after."""


class Change(NamedTuple):
    """What to stage, and what to go back to the old generation by."""

    forth: dict[str, Any]
    back: dict[str, Any]


class Node:
    """Host h1, changed by agents that are started on it past SSH."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.host = ground.lab.host("h1")
        self.digest = digest_of(BUILT.read_bytes())
        late, early = ground.endpoint("free-1"), ground.endpoint("db-1")
        web = policy("web", {"app": "web"}, ingress=FREE)
        other_web = policy(
            "web", {"app": "web"}, ingress=[*WEB, *FREE], egress=[{"peers": [{"labels": {"app": "db"}}]}]
        )
        everybody = node_policy("hosts", {}, ingress=[{"peers": [{"entity": "all"}]}])
        self.old = [
            *(one for one in ground.base() if one.key != late.key),
            policy("db", {"app": "db"}, ingress=WEB),
            web,
        ]
        # An endpoint more and one less, another policy map, and one for the host: that is a constant in each program.
        self.policies = Change(
            self.stage([late, other_web, everybody], [early.key]),
            self.stage([early, web], [late.key, everybody.key]),
        )
        # Another limit, so that maps are made anew, and all programs twice: a change of its own, or each of the many
        # places in the other would cost as much.
        cluster = self.old[0]
        limits = {"addresses": 1 << 18, "connections": 1 << 18}
        roomy = document("cluster", cluster.name, **{**cluster.spec, "limits": limits})
        self.sizes = Change(self.stage([roomy], []), self.stage([cluster], []))

    def stage(self, puts: list[Any], deletes: list[str]) -> dict[str, Any]:
        return {"node": "h1", "owner": OWNER, "puts": [self.ground.item(one) for one in puts], "deletes": deletes}

    @contextlib.contextmanager
    def agent(self, victims: str = "", place: str = "") -> Iterator[Callable[..., Any]]:
        """Calls of an agent; EOFError from one in which it died. It is gone afterwards."""
        command = ["sh", "-c", launch_command(self.digest, local=True)]
        if victims:
            script = [str(CHECKOUT / "tests/e2e/killed_agent.py"), str(CHECKOUT)]
            installed = f"{wire.STATE_ROOT}/agent/{self.digest}"
            command = ["/usr/bin/python3", "-I", "-S", "-B", *script, installed, victims, place]
        pipe = subprocess.PIPE
        with self.host.popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdin is not None and process.stdout is not None

            def call(method: str, **params: Any) -> Any:
                process.stdin.write(json.dumps({"id": 1, "method": method, "params": params}) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise EOFError(method)
                answer = json.loads(line)
                assert "result" in answer, answer
                return answer["result"]

            try:
                yield call
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait(LONGEST_SECONDS)

    def steps(self, change: Change) -> int:
        """How many the change has."""
        with self.agent() as call:
            found: dict[str, int] = call("stage", **change.forth)["steps"]
        if change is self.sizes:
            assert set(found) == {"ResizeMaps"}
        else:
            assert {"EnsureDevice", "RemoveDevice", "LoadProgram", "PutRows", "Attach", "Detach"} <= set(found)
            assert {"SwapInner", "SwitchPolicies", "SettlePolicies"} <= set(found)
        return sum(found.values())

    def pending(self) -> Any:
        """The transaction in the journal, read past any agent."""
        return json.loads(self.host.run(["cat", f"{wire.STATE_ROOT}/journal.json"]).stdout)["transaction"]

    def apply(self, stage: dict[str, Any], seconds: float, victims: str = "", place: str = "") -> str | None:
        """The transaction, if the agent lived to say that it is applied."""
        with self.agent(victims, place) as call:
            transaction: str = call("stage", **stage)["transaction"]
            try:
                call("apply", transaction=transaction, deadline_seconds=seconds)
            except EOFError:
                return None
        return transaction

    def confirm(self, transaction: str, victims: str = "", place: str = "") -> None:
        with self.agent(victims, place) as call:
            call("confirm", transaction=transaction)

    def go_back(self, change: Change) -> None:
        """To the old generation, by a change like any other."""
        transaction = self.apply(change.back, 60.0)
        assert transaction is not None
        self.confirm(transaction)

    def kill(self, change: Change, victims: str, phase: str, place: str) -> None:
        """Make the change with a kill in it, let the node settle, and see what it holds; then the old one again."""
        confirming = phase == "confirm"
        with self.agent() as call:
            before = call("hello")["generation"]
        seconds = DEADLINE_SECONDS if "agent" in victims else 60.0
        if confirming:
            transaction = self.apply(change.forth, seconds)
            assert transaction is not None
            try:
                self.confirm(transaction, victims, place)
            except EOFError:
                assert "agent" in victims
        else:
            transaction = self.apply(change.forth, seconds, victims, place)
            assert (transaction is None) == ("agent" in victims)
        if victims == "agent":  # nobody but the watchdog is there to put back
            end = time.monotonic() + LONGEST_SECONDS
            while self.pending() is not None:
                assert time.monotonic() < end, "the watchdog did not put it back"
                time.sleep(0.1)
        with self.agent() as call:
            pending = call("hello")["pending"]  # a new agent has put back what nobody else could
            if pending is not None:
                assert pending["state"] == "applied"
                call("confirm", transaction=pending["transaction"])
            status = call("status")
        assert status["pending"] is None
        assert status["drift"] == []
        assert status["generation"] in (before, before + 1)
        if victims == "watchdog":
            assert status["generation"] == before + 1
        elif place.startswith(("step", "done")):
            assert status["generation"] == before
        if status["generation"] != before:
            self.go_back(change)


@pytest.fixture(scope="module")
def node(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("kills")
    name = f"kills-{os.getpid()}"
    with Lab.up(name, 2, 3, directory=folder, share=[str(CHECKOUT / "tests")], guarded=True) as lab, Fleet() as fleet:
        ground = Ground(lab, fleet)
        try:
            ground.start()
            one = Node(ground)
            ground.declare(*one.old)
            yield one
        finally:
            ground.close()


def places(steps: int) -> list[tuple[str, str]]:
    """Each place of a change: files written (the generation, "applying", "applied"; "committed"), and each step."""
    begin = ["write:0", "written:0", "write:1", "written:1"]
    apply = [*begin, *(f"step:{number}" for number in range(steps)), f"done:{steps - 1}", "write:2", "written:2"]
    return [*(("apply", place) for place in apply), ("confirm", "write:0"), ("confirm", "written:0")]


def test_killed_at_each_step_under_traffic(node: Node) -> None:
    wanted = [(change, *at) for change in (node.policies, node.sizes) for at in places(node.steps(change))]
    streams = Streams(node.ground, ROUTES, INTERVAL_SECONDS)
    for (change, phase, place), first in zip(wanted, itertools.cycle(VICTIMS)):
        for victims in VICTIMS if ALL else (first,):
            began = time.monotonic()
            try:
                node.kill(change, victims, phase, place)
            except AssertionError as problem:
                raise AssertionError(f"{victims} killed at {place} of {phase}: {problem}") from problem
            print(f"{phase} {place} {victims} {time.monotonic() - began:.1f} s", flush=True)
    assert streams.end() == {}
    with node.agent() as call:
        assert call("status")["drift"] == []


def test_the_watchdog_killed_while_it_puts_back_under_traffic(node: Node) -> None:
    """The agent dies at its last step, so that there is much to put back; the watchdog in the midst of that. The next
    agent finds both halves done and ends it."""
    streams = Streams(node.ground, ROUTES, INTERVAL_SECONDS)
    for change in (node.policies, node.sizes):
        last = node.steps(change) - 1
        for step in range(0, last or 1, 1 if ALL else max(last // 3, 1)):
            with node.agent() as call:
                before = call("hello")["generation"]
            assert node.apply(change.forth, 60.0, "agent", f"done:{last}/step:{step}") is None
            end = time.monotonic() + LONGEST_SECONDS
            while node.host.run(["pgrep", "-f", "watchdog --transaction"], check=False).returncode == 0:
                assert time.monotonic() < end, f"the watchdog did not come to step {step}"
                time.sleep(0.1)
            pending = node.pending()
            if pending is None:
                assert step > last // 2, "there are fewer steps back than forth, but not so few"
                break
            assert pending["state"] == "applying"
            with node.agent() as call:
                assert "was rolled back" in call("hello")["resolved"]
                status = call("status")
            assert (status["generation"], status["pending"], status["drift"]) == (before, None, [])
    assert streams.end() == {}
