"""Services by real sockets in lab hosts: who answers, what the process sees, what refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.model.document import Document
from bpfleet.transport.outcome import Refused
from tests.e2e.traffic.ground import Ground
from tests.fleet import policy, service

pytest_plugins = ["tests.e2e.traffic.fixtures"]

PORT = 7100
V4, V6 = "10.96.0.1", "fd96::1"
FRONTENDS = [f"{V4}:80", f"{V4}:80/udp", f"[{V6}]:80", f"[{V6}]:80/udp"]
WEB = [{"labels": {"app": "web"}, "port": PORT}]

# Tells its name to whoever connects, or sends a datagram.
SERVER = """
import socket, sys, threading
name, port = sys.argv[1].encode(), int(sys.argv[2])
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", port))
def streams():
    while True:
        one = tcp.accept()[0]
        one.sendall(name)
        one.close()
def datagrams():
    while True:
        udp.sendto(name, udp.recvfrom(100)[1])
for work in (streams, datagrams):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""

# Each case [how, address, port, datagrams] -> [answers, what the process is told of the other end] or an error's name.
CLIENT = """
import errno, json, socket, sys
def ask(how, address, port, times):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if how == "tcp" else socket.SOCK_DGRAM) as one:
        one.settimeout(1.5)
        if how in ("tcp", "udp"):
            one.connect((address, port))
        answers, peers = [], set()
        for _ in range(times):
            if how == "sendto":
                one.sendto(b"?", (address, port))
                answer, peer = one.recvfrom(100)
            else:
                if how == "udp":
                    one.send(b"?")
                answer, peer = one.recv(100), one.getpeername()
            answers.append(answer.decode())
            peers.add((peer[0], peer[1]))
        return answers, sorted(peers)
found = []
for case in json.loads(sys.argv[1]):
    try:
        found.append(ask(*case))
    except TimeoutError:
        found.append("timeout")
    except OSError as error:
        found.append(errno.errorcode.get(error.errno, str(error)))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(ground: Ground) -> Iterator[Ground]:
    """The ground with a server in every web and db workload."""
    servers = []
    try:
        for name, workload in ground.workloads.items():
            if workload.identity == "free":
                continue
            command = ["/usr/bin/python3", "-S", "-c", SERVER, name, str(PORT)]
            one = ground.lab.host(workload.host).popen(
                command, workload=workload.netns, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            servers.append(one)
            assert one.stdout is not None and one.stdout.readline() == b"ready\n"
        yield ground
    finally:
        for one in servers:
            assert one.stdin is not None and one.stdout is not None
            one.stdin.close()
            one.wait(10)
            one.stdout.close()


def ask(ground: Ground, source: str, *cases: tuple[str, str] | tuple[str, str, int], port: int = 80) -> list[Any]:
    """What a process at `source` (an endpoint or a host) gets: cases (how, address[, datagrams])."""
    workload = ground.workloads.get(source)
    host = ground.lab.host(workload.host if workload else source)
    asked = [[case[0], case[1], port, case[2] if len(case) > 2 else 1] for case in cases]
    command = ["/usr/bin/python3", "-S", "-c", CLIENT, json.dumps(asked)]
    found: list[Any] = json.loads(host.run(command, workload=workload.netns if workload else None).stdout)
    return found


def shop(*backends: dict[str, Any]) -> Document:
    return service("shop", FRONTENDS, list(backends) or WEB)


WAYS = [(how, address) for how in ("tcp", "udp", "sendto") for address in (V4, V6, f"::ffff:{V4}")]
EVERY_WEB = {"web-1", "web-2", "web-3"}


def test_every_way_to_a_service(served: Ground) -> None:
    """TCP, connected and unconnected UDP, IPv4, IPv6 and mapped: all backends answer, here and on other hosts, and the
    process is told the frontend."""
    served.declare(*served.base(), shop())
    for source, ways in (("free-1", WAYS), ("db-2", WAYS), ("h1", [way for way in WAYS if way[1] != V6])):
        found = ask(served, source, *[way for way in ways for _ in range(20)])
        for index, (how, address) in enumerate(ways):
            answers = found[index * 20 : index * 20 + 20]
            assert {answer[0][0] for answer in answers if answer != "timeout"} == EVERY_WEB, (source, how, address)
            assert all(peers == [[address, 80]] for _, peers in answers), (source, how, address)
    services = served.status("h1")["services"]
    assert {(one["frontend"], one["backends"]) for one in services[0]["frontends"]} == {
        (f"{V4}:80/tcp", 3), (f"{V4}:80/udp", 3), (f"[{V6}]:80/tcp", 3), (f"[{V6}]:80/udp", 3)
    }  # fmt: skip
    assert served.status("h1")["drift"] == []


def test_a_socket_stays_with_its_backend(served: Ground) -> None:
    served.declare(*served.base(), shop())
    for answers, peers in ask(served, "free-1", *[("sendto", address, 8) for address in (V4, V6) for _ in range(4)]):
        assert len(set(answers)) == 1 and len(peers) == 1


def test_what_is_no_frontend_is_left_alone(served: Ground) -> None:
    served.declare(*served.base(), shop())
    direct = served.address("db-2", 4)
    assert ask(served, "free-1", ("tcp", direct), ("sendto", direct), port=PORT) == [
        [["db-2"], [[direct, PORT]]], [["db-2"], [[direct, PORT]]]
    ]  # fmt: skip
    assert ask(served, "free-1", ("tcp", direct)) == ["ECONNREFUSED"], "by the workload's own kernel: nothing listens"


def test_policy_judges_the_backend(served: Ground) -> None:
    closed = policy("web-from-db", {"app": "web"}, ingress=[{"peers": [{"labels": {"app": "db"}}]}])
    served.declare(*served.base(), shop(), closed)
    assert ask(served, "free-1", ("tcp", V4), ("sendto", V6)) == ["timeout", "timeout"]
    assert [answer[0][0] in EVERY_WEB for answer in ask(served, "db-1", ("tcp", V4), ("sendto", V6))] == [True, True]
    events = [event for host in served.targets for event in served.events(host, verdict="denied", policy="web-from-db")]
    assert {event["destination"]["identity_name"] for event in events} == {"web"}
    assert {event["destination"]["port"] for event in events} == {PORT}


def test_without_backends_connections_are_refused_at_once(served: Ground) -> None:
    served.declare(*served.base(), service("shop", FRONTENDS, [{"labels": {"app": "nobody"}}]))
    before = served.drops("h1")["service_no_backend"]
    ways = [(how, address) for how in ("tcp", "udp", "sendto") for address in (V4, V6, f"::ffff:{V4}")]
    assert ask(served, "free-1", *ways) == ["ECONNREFUSED"] * len(ways)
    assert served.drops("h1")["service_no_backend"] == before + len(ways)
    assert "service_no_backend" in {event.get("reason") for event in served.events("h1", last=20)}
    served.change(shop())
    assert ask(served, "free-1", ("tcp", V4))[0][0][0] in EVERY_WEB


def test_a_backend_that_goes_gets_nothing_more(served: Ground) -> None:
    served.declare(*served.base(), shop())
    served.change(deletes=["endpoint/web-2", "endpoint/web-3"])
    found = ask(served, "free-1", *[("tcp", V4)] * 10, *[("sendto", V6)] * 10)
    assert {answer[0][0] for answer in found} == {"web-1"}


def test_the_last_service_takes_the_hooks_along(served: Ground) -> None:
    served.declare(*served.base(), shop())
    assert [one for one in served.status("h2")["programs"] if one["device"] == "/"]
    served.change(deletes=["service/shop"])
    assert not [one for one in served.status("h2")["programs"] if one["device"] == "/"]
    assert ask(served, "free-2", ("tcp", V4))[0] != "ECONNREFUSED"


@pytest.mark.parametrize("frontend", ["{node}:80", "{node}:22", "{endpoint}:80", "127.0.0.1:80"])
def test_a_frontend_that_cannot_be_is_refused_everywhere(served: Ground, frontend: str) -> None:
    served.declare(*served.base())
    before = served.writes()
    text = frontend.format(node=served.lab.host("h2").address, endpoint=served.address("web-3", 4))
    outcomes = served.transact([service("bad", [text], WEB)])
    assert all(isinstance(outcome, Refused) for outcome in outcomes.values()), outcomes
    assert served.writes() == before
