"""Every program at its hook at once, put there by one transaction, on each kernel; and the same after a reboot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bpfleet.model.document import Document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed
from bpfleet.transport.target import Target
from tests.fleet import document, node_policy, service
from tests.packet import frames as f
from tests.vm.conftest import Machines, patient_fleet, target
from tests.vm.test_transaction import (
    DB,
    NODE,
    TCX_SINCE,
    WEB,
    answered,
    documents,
    flow,
    kernel_of,
    puts,
    stop_forwarding,
    transact,
)
from tools.vm.machine import Machine
from tools.vm.recipe import RECIPES

BUILT = Path(__file__).parents[2] / "build/bpf"
BLOCKED, STRANGER = "198.51.100.7", "203.0.113.7"
"""Two addresses of a bridge in the machines' network: one in a network that is blocked, one that is not."""
FRONTENDS = {"v4": "10.96.0.1", "v6": "fd96::1"}
SERVICE = service(
    "front", [f"{FRONTENDS['v4']}:80", f"[{FRONTENDS['v6']}]:80"], [{"labels": {"app": "db"}, "port": 5432}]
)
DATAGRAMS = service(
    "datagrams", [f"{FRONTENDS['v4']}:80/udp", f"[{FRONTENDS['v6']}]:80/udp"], [{"labels": {"app": "web"}, "port": 53}]
)
BLOCKED6, STRANGER6 = "2001:db8:bad::7", "2001:db8:900d::7"
"""The same of IPv6, without the addresses: what is sent from there by raw frames alone."""
ECHO = [{"protocol": "icmp"}]
HOSTS = node_policy("hosts", {}, ingress=[{"peers": [{"entity": "world"}], "ports": ECHO}], egress=[])
CLOSED = node_policy("hosts", {}, ingress=[], egress=[])

# Sends frames, in hexadecimal, by a device.
SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind((sys.argv[1], 0))
    for line in sys.stdin:
        wire.send(bytes.fromhex(line))
"""

# As a network that begins when network-pre.target is reached; it writes down what was there before its first word.
LATE_NETWORK = """[Unit]
Wants=network-pre.target
After=network-pre.target

[Service]
ExecStartPre=/bin/sh -c 'ls /sys/fs/bpf/bpfleet/links >/run/before-network; for hook in ingress egress; do \
tc filter show dev eth0 $$hook; done >>/run/before-network; ip -brief address show dev eth0 >>/run/before-network'
"""
DROP_IN = "/etc/systemd/system/vm-seed.service.d/late.conf"
# What makes the workloads' namespaces comes late, as container engines do.
WORKLOADS = """[Unit]
Description=Two workloads
After=multi-user.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip netns add w1 && ip netns add w2'

[Install]
WantedBy=graphical.target multi-user.target
"""
UNIT = "/etc/systemd/system/workloads.service"
LATE_SECONDS = 300


@dataclass
class Site:
    """A machine, how to reach it, and what it holds."""

    machine: Machine
    target: Target
    fleet: Fleet
    held: list[Document] = field(default_factory=list)

    def declare(self, *changed: Document) -> None:
        by_key = {one.key: one for one in (*self.held, *changed)}
        self.held = list(by_key.values())
        assert isinstance(transact(self.fleet, self.target, puts(self.held)), Committed)

    def await_that(self, command: str) -> None:
        """Until a command on the machine succeeds."""
        loop = f"for _ in $(seq {LATE_SECONDS}); do {{ {command}; }} >/dev/null 2>&1 && exit; sleep 1; done; exit 1"
        self.machine.run(loop, seconds=2 * LATE_SECONDS)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.fleet.call(self.target, "status")
        return found

    def pings(self, source: str) -> bool:
        """Whether the machine answers that address of the bridge."""
        words = ["ip", "netns", "exec", self.machine.network.netns, "ping", "-q", "-c", "3", "-W", "3", "-I", source]
        return subprocess.run([*words, self.machine.address], stdout=subprocess.DEVNULL).returncode == 0

    def counted(self, reason: str) -> int:
        return next((one["packets"] for one in self.status()["counters"] if one["reason"] == reason), 0)

    def gets(self, packets: list[bytes], *tags: int) -> None:
        """Each packet by a frame of its own from the bridge, behind VLAN tags."""
        mac = self.machine.run("cat /sys/class/net/eth0/address").strip()
        frames = [f.ether(packet, destination=mac) for packet in packets]
        inserted = b"".join(b"\x81\x00" + tag.to_bytes(2, "big") for tag in tags)
        lines = "\n".join((frame[:12] + inserted + frame[12:]).hex() for frame in frames)
        words = ["ip", "netns", "exec", self.machine.network.netns, sys.executable, "-c", SEND, "br0"]
        subprocess.run(words, input=lines.encode(), check=True)

    def told(self) -> list[Any]:
        """What was dropped, for the message of a test that fails."""
        counters = [one for one in self.status()["counters"] if one["drop"]]
        return [counters, list(self.fleet.stream(self.target, "events", {"last": 10}))]

    def underlay(self, mode: str) -> Document:
        (node,) = [one for one in documents(self.machine) if one.kind == "node"]
        return document("node", NODE, **{**node.spec, "devices": [{"name": "eth0", "xdp": mode}]})

    def blocking(self, *networks: str) -> Document:
        (cluster,) = [one for one in documents(self.machine) if one.kind == "cluster"]
        return document("cluster", cluster.name, **{**cluster.spec, "blocked_cidrs": list(networks)})

    def assert_services(self) -> None:
        """By every way through the socket hooks, both families; policy judges the backend."""
        asked = []
        for family, address in FRONTENDS.items():
            asked.append({**flow("w1", "w2", DB[family], "tcp", 5432, True), "frontend": [address, 80]})
            to_web = flow("w2", "w1", WEB[family], "udp", 53, True)
            asked += [{**to_web, "frontend": [address, 80], "connected": one} for one in (True, False)]
        closed = [flow("w1", "w2", DB[family], "tcp", 5433, False) for family in DB]
        assert answered(self.machine, asked + closed) == [True] * len(asked) + [False] * len(closed)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with patient_fleet() as one:
        yield one


@pytest.fixture(scope="module", params=sorted(RECIPES))
def site(request: pytest.FixtureRequest, machines: Machines, fleet: Fleet) -> Iterator[Site]:
    """A machine that holds a policy, services, a block list, XDP and a policy for itself."""
    machine = machines[request.param]
    machine.run("ip netns add w1 && ip netns add w2")
    inside = ["ip", "-netns", machine.network.netns]
    for address in (BLOCKED, STRANGER):
        subprocess.run([*inside, "address", "add", f"{address}/32", "dev", "br0"], check=True)
    one = Site(machine, target(machine, NODE), fleet)
    try:
        fleet.install(one.target)
        assert one.pings(BLOCKED) and one.pings(STRANGER), "before anything is declared"
        one.held = documents(machine)
        one.declare(one.underlay("native"), one.blocking("198.51.100.0/24"), SERVICE, DATAGRAMS, HOSTS)
        yield one
    finally:
        for address in (BLOCKED, STRANGER):
            subprocess.run([*inside, "address", "delete", f"{address}/32", "dev", "br0"], check=True)
        if fleet.installed(one.target):
            fleet.call(one.target, "wipe")
            fleet.remove_agent(one.target)
        machine.run("ip netns delete w1; ip netns delete w2; true")
        stop_forwarding(machine)


def assert_all_in_force(site: Site, mode: str = "native") -> None:
    status = site.status()
    assert (status["drift"], status["pending"], status["waiting"], status["fitness"]) == ([], None, [], [])
    attached = {one["object"] for one in status["programs"]}
    assert attached == {path.name.partition(".")[0] for path in BUILT.glob("*.bpf.o")}, "each object is at some hook"
    assert {("eth0", f"xdp-{mode}"), ("eth0", "ingress"), ("eth0", "egress")} <= {
        (one["device"], one["hook"]) for one in status["programs"]
    }
    link = site.machine.run("ip link show dev eth0")
    assert ("xdpgeneric" if mode == "generic" else "xdp") in link.split() or f"prog/xdp{mode}" in link, link
    site.assert_services()
    assert site.pings(STRANGER), f"the policy for the host lets echo requests in: {site.told()}"
    assert not site.pings(BLOCKED)
    dropped = {one["reason"]: one["packets"] for one in site.status()["counters"] if one["drop"]}
    assert dropped["blocked"] >= 3


def test_every_program_at_its_hook_by_one_transaction(site: Site) -> None:
    assert_all_in_force(site)
    clsact = "bpfl_" in site.machine.run("tc filter show dev eth0 ingress")
    assert clsact == (kernel_of(site.machine) < TCX_SINCE)


def test_xdp_in_the_other_mode_and_off(site: Site) -> None:
    site.declare(site.underlay("generic"))
    assert_all_in_force(site, "generic")
    site.declare(site.underlay("off"))
    assert "xdp" not in site.machine.run("ip link show dev eth0")
    assert not site.pings(BLOCKED), "tc looks where XDP does not"
    site.declare(site.blocking())
    assert site.pings(BLOCKED)
    site.declare(site.underlay("native"), site.blocking("198.51.100.0/24"))
    assert_all_in_force(site)


def probes(machine: Machine, source: str, source6: str) -> list[bytes]:
    """Packets to a machine: plain, with options, with extension headers."""
    ports, here6 = (40000, 53), "2001:db8:5::5"
    return [
        f.udp(source, machine.address, ports),
        f.udp(source, machine.address, ports, options=b"\x01\x94\x04\x00\x00\x01\x01\x00"),
        f.udp(source6, here6, ports),
        f.udp(source6, here6, ports, extensions=[(60, b"\x00\x01\x04\x00\x00\x00\x00")]),
    ]


@pytest.mark.parametrize("mode", ["generic", "native"])
def test_xdp_itself_drops_real_packets_of_what_is_blocked(site: Site, mode: str) -> None:
    """With options, extension headers and priority tags; another VLAN's frames are not of this device."""
    blocked, others = (probes(site.machine, *ends) for ends in ((BLOCKED, BLOCKED6), (STRANGER, STRANGER6)))
    site.declare(site.underlay(mode), site.blocking("198.51.100.0/24", "2001:db8:bad::/48"))
    try:
        for tags in ((), (0,), (0xE000, 0)):
            before = site.counted("blocked")
            site.gets(others, *tags)
            site.gets(blocked, *tags)
            assert site.counted("blocked") - before == len(blocked), (tags, site.told())
        events = site.fleet.stream(
            site.target, "events", {"last": 50, "filters": [{"key": "drop-reason", "value": "blocked"}]}
        )
        told = [(one["source"]["address"], one["hook"]) for one in events][-len(blocked) :]
        assert sorted(told) == sorted((source, "xdp_underlay") for source in (BLOCKED, BLOCKED6) for _ in range(2))
        before = site.counted("blocked")
        site.gets(blocked, 5)
        assert site.counted("blocked") == before
    finally:
        site.declare(site.underlay("native"), site.blocking("198.51.100.0/24"))


def test_a_policy_that_closes_the_host_leaves_ssh(site: Site) -> None:
    site.declare(CLOSED)  # confirmed over a new connection
    assert not site.pings(STRANGER)
    with Fleet() as another:
        assert another.call(site.target, "status")["drift"] == []
    events = list(
        site.fleet.stream(site.target, "events", {"last": 50, "filters": [{"key": "policy", "value": "hosts"}]})
    )
    assert any(one["source"]["address"] == STRANGER and one["verdict"] == "denied" for one in events)
    site.declare(HOSTS)
    assert site.pings(STRANGER)


@pytest.mark.parametrize("power_cut", [False, True], ids=["in order", "power cut"])
def test_a_reboot_finds_all_in_force_before_the_network(site: Site, power_cut: bool) -> None:
    """What was applied and not confirmed is gone; what is confirmed is there before the network's first word, and for
    workloads as soon as they are."""
    machine = site.machine
    machine.put({DROP_IN: LATE_NETWORK.encode(), UNIT: WORKLOADS.encode()})
    machine.run("systemctl daemon-reload && systemctl enable -q workloads.service")
    try:
        change = Changes(deletes=["policy/hosts"], owner=puts([]).owner)
        stage = {"node": NODE, "owner": change.owner, "deletes": list(change.deletes)}
        generation = site.status()["generation"]
        transaction = site.fleet.call(site.target, "stage", stage)["transaction"]
        site.fleet.call(site.target, "apply", {"transaction": transaction, "deadline_seconds": 3600})
        machine.run("sync")
        machine.reboot(power_cut=power_cut)

        journal = json.loads(machine.run("cat /var/lib/bpfleet/journal.json"))
        assert (journal["transaction"], journal["confirmed"]["generation"]) == (None, generation)
        rolled = [entry for entry in journal["entries"] if entry["event"] == "rolled back"][-1]
        assert rolled["transaction"] == transaction and "rebooted" in rolled["reason"]
        assert machine.run("systemctl show -P Result bpfleet-boot.service").strip() == "success"
        before = machine.run("cat /run/before-network")
        assert machine.address not in before, "there was no network yet"
        assert "eth0-xdp-native" in before and "%2f-connect4" in before and "%2f-recvmsg6" in before
        tc = [f"eth0-{hook}" for hook in ("ingress", "egress")]
        if kernel_of(machine) < TCX_SINCE:
            tc = [f"bpfl_{name}" for name in ("from_under", "to_under")]
        assert all(name in before for name in tc), before

        # Units that see the namespaces appear, no controller.
        site.await_that("ip -n w1 link show eth0 && ip -n w2 link show eth0")
        site.await_that("systemctl is-active bpfleet-network.service")
        assert_all_in_force(site)
    finally:
        machine.run(f"rm -rf {DROP_IN} {UNIT} /etc/systemd/system/*.wants/workloads.service; systemctl daemon-reload")
