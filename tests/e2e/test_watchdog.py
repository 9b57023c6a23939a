"""A change after which no new connection gets in is put back: by the controller, and by the node itself.

The node's own view is read past SSH, so that nothing but the watchdog can have put it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.errors import HostFailed, TransactionFailed, Unreachable
from bpfleet.lab import Host, Lab
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Failed
from bpfleet.transport.target import Target
from tests.e2e.cut import cut, mended
from tests.e2e.test_transport import cluster, item, target_of

pytestmark = [pytest.mark.root, pytest.mark.lab]

QUICK = Schedule(attempts=2, seconds=4.0, rest=0.1)
ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 90.0

# A controller that applies a change and is then held where a killed one would be: the apply is answered.
CONTROLLER = """
import json, sys
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target
target, stage, seconds = json.loads(sys.argv[1])
with Fleet() as fleet:
    target = Target(**target)
    transaction = fleet.call(target, "stage", stage)["transaction"]
    fleet.call(target, "apply", {"transaction": transaction, "deadline_seconds": seconds})
    print(transaction, flush=True)
    sys.stdin.read()
"""

# On the host: kills the applying process, so many seconds after the journal names it.
KILLER = """
import json, os, signal, sys, time
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    with open("/var/lib/bpfleet/journal.json") as file:
        pending = json.load(file)["transaction"]
    if pending:
        time.sleep(float(sys.argv[1]))
        os.kill(pending["pid"], signal.SIGKILL)
        sys.exit()
sys.exit("nothing was applied")
"""


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=1, workloads=3)


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts["h1"]


@pytest.fixture
def target(lab: Lab, host: Host) -> Target:
    return target_of(lab, host)


@pytest.fixture
def before(lab: Lab, host: Host, target: Target) -> Iterator[list[str]]:
    """A cluster of one is confirmed as generation 1; what the host has in its kernel then."""
    with Fleet() as fleet:
        assert isinstance(fleet.transact({"h1": target}, cluster(lab))["h1"], Committed)
    found = kernel_side(host)
    assert "bpfleet_vxlan" in found
    yield found


def kernel_side(host: Host) -> list[str]:
    """Links, routes and pins, by name: the change adds some of each. Map contents are compared by status (drift)."""
    links = host.run(["ip", "-brief", "link"]).stdout.splitlines()
    names = sorted(line.split()[0].split("@")[0] for line in links)
    routes = sorted(host.run(["ip", "route"]).stdout.splitlines())
    pins = host.run(["find", "/sys/fs/bpf/bpfleet", "-mindepth", "1"], check=False).stdout.splitlines()
    return [*names, *routes, *sorted(pins)]


def change(host: Host) -> Changes:
    address = host.workload_cidrs[0].replace("0/24", "10")
    endpoint = {"node": "h1", "identity": "web", "addresses": [address], "attach": {"netns": "w1"}}
    puts = [
        item("identity", "web", {"labels": {"app": "web"}, "number": (7 << 16) + 300}),
        item("endpoint", "web-1", endpoint),
    ]
    return Changes(puts=puts, owner="test:watchdog")


def journal(host: Host) -> dict[str, Any]:
    """Read past SSH and past any agent."""
    found: dict[str, Any] = json.loads(host.run(["cat", f"{wire.STATE_ROOT}/journal.json"]).stdout)
    return found


def watchdogs(host: Host) -> list[str]:
    listed = host.run(["ps", "-e", "-o", "args"]).stdout.splitlines()
    return [line for line in listed if " watchdog --root" in line]


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.1)


def test_a_controller_that_gets_no_new_connection_reports_the_change_put_back(
    host: Host, target: Target, before: list[str], tmp_path: Path
) -> None:
    def progress(node: str, phase: str, detail: str) -> None:
        if phase == "confirm":  # applied; the new connection comes next
            assert kernel_side(host) != before
            cut(host, tmp_path)

    with mended(host), Fleet(progress, schedule=QUICK) as fleet:
        outcome = fleet.transact({"h1": target}, change(host))["h1"]
        assert isinstance(outcome, Failed), outcome
        assert isinstance(outcome.error, TransactionFailed)
        assert "put back" in str(outcome.error) and "no TCP connection to port 22" in str(outcome.error)
        assert outcome.rolled_back
        assert journal(host)["transaction"] is None
    assert kernel_side(host) == before
    until(lambda: not watchdogs(host), "the watchdog is gone")
    with Fleet() as fleet:
        assert fleet.call(target, "hello")["generation"] == 1
        assert isinstance(fleet.transact({"h1": target}, change(host))["h1"], Committed)


def test_with_the_controller_killed_the_node_puts_it_back_alone(
    host: Host, target: Target, before: list[str], tmp_path: Path
) -> None:
    changes = change(host)
    stage = {"node": "h1", "owner": changes.owner, "puts": list(changes.puts), "deletes": []}
    arguments = json.dumps([target.__dict__, stage, 15])
    command = [sys.executable, "-c", CONTROLLER, arguments]
    pipe = subprocess.PIPE
    with mended(host), subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as controller:
        assert controller.stdout is not None
        transaction = controller.stdout.readline().strip()
        assert transaction
        cut(host, tmp_path)
        os.kill(controller.pid, signal.SIGKILL)
        assert journal(host)["transaction"]["state"] == "applied"
        assert kernel_side(host) != before
        with Fleet(schedule=QUICK) as fleet, pytest.raises(Unreachable):
            fleet.install(target)
        # The agent ends with its connection; what is left is the watchdog.
        until(lambda: journal(host)["transaction"] is None, "the change is put back")
        entry = journal(host)["entries"][-1]
        assert (entry["event"], entry["transaction"]) == ("rolled back", transaction)
        assert "not confirmed within 15 s" in entry["reason"]
        assert kernel_side(host) == before
        until(lambda: not watchdogs(host), "the watchdog is gone")
    with Fleet() as fleet:
        hello = fleet.call(target, "hello")
        assert (hello["generation"], hello["resolved"], hello["pending"]) == (1, None, None)
        assert fleet.call(target, "status")["drift"] == []


PAUSES = (0.0, 0.01, 0.02, 0.04, 0.08)


def killed_in_turn(host: Host, target: Target, changes: Changes) -> None:
    """Apply the change again and again, the agent killed at whatever step it is then; each time it is put back.

    The deadline is an hour away, so only the death can be the reason.
    """
    stage = {"node": "h1", "owner": changes.owner, "puts": list(changes.puts), "deletes": []}
    before = kernel_side(host)
    reasons = []
    for pause in PAUSES:
        with Fleet(schedule=QUICK) as fleet:
            transaction = fleet.call(target, "stage", stage)["transaction"]
            with host.popen(["python3", "-c", KILLER, str(pause)], stdout=subprocess.PIPE) as killer:
                assert killer.stdout is not None and killer.stdout.readline()
                with contextlib.suppress(Unreachable, HostFailed):
                    fleet.call(target, "apply", {"transaction": transaction, "deadline_seconds": 3600})
                assert killer.wait() == 0
            pending = journal(host)["transaction"]
            if pending is not None and pending["state"] == "applied":  # it was quicker than the killer
                try:
                    fleet.call(target, "rollback")
                except (Unreachable, HostFailed):  # asked of the one that was killed after it had answered
                    fleet.call(target, "rollback")
        until(lambda: journal(host)["transaction"] is None, "the change is put back")
        reasons.append(journal(host)["entries"][-1]["reason"])
        until(lambda: not watchdogs(host), "the watchdog is gone")
        assert kernel_side(host) == before
    assert any("ended before it was done" in reason for reason in reasons), reasons
    with Fleet() as fleet:
        assert fleet.call(target, "status")["drift"] == []


def test_an_agent_killed_while_applying_is_put_back_at_once(host: Host, target: Target, before: list[str]) -> None:
    killed_in_turn(host, target, change(host))


def test_what_both_generations_allow_never_stops(host: Host, target: Target, before: list[str]) -> None:
    """Between two endpoints of the old generation; the change takes a policy that allows the same and a third one."""
    addresses = [host.workload_cidrs[0].replace("0/24", last) for last in ("11", "12")]
    puts = [item("identity", "app", {"labels": {"app": "app"}, "number": (7 << 16) + 301})]
    for name, netns, address in zip(("one", "two"), ("w1", "w2"), addresses):
        spec = {"node": "h1", "identity": "app", "addresses": [address], "attach": {"netns": netns}}
        puts.append(item("endpoint", name, spec))
    with Fleet() as fleet:
        outcome = fleet.transact({"h1": target}, Changes(puts=puts, owner="test:watchdog"))["h1"]
        assert isinstance(outcome, Committed), outcome
    command = f"echo $$; exec ping -n -q -i 0.02 -w 600 {addresses[1]}"
    ping = host.popen(["sh", "-c", command], workload="w1", stdout=subprocess.PIPE, text=True)
    assert ping.stdout is not None
    pid = ping.stdout.readline().strip()
    try:
        allowing = {"selector": {"app": "app"}, "ingress": [{"peers": [{"labels": {"app": "app"}}]}]}
        other = {"node": "h1", "identity": "app", "addresses": [host.workload_cidrs[0].replace("0/24", "13")]}
        more = [
            item("policy", "allowing", allowing),
            item("endpoint", "three", {**other, "attach": {"netns": "w3"}}),
        ]
        killed_in_turn(host, target, Changes(puts=more, owner="test:watchdog"))
    finally:
        host.run(["kill", "-INT", pid])
        told = ping.communicate(timeout=60)[0]
    sent, received = (int(part.split()[0]) for part in told.split("statistics ---")[1].split(",")[:2])
    assert sent > 100 and received == sent, told
