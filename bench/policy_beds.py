"""Two pairs of lab hosts for traffic side by side: one provisioned by bpfleet, one forwarding by the kernel alone.

    h1 w1 ----- h2 w1    bpfleet, with a policy of 10,000 rules
    h3 w1 ----- h4 w1    addresses, routes and a VXLAN device; a filter on h4 where one is measured

Both ways have the same MTU. The receiving workload has two addresses: one that it answers on and one whose packets it
throws away at once, so that nothing but the way there is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List

from bench import timing
from bench.survival_fleet import CLUSTER, Documents, change, document, host_target, identity, node
from bpfleet.lab import Host, Lab
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target

RULES = 10_000
FIRST_PORT = 20_000
TCP_PORT, ANSWERS_PORT = 5_001, 5_002
TRAFFIC = "/traffic"
"""bench/harness/traffic.c on a lab host, after `deliver`."""
MTU = 1450
BLOCKED = "203.0.113.0/24"

_PLAIN_PORT, _PLAIN_ID = 4790, 42
_SECONDS = 60.0


@dataclass(frozen=True)
class Way:
    """From a workload of one host to that of another."""

    name: str
    client: Host
    server: Host

    @property
    def answering(self) -> str:
        """The server's address that answers."""
        return _address(self.server, 10)

    @property
    def discarding(self) -> str:
        """The server's address whose packets are thrown away."""
        return _address(self.server, 11)

    def traffic(self, *arguments: object) -> List[float]:
        """Run a mode of bench/harness/traffic.c at the client; the numbers it prints."""
        words = [TRAFFIC, *(str(one) for one in arguments)]
        return [float(one) for one in self.client.run(words, workload="w1", timeout=_SECONDS).stdout.split()]

    @contextlib.contextmanager
    def steered(self, cpu: int) -> Iterator[None]:
        """Every packet is received on one CPU, as a network card's receive-side scaling has it for each flow.

        Else the softirqs of the sender's and the receiver's CPU carry packets of one connection past each other, and
        how often TCP takes that for loss says more of the machine than of the way.
        """
        self._receive_on(1 << cpu)
        try:
            yield
        finally:
            self._receive_on(0)

    def _receive_on(self, cpus: int) -> None:
        script = f"for one in /sys/class/net/*/queues/rx-*/rps_cpus; do echo {cpus:x} >$one; done"
        for host in (self.client, self.server):
            host.run(["sh", "-ec", script])
            host.run(["sh", "-ec", script], workload="w1")

    def received(self) -> int:
        """Packets that arrived at the server's device so far."""
        shown = self.server.run(["ip", "-s", "-j", "link", "show", _device(self.server)], workload="w1").stdout
        return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])

    def packets_a_second(self, seconds: float) -> float:
        """UDP to 10,000 ports at random: what arrived, by the sender's second of CPU.

        The kernel carries a packet all the way in the sender's time, and others who use the machine take none of that.
        """
        before = self.received()
        _, cpu = self.traffic("blast", 0, self.discarding, FIRST_PORT, RULES, seconds, 0)
        return (self.received() - before) / cpu


class Beds:
    """The lab, the two ways, and how bpfleet's is declared."""

    def __init__(self, lab: Lab, fleet: Fleet) -> None:
        self.lab, self.fleet = lab, fleet
        self.ours = Way("ours", lab.host("h1"), lab.host("h2"))
        self.plain = Way("plain", lab.host("h3"), lab.host("h4"))
        self._targets = {host.name: host_target(lab, host) for host in (self.ours.client, self.ours.server)}

    def target(self, host: Host) -> Target:
        """How to reach one of bpfleet's hosts."""
        return self._targets[host.name]

    def provision(self) -> None:
        """Bring both ways up."""
        change(self.fleet, self._targets, self._documents("off"))
        _plain(self.plain.client, self.plain.server)
        _plain(self.plain.server, self.plain.client)
        for way in (self.ours, self.plain):
            discard = f"ip route del local {way.discarding} table local; ip route add blackhole {way.discarding}"
            way.server.run(["sh", "-ec", discard], workload="w1")

    def use_xdp(self, mode: str) -> None:
        """With XDP on bpfleet's underlay devices ("native", "generic") or without ("off")."""
        change(self.fleet, self._targets, self._documents(mode))

    def _documents(self, xdp: str) -> Documents:
        hosts = [self.ours.client, self.ours.server]
        blocked = {} if xdp == "off" else {"blocked_cidrs": [BLOCKED]}
        rules = [
            {"peers": [{"labels": {"app": "client"}}], "ports": [{"protocol": "udp", "port": FIRST_PORT + number}]}
            for number in range(RULES)
        ]
        rules.append(
            {
                "peers": [{"labels": {"app": "client"}}],
                "ports": [{"protocol": "tcp", "port": TCP_PORT}, {"protocol": "tcp", "port": ANSWERS_PORT}],
            }
        )
        nodes = [node(host) for host in hosts]
        for one in nodes:
            one["spec"]["devices"][0]["xdp"] = xdp
        return [
            document("cluster", CLUSTER, id=1, members=[host.name for host in hosts], **blocked),
            *nodes,
            *(identity(app, {"app": app}) for app in ("client", "server")),
            *(
                document(
                    "endpoint",
                    app,
                    node=host.name,
                    identity=app,
                    addresses=[_address(host, 10), _address(host, 11)],
                    attach={"netns": "w1"},
                )
                for app, host in zip(("client", "server"), hosts)
            ),
            document("policy", "many", selector={"app": "server"}, ingress=rules),
            document(
                "policy", "client", selector={"app": "client"}, egress=[{"peers": [{"labels": {"app": "server"}}]}]
            ),
        ]


def deliver(lab: Lab) -> None:
    """Put the traffic program on every host: a host does not see all of the machine's files."""
    timing.build()
    for host in lab.hosts.values():
        shutil.copy(timing.BUILD / "traffic", f"/proc/{host.pid}/root{TRAFFIC}")


@contextlib.contextmanager
def up() -> Iterator[Beds]:
    """Both ways, provisioned."""
    name = f"bench-policy-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, 4, 1, directory=Path(directory), guarded=True) as lab, Fleet() as fleet:
            deliver(lab)
            beds = Beds(lab, fleet)
            beds.provision()
            yield beds


@contextlib.contextmanager
def serving(ways: List[Way], cpu: int, port: int) -> Iterator[None]:
    """A TCP server at the far end of each way."""
    started: List[subprocess.Popen[str]] = []
    try:
        for way in ways:
            words = [TRAFFIC, "serve", str(cpu), str(port)]
            started.append(way.server.popen(words, workload="w1", stdout=subprocess.PIPE, text=True))
        for one in started:
            assert one.stdout is not None
            one.stdout.readline()
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def _plain(host: Host, other: Host) -> None:
    """What forwards between two hosts' workloads without bpfleet."""
    here, there = host.index, other.index
    script = f"""
        echo 1 >/proc/sys/net/ipv4/ip_forward
        vxlan="id {_PLAIN_ID} local {host.address} remote {other.address} dstport {_PLAIN_PORT}"
        ip link add vx0 mtu {MTU} type vxlan $vxlan
        ip address add 172.31.0.{here}/24 dev vx0
        ip link set vx0 up
        ip link add v1 mtu {MTU} type veth peer name eth0 mtu {MTU} netns w1
        ip address add {_address(host, 1)}/24 dev v1
        ip link set v1 up
        ip -n w1 address add {_address(host, 10)}/24 dev eth0
        ip -n w1 address add {_address(host, 11)}/24 dev eth0
        ip -n w1 link set eth0 up
        ip -n w1 route add default via {_address(host, 1)}
        mac=$(ip -n w1 -o link show eth0 | sed 's/.*ether //; s/ .*//')
        ip neigh add {_address(host, 11)} lladdr $mac dev v1
        ip route add {host_cidr(other)} via 172.31.0.{there} dev vx0
    """
    host.run(["sh", "-ec", script])


def host_cidr(host: Host) -> str:
    """The workloads' IPv4 network of a host."""
    return host.workload_cidrs[0]


def _address(host: Host, last: int) -> str:
    return f"{host_cidr(host).partition('/')[0].rpartition('.')[0]}.{last}"


def _device(host: Host) -> str:
    """The workload's only device but lo."""
    shown: List[Dict[str, Any]] = json.loads(host.run(["ip", "-j", "link", "show"], workload="w1").stdout)
    return next(str(link["ifname"]) for link in shown if link["ifname"] != "lo")
