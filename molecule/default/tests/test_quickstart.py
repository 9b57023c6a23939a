"""What the quickstart's playbook has made of the hosts, seen from the hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def status(host: Any) -> dict[str, Any]:
    """What the host's agent says."""
    agent = host.file("/var/lib/bpfleet/agent").listdir()[0]
    request = json.dumps({"id": 1, "method": "status", "params": {}})
    done = host.run(f"echo '{request}' | python3 -I -S -B /var/lib/bpfleet/agent/{agent} serve")
    answer: dict[str, Any] = json.loads(done.stdout)["result"]
    return answer


def test_the_host_is_its_node_and_nothing_drifts_or_waits(host: Any, status: dict[str, Any]) -> None:
    assert status["node"] == host.backend.host
    assert status["cluster"] == "shop"
    assert (status["drift"], status["waiting"], status["pending"], status["fitness"]) == ([], [], None, [])
    assert status["documents"] == {"cluster": 1, "node": 3, "identity": 6, "endpoint": 6, "policy": 4, "service": 1}


def test_programs_are_attached(host: Any, status: dict[str, Any]) -> None:
    attached = {(program["device"], program["hook"]): program["object"] for program in status["programs"]}
    assert attached["eth0", "ingress"] == "from_underlay"
    assert attached["bpfleet_vxlan", "ingress"] == "from_tunnel"
    assert attached["bpfleet_vxlan", "egress"] == "to_tunnel"
    endpoints = [name for (_, hook), name in attached.items() if hook == "ingress" and name == "from_endpoint"]
    assert len(endpoints) == 2
    assert host.file("/sys/fs/bpf/bpfleet").is_directory


def test_maps_are_filled(status: dict[str, Any]) -> None:
    used = {entry["map"]: entry["used"] for entry in status["maps"]}
    # Two addresses of six endpoints, and those of three nodes.
    assert used["addresses"] >= 15
    assert used["endpoints"] == 2


def test_files_of_other_services(host: Any) -> None:
    unmanaged = host.file("/etc/systemd/network/05-bpfleet.network")
    assert unmanaged.contains("Unmanaged=yes") and unmanaged.contains("Name=bpf-[*] bpfleet_vxlan")
    assert host.file("/etc/modules-load.d/bpfleet.conf").contains("^vxlan$")
