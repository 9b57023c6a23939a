"""The watchdog as a transient unit, on a host whose init is systemd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target
from tests.vm.conftest import Machines, changes, snapshot, target
from tests.vm.test_transaction import NODE, documents, puts, stop_forwarding
from tools.vm.machine import Machine

LONGEST_SECONDS = 180.0


@pytest.fixture(params=["trixie"])
def host(request: pytest.FixtureRequest, machines: Machines, fleet: Fleet) -> Iterator[Machine]:
    machine = machines[request.param]
    machine.run("ip netns add w1 && ip netns add w2")
    yield machine
    one = target(machine, NODE)
    if fleet.installed(one):
        fleet.call(one, "wipe")
        fleet.remove_agent(one)
    machine.run("ip netns delete w1; ip netns delete w2")
    stop_forwarding(machine)


def staged(fleet: Fleet, one: Target, machine: Machine) -> str:
    wanted = puts(documents(machine))
    answer = fleet.call(one, "stage", {"node": NODE, "owner": wanted.owner, "puts": list(wanted.puts)})
    transaction: str = answer["transaction"]
    return transaction


def journal(machine: Machine) -> dict[str, Any]:
    """Read past any agent."""
    found: dict[str, Any] = json.loads(machine.run("cat /var/lib/bpfleet/journal.json"))
    return found


def wait_until_put_back(machine: Machine, transaction: str) -> str:
    """The reason in the journal, and no unit left."""
    end = time.monotonic() + LONGEST_SECONDS
    while journal(machine)["transaction"] is not None or units(machine):
        assert time.monotonic() < end, (journal(machine), units(machine))
        time.sleep(0.5)
    entry = journal(machine)["entries"][-1]
    assert (entry["event"], entry["transaction"]) == ("rolled back", transaction)
    reason: str = entry["reason"]
    return reason


def units(machine: Machine) -> list[str]:
    return machine.run("systemctl list-units --all --plain --no-legend 'bpfleet-watchdog-*'").splitlines()


def test_a_service_of_its_own_puts_back_at_the_deadline(host: Machine) -> None:
    one = target(host, NODE)
    with Fleet() as controller:
        controller.install(one)
        before = snapshot(host)
        transaction = staged(controller, one, host)
        (unit,) = units(host)
        name = f"bpfleet-watchdog-{transaction}.service"
        assert unit.split()[:4] == [name, "loaded", "active", "running"]
        pid = host.run(f"systemctl show --property MainPID --value {name}").strip()
        assert host.run(f"cat /proc/{pid}/cgroup").strip() == f"0::/system.slice/{name}"
        controller.call(one, "apply", {"transaction": transaction, "deadline_seconds": 20})
        assert "bpfleet_vxlan" in host.run("ip -brief link")
    # The controller is gone, and its agent with it.
    assert "not confirmed within 20 s" in wait_until_put_back(host, transaction)
    stop_forwarding(host)
    left = [line for line in changes(before, snapshot(host)) if "/var/lib/bpfleet" not in line]
    assert left == []


def test_a_service_of_its_own_puts_back_when_the_applying_process_dies(host: Machine) -> None:
    one = target(host, NODE)
    with Fleet() as controller:
        controller.install(one)
        transaction = staged(controller, one, host)
        controller.call(one, "apply", {"transaction": transaction, "deadline_seconds": 3600})
        pid = journal(host)["transaction"]["pid"]
        # As a process leaves the journal that dies while it applies; then it dies.
        host.run(
            f"systemctl kill --signal=STOP bpfleet-watchdog-{transaction}.service"
            ' && sed -i \'s/"state":"applied"/"state":"applying"/\' /var/lib/bpfleet/journal.json'
            f" && kill -KILL {pid}"
            f" && systemctl kill --signal=CONT bpfleet-watchdog-{transaction}.service"
        )
        assert "ended before it was done" in wait_until_put_back(host, transaction)
    assert "bpfleet_vxlan" not in host.run("ip -brief link")
