"""The installed artefact on the real kernel, in namespaces of its own, under every Python it must run on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from bpfleet.agent import artefact, wire
from bpfleet.agent.install import install_command, launch_command
from bpfleet.errors import InvalidInput
from bpfleet.loader import syscall
from bpfleet.loader.cpus import possible_cpus
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.layout import encode, layout
from bpfleet.loader.pins import DEFAULT, Pins, open_pin
from bpfleet.loader.real import shows_contexts
from tests import fleet
from tests.agent.conftest import Connection, items
from tests.agent.pythons import INTERPRETERS, interpreter
from tests.contract.sandbox import Sandbox, missing

pytestmark = pytest.mark.root

DOCUMENTS = [
    fleet.document(
        "cluster", "fleet", id=1, members=["h1"], limits={"connections": 4096, "endpoints": 16, "flows": 503}
    ),
    fleet.node(1),
    fleet.identity("web"),
    fleet.identity("api"),
    fleet.endpoint("web-1", 1, 1, "web"),
    fleet.endpoint("api-1", 1, 2, "api"),
    fleet.policy("api", {"app": "api"}, ingress=[{"peers": [{"labels": {"app": "db"}}]}]),
]
CHANGE: Dict[str, Any] = {"node": "h1", "owner": "test", "puts": items(DOCUMENTS, "test")}


@pytest.fixture(scope="module")
def made() -> artefact.Artefact:
    return artefact.build()


class Node:
    """A sandbox with an underlay device and two workloads, and the agent installed in a directory of its own."""

    def __init__(self, folder: Path, python: str, made: artefact.Artefact) -> None:
        self._made = made
        self.root = folder / "state"
        programs = folder / "bin"
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (programs / "python3").chmod(0o755)
        self._environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        self._connections: List[Connection] = []
        self.sandbox = Sandbox()
        for words in (
            "ip link add eth0 type veth peer name eth0p",
            "ip address add 192.168.77.1/24 dev eth0",
            "ip link set eth0 up",
            "ip link set eth0p up",
            "ip netns add w1",
            "ip netns add w2",
        ):
            self.sandbox.command(*words.split())
        done = self.sandbox.run(
            subprocess.run,
            ["sh", "-c", install_command(made.digest, root=str(self.root))],
            input=made.data,
            stdout=subprocess.PIPE,
            env=self._environment,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def connect(self) -> Connection:
        command = ["sh", "-c", launch_command(self._made.digest, root=str(self.root), local=True)]
        connection: Connection = self.sandbox.run(Connection, command, env=self._environment)
        self._connections.append(connection)
        return connection

    def commit(self, **change: Any) -> Dict[str, Any]:
        first = self.connect()
        staged = first.call("stage", **change)
        assert staged.get("transaction"), staged
        first.call("apply", transaction=staged["transaction"])
        return dict(self.connect().call("confirm", transaction=staged["transaction"]))

    def events(self, last: int, **filters: str) -> List[Dict[str, Any]]:
        return self.told("events", last=last, filters=[{"key": key, "value": value} for key, value in filters.items()])

    def told(self, method: str, **params: Any) -> List[Dict[str, Any]]:
        connection = self.connect()
        connection.send(method, params)
        found = []
        while True:
            message = connection.receive()
            if "event" not in message:
                wire.result_of(message)
                return found
            found.append(message["event"])

    def ping(self, workload: str, address: str) -> bool:
        words = ["ip", "netns", "exec", workload, "ping", "-c", "1", "-W", "1", address]
        done = self.sandbox.run(subprocess.run, words, stdout=subprocess.DEVNULL, check=False)
        return int(done.returncode) == 0

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.sandbox.close()


@pytest.fixture(params=INTERPRETERS)
def node(request: pytest.FixtureRequest, tmp_path: Path, made: artefact.Artefact) -> Iterator[Node]:
    why = missing()
    if why:
        pytest.skip(f"the real kernel cannot be tested here: {why}")
    node = Node(tmp_path, interpreter(request.param), made)
    yield node
    node.close()


def test_a_nodes_life(node: Node) -> None:
    assert node.commit(**CHANGE)["generation"] == 1
    before = sorted((str(path), path.stat().st_mtime_ns) for path in node.root.rglob("*"))
    connection = node.connect()
    writes = connection.call("hello")["writes"]
    assert connection.call("stage", **CHANGE)["unchanged"]
    assert connection.call("hello")["writes"] == writes
    assert sorted((str(path), path.stat().st_mtime_ns) for path in node.root.rglob("*")) == before

    assert node.ping("w2", "10.77.1.1")
    assert not node.ping("w1", "10.77.1.2")
    icmp = node.events(protocol="icmp", last=100)
    told = {(e["source"]["endpoint"], e["destination"]["endpoint"], e["direction"], e["verdict"]) for e in icmp}
    assert ("api-1", "web-1", "ingress", "allowed") in told
    denied = next(event for event in icmp if event["verdict"] == "denied")
    assert (denied["policy"], denied["rule"]) == ("api", "default deny")
    expected = connection.call("explain", source="web-1", destination="api-1", protocol="icmp")["judged"][-1]
    assert denied["rule_id"] == expected["rule_id"]

    status = connection.call("status")
    assert (status["drift"], status["fitness"]) == ([], [])
    assert len(status["programs"]) == 7 + shows_contexts(), "where packets may go directly, one sees how others leave"
    counters = {counter["reason"]: counter for counter in status["counters"]}
    assert counters["denied_by_default"]["drop"]
    assert counters["denied_by_default"]["packets"] >= 1
    maps = {entry["map"]: entry for entry in status["maps"]}
    assert (maps["endpoints"]["used"], maps["policies"]["used"]) == (2, 1)
    assert (maps["connections"]["limit"], maps["endpoints"]["limit"]) == (4096, 16)
    # Of the history the fuller room: 100 of 503 are for what was dropped.
    assert (maps["flow_slots"]["limit"], maps["flow_slots"]["room"]) == (100, "dropped")
    assert maps["flow_slots"]["used"] >= 1
    assert (maps["endpoints"]["pressure"], maps["endpoints"]["level"]) == (0.125, "ok")
    assert maps["policy_entries"]["used"] == 1 and maps["policy_entries"]["limit"] == 262144
    assert maps["connections"]["used"] > 0 and maps["connections"]["declared_by"] == "limits.connections"

    *flows, rest = node.told("flows")
    pings = [flow for flow in flows if flow["protocol"] == "icmp"]
    counted = {
        (
            flow["source"]["identity_name"],
            flow["destination"]["identity_name"],
            flow["direction"],
            flow["verdict"],
        ): flow
        for flow in pings
    }
    assert counted["api", "web", "ingress", "allowed"]["packets"] == 1
    assert counted["api", "web", "ingress", "allowed"]["answer_packets"] == 1
    refused = counted["web", "api", "ingress", "denied"]
    assert (refused["packets"], refused["rule_id"], refused["policy"]) == (1, denied["rule_id"], "api")
    assert refused["icmp"] == {"type": 8, "code": 0}
    assert abs(refused["first_seen"] - denied["time"]) < 1
    assert rest["kept"] == len(flows) < rest["limit"] == 503
    assert rest["did_not_fit"]["passed"]["packets"] == rest["did_not_fit"]["dropped"]["packets"] == 0

    # A limit that changes holds at once, and the map has what it held. That of the history is for the next maps.
    raised = fleet.document(
        "cluster", "fleet", id=1, members=["h1"], limits={"connections": 8192, "endpoints": 16, "flows": 603}
    )
    node.commit(node="h1", owner="test", puts=items([raised], "test"))
    after = connection.call("status")
    held = {entry["map"]: entry for entry in after["maps"]}["connections"]
    assert (held["limit"], held["used"]) == (8192, maps["connections"]["used"]) and after["drift"] == []
    assert [text.partition(": it keeps")[0] for text in after["warnings"] if "has room for" in text] == [
        f"cluster/fleet, limits.flows: map {name} has room for 505 entries, 605 are declared"
        for name in ("flow_slots", "flows")
    ]

    # Once the policy is gone, its events and flows keep their names, and the pings pass.
    node.commit(node="h1", owner="test", deletes=["policy/api"])
    assert node.ping("w1", "10.77.1.2")
    for older in sorted((node.root / "generations").iterdir())[:-1]:
        older.unlink()  # as after many more changes
    kept = next(event for event in node.events(verdict="denied", last=100))
    assert (kept["policy"], kept["rule"], kept["gone"]) == ("api", "default deny", "yes")
    *flows, _ = node.told("flows", filters=[{"key": "policy", "value": "api"}])
    assert {(flow["policy"], flow["rule"], flow["gone"]) for flow in flows} == {("api", "default deny", "yes")}
    assert connection.call("status")["drift"] == []

    assert connection.call("wipe", node="h1")["wiped"]
    assert sorted(path.name for path in node.root.iterdir()) == ["agent", "boot", "lock"]
    left = node.sandbox.command("sh", "-c", "ls -A /sys/fs/bpf; ip -o link; ip route; ip -6 route")
    assert "bpf" not in left


def fill_history(flows: int) -> None:
    """As many flows as there is room for, each with its number counted by each CPU; run inside."""
    pins, cpus = Pins(DEFAULT), possible_cpus()
    first = ENUMS["flow_slot"]["first"]
    now = time.monotonic_ns() >> ENUMS["flow_time"]["tick_shift"]
    blank: Dict[str, Any] = dict.fromkeys(layout("flows", "value").names, 0)
    records, counts, keys = [], [], []
    for number in range(flows):
        keys.append((first + number).to_bytes(4, "little"))
        flow = {"source_identity": 65536 + number, "destination_identity": 2, "port": 80, "protocol": 6, "verdict": 1}
        records.append(encode("flows", "value", {**blank, **flow, "last_seen": now, "first_seen": 1 + number}))
        counts.append(encode("flow_counts", "value", {"packets": number, "bytes": 60 * number}))
    answers = [encode("flow_counts", "value", {"packets": 1, "bytes": 60})] * flows
    counted = [
        (part * (first + flows) + first + number).to_bytes(4, "little")
        for part in range(2 * cpus)
        for number in range(flows)
    ]
    for name, places, values in (("flows", keys, records), ("flow_counts", counted, (counts + answers) * cpus)):
        handle = open_pin(pins.map(name))
        assert handle is not None
        try:
            assert syscall.update_batch(handle, b"".join(places), b"".join(values), len(places)) == len(places)
        finally:
            os.close(handle)


def test_a_full_history_is_read_whole(node: Node) -> None:
    documents = [one for one in DOCUMENTS if one.kind != "cluster"]
    cluster = fleet.document("cluster", "fleet", id=1, members=["h1"])
    node.commit(node="h1", owner="test", puts=items([cluster, *documents], "test"))
    room = 10240
    node.sandbox.run(fill_history, room)
    *flows, rest = node.told("flows")
    assert len(flows) == rest["kept"] == rest["limit"] == room
    cpus = possible_cpus()
    found = {
        flow["source"]["identity"] - 65536: (flow["packets"], flow["bytes"], flow["answer_packets"]) for flow in flows
    }
    assert found == {number: (cpus * number, 60 * cpus * number, cpus) for number in range(room)}
    few = node.told("flows", filters=[{"key": "identity", "value": "65543"}], last=5)
    assert [flow["packets"] for flow in few[:-1]] == [7 * cpus] and few[-1]["kept"] == room


def test_what_was_is_told_as_it_was(node: Node) -> None:
    """A policy's description, labels and selector, and who has an address, change after the packet."""
    opened = [{"peers": [{"labels": {"app": "db"}}]}]
    said: Dict[str, Any] = {"description": "first words", "labels": {"team": "one"}, "ingress": opened}
    node.commit(**{**CHANGE, "puts": items([*DOCUMENTS[:-1], fleet.policy("api", {"app": "api"}, **said)], "test")})
    assert not node.ping("w1", "10.77.1.2")
    assert node.ping("w2", "10.77.1.1")

    def told(**filters: str) -> Dict[str, Any]:
        found = node.events(last=100, protocol="icmp", verdict="allowed", **filters)
        return next(event for event in reversed(found) if event["direction"] == "ingress")

    closed = [{"action": "deny", "peers": [{"labels": {"app": "web"}}]}]
    for words, team, app in (("second words", "two", "api"), ("third words", "three", "web")):
        changed: Dict[str, Any] = {"description": words, "labels": {"team": team}, "ingress": closed}
        node.commit(node="h1", owner="test", puts=items([fleet.policy("api", {"app": app}, **changed)], "test"))
        if team == "two":
            assert not node.ping("w1", "10.77.1.2")
    denied = node.events(last=100, protocol="icmp", verdict="denied")
    texts = [(e["rule"], e.get("description"), e.get("gone"), e.get("changed")) for e in denied]
    assert texts == [("default deny", None, None, "yes"), ("ingress[0]", "second words", None, "yes")]
    assert [e["description"] for e in node.events(last=100, policy="team=two")] == ["second words"]
    assert node.events(last=100, policy="team=three") == []
    *flows, _ = node.told("flows", filters=[{"key": "policy", "value": "team=two"}])
    assert {(flow["description"], flow["changed"]) for flow in flows} == {("second words", "yes")}

    # The addresses change hands.
    swapped = [fleet.endpoint("web-1", 1, 2, "web", netns="w1"), fleet.endpoint("api-1", 1, 1, "api", netns="w2")]
    node.commit(node="h1", owner="test", puts=items(swapped, "test"))
    for event in (told(), denied[0], node.events(last=100, protocol="icmp", verdict="denied")[0]):
        ends = {event[end]["address"]: event[end]["endpoint"] for end in ("source", "destination")}
        assert ends == {"10.77.1.1": "web-1", "10.77.1.2": "api-1"}


def test_following_sees_what_happens_and_ends_with_the_next_request(node: Node) -> None:
    node.commit(**CHANGE)
    connection = node.connect()
    number = connection.send("events", {"follow": True, "last": 100, "filters": [{"key": "protocol", "value": "icmp"}]})
    assert node.ping("w2", "10.77.1.1")
    event = connection.receive()
    assert event["id"] == number
    assert event["event"]["source"]["endpoint"] == "api-1"
    connection.send("hello")
    while "event" in (message := connection.receive()):
        pass
    assert message["result"]["events"] >= 1
    assert connection.receive()["result"]["node"] == "h1"


def test_following_ends_when_nothing_later_is_wanted(node: Node) -> None:
    node.commit(**CHANGE)
    connection = node.connect()
    for until in (time.time() - 60, time.time() + 0.5):
        number = connection.send("events", {"follow": True, "until": until})
        while "result" not in (message := connection.receive()):
            pass
        assert message["id"] == number and time.time() > until


def test_following_goes_on_where_everything_was_made_anew(node: Node) -> None:
    """What the node's new programs say comes as well, and nothing of it is lost."""
    node.commit(**CHANGE)
    connection = node.connect()
    connection.send("events", {"follow": True, "last": 0, "notices": True})
    assert "clock" in connection.receive()["event"]
    assert node.connect().call("wipe", node="h1")["wiped"]
    others = [*(one for one in DOCUMENTS if one.name != "api-1"), fleet.endpoint("api-2", 1, 2, "api", netns="w2")]
    node.commit(node="h1", owner="test", puts=items(others, "test"))
    assert node.ping("w2", "10.77.1.1")
    while (event := connection.receive()["event"]).get("protocol") != "icmp":
        assert "lost" not in event
    assert event["source"]["endpoint"] == "api-2"


def test_who_was_held_up_while_everything_was_made_anew_knows_the_new_names(node: Node) -> None:
    """As a terminal that was paused holds an agent up: the journal that it finds counts from the start again."""
    node.commit(**CHANGE)
    connection = node.connect()
    connection.send("events", {"follow": True, "last": 0, "notices": True})
    assert "clock" in connection.receive()["event"]
    connection.process.send_signal(signal.SIGSTOP)
    assert node.connect().call("wipe", node="h1")["wiped"]
    others = [*(one for one in DOCUMENTS if one.name != "api-1"), fleet.endpoint("api-2", 1, 2, "api", netns="w2")]
    node.commit(node="h1", owner="test", puts=items(others, "test"))
    assert node.ping("w2", "10.77.1.1")
    connection.process.send_signal(signal.SIGCONT)
    while (event := connection.receive()["event"]).get("protocol") != "icmp":
        assert "lost" not in event
    assert event["source"].get("endpoint") == "api-2"


def test_refused_by_what_the_host_has(node: Node) -> None:
    connection = node.connect()
    wrong = [*DOCUMENTS[:1], fleet.document("node", "h1", address="192.168.77.9", devices=[{"name": "eth7"}],
             workload_cidrs=["10.77.1.0/24"])]  # fmt: skip
    answer = connection.call("stage", node="h1", owner="test", puts=items(wrong, "test"))
    fields = {refusal["error"]["where"]["field"] for refusal in answer["refused"]}
    assert fields == {"devices[0].name", "address"}
    with pytest.raises(InvalidInput, match="no verdict"):
        connection.call("events", filters=[{"key": "verdict", "value": "x"}])
    assert node.events(last=5) == []
