"""Policies that select nodes, applied over SSH: what processes of a host reach, and what nobody can cut."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from bpfleet.model.document import Document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Committed, Refused
from tests.e2e.traffic.ground import Ground, eventually
from tests.fleet import document, node_policy

pytest_plugins = ["tests.e2e.traffic.fixtures"]

SERVICES = (("tcp", 7001), ("udp", 7001), ("icmp", 0))
PEERS = {"web-1": "web", "db-1": "db", "web-2": "web", "db-2": "db", "h2": "remote-node", "world": "world"}
"""What each of them is to the host h1: endpoints of its own and of the other node, the other node, the world."""


def base(ground: Ground) -> list[Document]:
    """As Ground.base, the nodes labelled with their names."""
    documents = ground.base()
    return [
        document("node", one.name, **{**one.spec, "labels": {"name": one.name}}) if one.kind == "node" else one
        for one in documents
    ]


def who_reaches(ground: Ground, direction: str, services: Iterable[tuple[str, int]] = SERVICES) -> dict[str, set[Any]]:
    """Of each peer, what it reaches at h1 (ingress), or what of it h1's processes reach (egress)."""
    asked: dict[str, list[Any]] = {}
    names: dict[tuple[str, Any], tuple[str, str]] = {}
    for peer in PEERS:
        source, destination = (peer, "h1") if direction == "ingress" else ("h1", peer)
        for protocol, port in services:
            # A node has one address in the cluster, an IPv4 one here; by others it is not known to endpoints elsewhere.
            for family in (4,) if peer in ("web-2", "db-2") else (4, 6):
                flow = ground.flow(protocol, destination, port, family)
                asked.setdefault(source, []).append(flow)
                names[(source, flow)] = (peer, f"{protocol}{family}")
    found: dict[str, set[Any]] = {peer: set() for peer in PEERS}
    for key, seen in ground.reached(asked).items():
        if seen is not None:
            peer, what = names[key]
            found[peer].add(what)
    return found


def everything(peer: str) -> set[str]:
    """All that can be reached of or by a peer."""
    families = (4,) if peer in ("web-2", "db-2") else (4, 6)
    return {f"{protocol}{family}" for protocol, _ in SERVICES for family in families}


def test_by_identity_protocol_and_port(ground: Ground) -> None:
    web_tcp = {"peers": [{"labels": {"app": "web"}}], "ports": [{"protocol": "tcp", "port": 7001}]}
    node_any = {"peers": [{"entity": "remote-node"}]}
    ground.declare(*base(ground), node_policy("in", {"name": "h1"}, ingress=[web_tcp, node_any]))
    found = who_reaches(ground, "ingress")
    assert found["web-1"] == {"tcp4", "tcp6"} and found["web-2"] == {"tcp4"}
    assert found["h2"] == {"tcp4", "udp4", "icmp4"}, "over IPv6 the other node is not known: that is the world"
    assert not found["db-1"] and not found["db-2"] and not found["world"]
    # Nothing is closed outward: answers to what the host itself asks come back.
    assert who_reaches(ground, "egress") == {peer: everything(peer) for peer in PEERS}
    events = ground.events("h1", last=500, verdict="denied", policy="in")
    assert {"host"} == {one["destination"]["identity_name"] for one in events}
    assert {"world", "db"} <= {one["source"]["identity_name"] for one in events}


def test_what_a_host_sends(ground: Ground) -> None:
    rules = [{"peers": [{"labels": {"app": "db"}}]}, {"peers": [{"entity": "world"}], "ports": [{"protocol": "udp"}]}]
    ground.declare(*base(ground), node_policy("out", {"name": "h1"}, egress=rules))
    found = who_reaches(ground, "egress")
    assert found["db-1"] == everything("db-1") and found["db-2"] == everything("db-2")
    assert found["world"] == {"udp4", "udp6"}
    assert not found["web-1"] and not found["web-2"] and found["h2"] == {"udp6"}
    # Nothing is closed inward, and answers leave.
    assert who_reaches(ground, "ingress") == {peer: everything(peer) for peer in PEERS}


def test_closed_to_all_and_opened_again(ground: Ground) -> None:
    """SSH stays, also for new connections; endpoints keep talking through the tunnel; removal opens all again."""
    closed = node_policy("closed", {}, ingress=[], egress=[])
    # The confirmation of this very change comes over a new SSH connection to a closed host.
    outcomes = ground.declare(*base(ground), closed)
    for outcome in outcomes.values():
        assert isinstance(outcome, Committed)
    warning = "policy/closed, ingress: would close tcp port 22 of node h1, a failsafe port: it stays open"
    assert warning in ground.status("h1")["warnings"]
    nothing: dict[str, set[Any]] = {peer: set() for peer in PEERS}
    assert who_reaches(ground, "ingress") == nothing
    assert who_reaches(ground, "egress") == nothing
    with Fleet() as another:  # a controller that has no connection yet
        for target in ground.targets.values():
            assert another.call(target, "status")["drift"] == []
    flows = {"web-1": [ground.flow(protocol, "db-2", port, family) for protocol, port in SERVICES for family in (4, 6)]}
    assert [flow for flow, seen in ground.reached(flows).items() if seen is None] == []
    ground.change(deletes=["policy/closed"])
    assert who_reaches(ground, "ingress") == {peer: everything(peer) for peer in PEERS}
    assert who_reaches(ground, "egress") == {peer: everything(peer) for peer in PEERS}


@pytest.mark.parametrize("ports", [[], [{"port": 2222}]])
def test_a_policy_that_would_cut_ssh_is_refused(ground: Ground, ports: list[Any]) -> None:
    ground.declare(*base(ground))
    before = ground.writes()
    documents = [
        document("cluster", one.name, **{**one.spec, "failsafe_ports": ports}) if one.kind == "cluster" else one
        for one in base(ground)
    ]
    outcomes = ground.transact([*documents, node_policy("closed", {"name": "h1"}, ingress=[])], replace_all=True)
    refused = outcomes["h1"]
    assert isinstance(refused, Refused)
    (refusal,) = refused.refusals
    assert refusal.document == "policy/closed"
    assert "tcp port 22 of node h1" in str(refusal.error) and "failsafe_ports" in str(refusal.error)
    assert ground.writes() == before


AGAIN_SECONDS = 60.0
"""Until TCP sends again what got no answer, with pauses that double."""

# Sends a number each tenth of a second to whoever connects, and takes what comes; ends with its standard input.
TALKER = """
import socket, sys, threading, time
listening = socket.create_server(("", int(sys.argv[1])))
def talk():
    one = listening.accept()[0]
    number = 0
    while True:
        one.sendall(number.to_bytes(4, "big"))
        number += 1
        time.sleep(0.1)
threading.Thread(target=talk, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
# Reads only. On a line of its standard input it says how many numbers came, all in order; on "send" it sends first.
LISTENER = """
import socket, sys, threading
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
one.settimeout(None)
count = 0
def read():
    global count
    with one.makefile("rb") as numbers:
        while part := numbers.read(4):
            assert int.from_bytes(part, "big") == count
            count += 1
threading.Thread(target=read, daemon=True).start()
for line in sys.stdin:
    if line == "send\\n":
        one.sendall(b"x")
    print(count, flush=True)
"""


@contextlib.contextmanager
def listening(ground: Ground) -> Iterator[Callable[[str], int]]:
    """A process of h1 that is connected to a talker in the world, which was there first."""
    pipe, python, port = subprocess.PIPE, ["/usr/bin/python3", "-S", "-c"], "7200"
    talker = ground.lab.world.popen([*python, TALKER, port], stdin=pipe, stdout=pipe, text=True)
    assert talker.stdin is not None and talker.stdout is not None and talker.stdout.readline() == "ready\n"
    listener = ground.lab.host("h1").popen(
        [*python, LISTENER, ground.lab.world.address, port], stdin=pipe, stdout=pipe, text=True
    )
    assert listener.stdin is not None and listener.stdout is not None

    def count(what: str = "") -> int:
        assert listener.stdin is not None and listener.stdout is not None
        listener.stdin.write(f"{what}\n")
        listener.stdin.flush()
        return int(listener.stdout.readline())

    try:
        yield count
    finally:
        for one in (listener, talker):
            assert one.stdin is not None and one.stdout is not None
            one.stdin.close()
            one.wait(10)
            one.stdout.close()


def test_a_connection_of_the_host_that_is_older_than_its_policy(ground: Ground) -> None:
    """Opened by the host before any policy selected it, there is no record of it. Inward its packets are judged as new
    ones, and where ingress does not allow them they are dropped, until the host sends: its egress lets that pass, and
    from then on the rest are answers. TCP loses nothing of it."""
    ground.declare(*base(ground))
    with listening(ground) as count:
        assert eventually(count, lambda heard: heard > 5) > 5
        ground.declare(*base(ground), node_policy("closed", {"name": "h1"}, ingress=[]))
        dropped = ground.drops("h1")["denied_by_default"]
        stalled = eventually(
            lambda: ground.drops("h1")["denied_by_default"], lambda drops: drops > dropped + 2, AGAIN_SECONDS
        )
        assert stalled > dropped + 2, "what is sent again and again"
        before = count()
        assert count("send") == before
        assert eventually(count, lambda heard: heard > before + 20, AGAIN_SECONDS) > before + 20
