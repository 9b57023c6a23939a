"""A whole life on a host with its own kernel: agent delivered by sshd, policies that judge packets, and gone again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import wire
from bpfleet.model.document import Document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Unchanged
from bpfleet.transport.target import Target
from tests.fleet import document, identity, policy
from tests.vm.conftest import Machines, changes, snapshot, target
from tools.vm.machine import Machine
from tools.vm.recipe import RECIPES

OWNER = "test:vm"
TCX_SINCE = (6, 6)
NODE = "n1"
TRAFFIC = Path(__file__).with_name("traffic.py")
WEB = {"v4": "10.99.1.1", "v6": "fd99:0:0:1::1"}
DB = {"v4": "10.99.1.2", "v6": "fd99:0:0:1::2"}
# An answer that comes may take this long on a busy machine; whether it never comes is not for a clock to say, so a
# denied flow is also looked up among the agent's events.
ALLOWED_SECONDS, DENIED_SECONDS = 30, 3
OPEN_TO_WEB = policy(
    "db",
    {"app": "db"},
    ingress=[{"peers": [{"labels": {"app": "web"}}], "ports": [{"protocol": "tcp", "port": 5432}]}],
)


def documents(machine: Machine) -> list[Document]:
    """A cluster of one node with two endpoints, the second one selected by a policy."""
    return [
        document(
            "node",
            NODE,
            address=machine.address,
            devices=[{"name": "eth0"}],
            workload_cidrs=["10.99.1.0/24", "fd99:0:0:1::/64"],
        ),
        document("cluster", "fleet", id=1, routing={}, members=[NODE]),
        identity("web"),
        identity("db"),
        endpoint("web", "w1", WEB),
        endpoint("db", "w2", DB),
        OPEN_TO_WEB,
    ]


def endpoint(name: str, netns: str, addresses: dict[str, str]) -> Document:
    return document(
        "endpoint", name, node=NODE, identity=name, addresses=list(addresses.values()), attach={"netns": netns}
    )


def puts(documents: list[Document]) -> Changes:
    items: list[wire.Item] = [{"document": one.to_json(), "owner": OWNER, "metadata": {}} for one in documents]
    return Changes(puts=items, owner=OWNER)


def flow(source: str, destination: str, address: str, protocol: str, port: int, allowed: bool) -> dict[str, Any]:
    return {
        "source": source,
        "destination": destination,
        "address": address,
        "protocol": protocol,
        "port": port,
        "seconds": ALLOWED_SECONDS if allowed else DENIED_SECONDS,
    }


def answered(machine: Machine, flows: list[dict[str, Any]]) -> list[bool]:
    answers: list[bool] = json.loads(
        machine.run(f"python3 -B - '{json.dumps(flows)}'", input=TRAFFIC.read_bytes(), seconds=300)
    )
    return answers


@pytest.fixture(params=sorted(RECIPES))
def host(request: pytest.FixtureRequest, machines: Machines) -> Iterator[Machine]:
    """A machine with two bare workload namespaces."""
    machine = machines[request.param]
    machine.run("ip netns add w1 && ip netns add w2")
    yield machine
    machine.run("ip netns delete w1; ip netns delete w2")
    stop_forwarding(machine)


def stop_forwarding(machine: Machine) -> None:
    """Undo by hand the one thing that wipe leaves: sysctls stay, as others may have come to rely on them."""
    machine.run("sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1")


@pytest.fixture
def reached(host: Machine, fleet: Fleet) -> Iterator[Target]:
    """How to reach the machine; whatever the test left there of ours is gone afterwards."""
    one = target(host, NODE)
    yield one
    hello = fleet.installed(one)
    if hello:
        if hello["node"]:
            fleet.call(one, "wipe", {"node": hello["node"]})
        fleet.remove_agent(one)


def kernel_of(machine: Machine) -> tuple[int, int]:
    major, minor = machine.run("uname -r").split(".")[:2]
    return int(major), int(minor)


def filters(machine: Machine) -> str:
    """Name of the clsact filter of ours at the underlay's ingress; none where programs are attached by tcx links."""
    words = machine.run("tc filter show dev eth0 ingress").split()
    return next((word for word in words if word.startswith("bpfl_")), "")


def transact(fleet: Fleet, target: Target, changes: Changes) -> Committed | Unchanged:
    outcome = fleet.transact({NODE: target}, changes)[NODE]
    assert isinstance(outcome, (Committed, Unchanged)), outcome
    return outcome


def test_a_node_lives_and_leaves_nothing(host: Machine, reached: Target, fleet: Fleet) -> None:
    before = snapshot(host)

    hello = fleet.install(reached)
    assert (hello["node"], hello["generation"]) == (None, 0)
    assert hello["kernel"] == host.run("uname -r").strip()

    committed = transact(fleet, reached, puts(documents(host)))
    assert isinstance(committed, Committed) and committed.generation == 1
    assert not committed.waiting
    hello = fleet.call(reached, "hello")
    assert (hello["node"], hello["cluster"], hello["generation"]) == (NODE, "fleet", 1)
    assert hello["documents_digest"] == committed.documents_digest
    assert fleet.call(reached, "status")["drift"] == []
    assert filters(host) == ("" if kernel_of(host) >= TCX_SINCE else "bpfl_from_under+clsact")

    allowed = [flow("w1", "w2", DB[family], "tcp", 5432, True) for family in DB]
    allowed += [flow("w2", "w1", WEB[family], protocol, 80, True) for family in WEB for protocol in ("tcp", "udp")]
    allowed.append(flow("w2", "w1", WEB["v4"], "icmp", 0, True))
    denied = [flow("w1", "w2", DB[family], "tcp", 5433, False) for family in DB]
    denied += [flow("w1", "w2", DB["v4"], "udp", 5432, False), flow("w1", "w2", DB["v6"], "icmp", 0, False)]
    answers = answered(host, allowed + denied)
    assert answers == [True] * len(allowed) + [False] * len(denied)
    events = list(fleet.stream(reached, "events", {"last": 200, "filters": [{"key": "verdict", "value": "denied"}]}))
    told = {(one["destination"]["address"], one["protocol"], one["destination"].get("port", 0)) for one in events}
    assert {(one["address"], one["protocol"], one["port"]) for one in denied if one["protocol"] != "icmp"} <= told
    assert {one["policy"] for one in events} == {"db"}

    assert isinstance(transact(fleet, reached, puts(documents(host))), Unchanged)

    opened = transact(fleet, reached, Changes(deletes=[OPEN_TO_WEB.key], owner=OWNER))
    assert isinstance(opened, Committed) and opened.generation == 2
    freed = [{**one, "seconds": ALLOWED_SECONDS} for one in denied]
    assert answered(host, allowed + freed) == [True] * (len(allowed) + len(freed))

    fleet.call(reached, "wipe", {"node": NODE})
    assert fleet.call(reached, "hello")["node"] is None
    fleet.remove_agent(reached)
    stop_forwarding(host)
    assert changes(before, snapshot(host)) == []
