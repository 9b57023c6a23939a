"""What somebody removed or changed is shown, put back by a transaction, and nothing of others is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.cli.main import main
from bpfleet.lab import Host, Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic.frontend import PORT, answers
from tests.e2e.traffic.ground import Ground
from tests.fleet import policy, service

pytestmark = [pytest.mark.root, pytest.mark.lab]

PINS = "/sys/fs/bpf/bpfleet"
NO_WEB = policy("db", {"app": "db"}, ingress=[{"peers": [{"labels": {"app": "free"}}]}])
SHOP = service("shop", ["10.96.0.1:80"], [{"labels": {"app": "web"}, "port": PORT}])
MEDDLING = {
    "a program's link is unpinned": f"rm $(ls -d {PINS}/links/bpf-*-ingress | head -1)",
    "a map's pin is removed": f"rm $(ls -d {PINS}/maps/addresses_v*)",
    "a socket program's link is unpinned": f"rm {PINS}/links/%2f-connect4",
    "all socket programs are detached": f"rm {PINS}/links/%2f-*",
    "a socket program's pin is removed": f"rm $(ls -d {PINS}/programs/socket_connect4-*)",
    "the pins of frontends and backends are removed": f"rm {PINS}/maps/services_v* {PINS}/maps/backends_v*",
    "a program's pin is removed": f"rm $(ls -d {PINS}/programs/from_tunnel-*)",
    "all pins are removed": f"rm -r {PINS}",
    "bpffs is mounted anew": "umount /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf",
    "a route is flushed": "ip route flush proto 191",
    "IPv6 routes are flushed": "ip -6 route flush proto 191",
    "forwarding is off": "echo 0 >/proc/sys/net/ipv4/ip_forward",
    "the tunnel is down": "ip link set bpfleet_vxlan down",
    "the tunnel is gone": "ip link delete bpfleet_vxlan",
    "a veth is down": "ip link set $(ip -brief link | grep -o '^bpf-[0-9a-f]*' | head -1) down",
    "a veth has another MTU": "ip link set $(ip -brief link | grep -o '^bpf-[0-9a-f]*' | head -1) mtu 1300",
    "a veth is gone": "ip link delete $(ip -brief link | grep -o '^bpf-[0-9a-f]*' | head -1)",
    "an address inside is gone": "ip -n w1 address flush dev eth0 scope global",
    "a default route inside is gone": "ip -n w1 route delete default",
}


@pytest.fixture(scope="module")
def ground(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("repair")
    with Lab.up(f"repair-{os.getpid()}", 1, 3, directory=folder, guarded=True) as lab, Fleet() as fleet:
        one = Ground(lab, fleet)
        fleet.each(one.targets.values(), fleet.install)
        one.declare(*one.base(), NO_WEB, SHOP)
        host = lab.host("h1")
        # Somebody else's: a route, a device, a pinned thing, a sysctl.
        host.run(["ip", "link", "add", "foreign", "type", "bridge"])
        host.run(["ip", "link", "set", "foreign", "up"])
        host.run(["ip", "route", "add", "10.200.0.0/16", "dev", "foreign"])
        host.run(["ip", "-6", "route", "add", "2001:db8:7::/48", "dev", "foreign"])
        host.run(["mkdir", "/sys/fs/bpf/foreign"])
        yield one


def foreign(host: Host) -> str:
    routes = [line for line in host.run(["ip", "route"]).stdout.splitlines() if "proto 191" not in line]
    links = host.run(["ip", "-brief", "link", "show", "foreign"]).stdout
    more = host.run(["ip", "-6", "route", "show", "2001:db8:7::/48"]).stdout
    return "\n".join([*routes, links, more])


def repair(ground: Ground, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["repair", "--lab", ground.lab.name, "-o", "json", *options])
    return code, json.loads(capsys.readouterr().out)["h1"]


def pings(ground: Ground, source: str, destination: str) -> bool:
    one = ground.workloads[source]
    command = ["ping", "-n", "-q", "-c", "1", "-W", "1", ground.address(destination, 4)]
    return ground.lab.host("h1").run(command, workload=one.netns, check=False).returncode == 0


@pytest.mark.parametrize("what", MEDDLING)
def test_what_was_meddled_with_is_shown_and_put_back(
    ground: Ground, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    host = ground.lab.host("h1")
    before = foreign(host)
    host.run(["sh", "-c", MEDDLING[what]])
    code, found = repair(ground, capsys, "--check")
    assert code == 1 and found["drift"], found
    assert ground.status("h1")["drift"] == found["drift"], "to look changes nothing"
    code, found = repair(ground, capsys)
    assert (code, found["repaired"]) == (0, True), found
    assert repair(ground, capsys) == (0, {"drift": []})
    assert pings(ground, "free-1", "db-1") and pings(ground, "free-1", "web-1")
    assert answers(ground, "free-1", "10.96.0.1", 80, ["web-1"])
    assert not pings(ground, "web-1", "db-1")
    assert foreign(host) == before
