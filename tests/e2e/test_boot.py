"""After a reboot, and when a device or namespace appears, what is confirmed is in force again; no controller needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic.frontend import PORT, answers
from tests.e2e.traffic.ground import Ground
from tests.e2e.traffic.station import FOLDER
from tests.fleet import policy, service

pytestmark = [pytest.mark.root, pytest.mark.lab]

BOOT = f"{wire.STATE_ROOT}/boot"
NO_WEB = policy("db", {"app": "db"}, ingress=[{"peers": [{"labels": {"app": "free"}}]}])

WEB = ["web-1", "web-2"]
SHOP = service("shop", ["10.96.0.1:80", "[fd96::1]:80"], [{"labels": {"app": "web"}, "port": PORT}])


@pytest.fixture(scope="module")
def ground(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two hosts whose `db` endpoints let only `free` ones in, confirmed."""
    folder = tmp_path_factory.mktemp("boot")
    with Lab.up(f"boot-{os.getpid()}", 2, 3, directory=folder, share=[FOLDER], guarded=True) as lab:
        with Fleet() as fleet:
            one = Ground(lab, fleet)
            fleet.each(one.targets.values(), fleet.install)
            yield one


@pytest.fixture
def declared(ground: Ground) -> Ground:
    ground.declare(*ground.base(), NO_WEB, SHOP)
    return ground


def boot(ground: Ground, host: str) -> None:
    """What the units run."""
    ground.lab.host(host).run([BOOT])


def journal(ground: Ground, host: str) -> dict[str, Any]:
    """Read past any agent: an agent that starts puts things right itself."""
    found: dict[str, Any] = json.loads(ground.lab.host(host).run(["cat", f"{wire.STATE_ROOT}/journal.json"]).stdout)
    return found


def pings(ground: Ground, source: str, destination: str, family: int) -> bool:
    one = ground.workloads[source]
    command = ["ping", "-n", "-q", "-c", "1", "-W", "1", ground.address(destination, family)]
    return ground.lab.host(one.host).run(command, workload=one.netns, check=False).returncode == 0


def assert_in_force(ground: Ground) -> None:
    """Services answer; traffic is judged as NO_WEB says, on one host and across hosts, by both families; and nothing
    differs."""
    for frontend in ("10.96.0.1", "fd96::1"):
        assert answers(ground, "free-1", frontend, 80, WEB) and answers(ground, "free-2", frontend, 80, WEB)
    for family in (4, 6):
        for destination in ("db-1", "db-2"):
            assert pings(ground, "free-1", destination, family)
            assert not pings(ground, "web-1", destination, family)
        assert pings(ground, "web-2", "free-1", family)
    assert {host: ground.status(host)["drift"] for host in ground.hosts} == {"h1": [], "h2": []}


def test_a_reboot_restores_what_is_confirmed(declared: Ground) -> None:
    before = {host: declared.status(host) for host in declared.hosts}
    for host in declared.hosts:
        assert declared.lab.reboot(host) == 0
        entry = journal(declared, host)["entries"][-1]
        assert entry["event"] == "restored"
    assert_in_force(declared)
    for host, old in before.items():
        now = declared.status(host)
        assert (now["generation"], now["programs"]) == (old["generation"], old["programs"])
        assert now["agent"]["artefact"] == old["agent"]["artefact"]


def test_what_was_not_confirmed_before_a_reboot_is_gone_after_it(declared: Ground) -> None:
    target = declared.targets["h1"]
    stage = {"node": "h1", "owner": "test:traffic", "deletes": ["policy/db"]}
    transaction = declared.fleet.call(target, "stage", stage)["transaction"]
    declared.fleet.call(target, "apply", {"transaction": transaction, "deadline_seconds": 3600})
    assert pings(declared, "web-1", "db-1", 4)
    generation = journal(declared, "h1")["confirmed"]["generation"]
    assert declared.lab.reboot("h1") == 0
    found = journal(declared, "h1")
    assert found["transaction"] is None
    assert found["confirmed"]["generation"] == generation
    rolled = [entry for entry in found["entries"] if entry["event"] == "rolled back"][-1]
    assert (rolled["transaction"], rolled["reason"]) == (transaction, "the node was rebooted before it was confirmed")
    assert_in_force(declared)


def test_a_namespace_that_is_made_again_is_attached_again(declared: Ground) -> None:
    host = declared.lab.host("h1")
    host.run(["ip", "netns", "delete", "w2"])
    host.run(["sh", "-c", "ip netns add w2 && ip -n w2 link set lo up"])
    assert not pings(declared, "free-1", "db-1", 4)
    boot(declared, "h1")
    assert_in_force(declared)
    writes = declared.status("h1")["writes"]
    boot(declared, "h1")
    assert declared.status("h1")["writes"] == writes, "with nothing to do nothing is written"


def test_before_the_network_is_there_all_that_can_be_is_done_and_the_rest_later(declared: Ground) -> None:
    """As an early unit finds it: no underlay device, hence no address. One namespace is there already."""
    host = declared.lab.host("h1")
    saved = host.run(["ip", "route", "show", "default"]).stdout.split()
    power = declared.lab
    try:
        host.run(["sh", "-c", "mv /var/lib/bpfleet/boot /var/lib/bpfleet/kept"])
        assert power.reboot("h1") is None
        host.run(["sh", "-c", "mv /var/lib/bpfleet/kept /var/lib/bpfleet/boot"])
        host.run(["sh", "-c", f"ip link set {host.device} down && ip link set {host.device} name later"])
        host.run(["ip", "address", "flush", "dev", "later"])
        boot(declared, "h1")
        assert pings(declared, "free-1", "db-1", 4), "workloads of one host need no network"
        assert not pings(declared, "web-1", "db-1", 4)
    finally:
        host.run(["sh", "-c", f"ip link set later name {host.device} && ip link set {host.device} up"])
        prefix = "24"
        host.run(["ip", "address", "add", f"{host.address}/{prefix}", "dev", host.device])
        host.run(["ip", "address", "add", f"{host.address6}/64", "dev", host.device, "nodad"])
        if saved:
            host.run(["ip", "route", "replace", *saved])
    boot(declared, "h1")
    assert_in_force(declared)


def test_a_namespace_that_cannot_be_attached_does_not_hold_up_the_others(declared: Ground) -> None:
    host = declared.lab.host("h1")
    host.run(["sh", "-c", "mv /var/lib/bpfleet/boot /var/lib/bpfleet/kept"])
    declared.lab.reboot("h1")
    host.run(["sh", "-c", "mv /var/lib/bpfleet/kept /var/lib/bpfleet/boot"])
    host.run(["ip", "-n", "w1", "link", "add", "eth0", "type", "bridge"])  # somebody else's, where ours would be
    done = host.run([BOOT], check=False)
    assert done.returncode == 1
    assert "network namespace w1 has a device eth0 already" in done.stderr
    assert pings(declared, "free-1", "db-2", 4)
    assert not pings(declared, "web-2", "db-1", 4)
    host.run(["ip", "-n", "w1", "link", "delete", "eth0"])
    boot(declared, "h1")
    assert_in_force(declared)


def test_a_node_that_holds_nothing_is_left_alone(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, workloads=0)
    ground = Ground(lab, Fleet())
    with ground.fleet as fleet:
        fleet.install(ground.targets["h1"])
        assert lab.reboot("h1") == 0
        host = lab.host("h1")
        assert "bpfleet" not in host.run(["find", "/sys/fs/bpf", "-mindepth", "1"]).stdout
        fleet.remove_agent(ground.targets["h1"])
        assert host.run(["find", wire.STATE_ROOT, "-mindepth", "1"], check=False).stdout == ""
