"""Services by real sockets in lab hosts: who answers, what the process sees, what refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.compile.topology import GATEWAY_IPV4, GATEWAY_IPV6
from bpfleet.lab.hosts import cgroup, enter_command, environment
from bpfleet.model.document import Document
from bpfleet.transport.outcome import Refused
from tests.e2e.traffic.ground import Ground
from tests.e2e.traffic.hops import PROBE, TIME_EXCEEDED
from tests.fleet import document, policy, service

pytest_plugins = ["tests.e2e.traffic.fixtures"]

PORT = 7100
V4, V6 = "10.96.0.1", "fd96::1"
FRONTENDS = [f"{V4}:80", f"{V4}:80/udp", f"[{V6}]:80", f"[{V6}]:80/udp"]
WEB = [{"labels": {"app": "web"}, "port": PORT}]

# Tells its name to whoever connects, or sends a datagram. On the next port it sends back what it gets, until the end.
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
def echo():
    listening = socket.create_server(("::", port + 1), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        with listening.accept()[0] as one:
            while part := one.recv(65536):
                one.sendall(part)
def datagrams():
    while True:
        udp.sendto(name, udp.recvfrom(100)[1])
for work in (streams, datagrams, echo):
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
        one.settimeout(float(sys.argv[2]))
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


# Sends that much, reads all of it back meanwhile, and tells whether it is the same, and who the other end is.
BULK = """
import os, socket, sys, threading
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = os.urandom(size)
with socket.create_connection((address, port), timeout=10) as one:
    def send():
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
    peer = one.getpeername()[0]
    threading.Thread(target=send).start()
    back = bytearray()
    while part := one.recv(65536):
        back += part
    print(peer, bytes(back) == data)
"""


# A device that has checksums finished before it is given a packet, as some taps have it (ETHTOOL_STXCSUM).
CHECKSUMS_OFF = """
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack("II", 0x17, 0))
request = struct.pack("16sQ8x", sys.argv[1].encode(), ctypes.addressof(value))
fcntl.ioctl(socket.socket(), 0x8946, request)
"""


@pytest.fixture(scope="module")
def served(ground: Ground) -> Iterator[Ground]:
    """The ground with a server in every web and db workload, on a host and in the world."""
    servers = []
    try:
        served = {name: one for name, one in ground.workloads.items() if one.identity != "free"}
        for name in (*served, "h1", "world"):
            where = served[name].host if name in served else name
            place = ground.lab.world if where == "world" else ground.lab.host(where)
            netns = served[name].netns if name in served else None
            command = ["/usr/bin/python3", "-S", "-c", SERVER, name, str(PORT)]
            one = place.popen(command, workload=netns, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            servers.append(one)
            assert one.stdout is not None and one.stdout.readline() == b"ready\n"
        yield ground
    finally:
        for one in servers:
            assert one.stdin is not None and one.stdout is not None
            one.stdin.close()
            one.wait(10)
            one.stdout.close()


def run(ground: Ground, source: str, *command: str, outside: bool = False) -> str:
    """What Python says, run at `source`: an endpoint, a host, or "h1/netns". `outside` of the host's cgroup, so that no
    socket is hooked: all there is are packets, as of a virtual machine."""
    place, _, netns = ground.place(source).partition("/")
    host = ground.lab.host(place)
    arguments = ["/usr/bin/python3", "-S", "-c", *command]
    if not outside:
        return str(host.run(arguments, workload=netns or None).stdout)
    entered = enter_command(cgroup(ground.lab.name), arguments, pid=host.pid, workload=netns or None)
    done = subprocess.run(entered, capture_output=True, text=True, timeout=60, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(
    ground: Ground,
    source: str,
    *cases: tuple[str, str] | tuple[str, str, int],
    port: int = 80,
    outside: bool = False,
    patience: float = 8,
) -> list[Any]:
    """What a process gets: cases (how, address[, datagrams]). `patience`: seconds, few where no answer is due."""
    asked = [[case[0], case[1], port, case[2] if len(case) > 2 else 1] for case in cases]
    found: list[Any] = json.loads(run(ground, source, CLIENT, json.dumps(asked), str(patience), outside=outside))
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
            assert {answer[0][0] for answer in answers} == EVERY_WEB, (source, how, address)
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
    assert ask(served, "free-1", ("tcp", V4), ("sendto", V6), patience=1) == ["timeout", "timeout"]
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
    assert ask(served, "free-2", ("tcp", V4), patience=1)[0] != "ECONNREFUSED"


@pytest.mark.parametrize("frontend", ["{node}:80", "{node}:22", "{endpoint}:80", "127.0.0.1:80"])
def test_a_frontend_that_cannot_be_is_refused_everywhere(served: Ground, frontend: str) -> None:
    served.declare(*served.base())
    before = served.writes()
    text = frontend.format(node=served.lab.host("h2").address, endpoint=served.address("web-3", 4))
    outcomes = served.transact([service("bad", [text], WEB)])
    assert all(isinstance(outcome, Refused) for outcome in outcomes.values()), outcomes
    assert served.writes() == before


# What passes no hooked socket is balanced at tc.


def hooked(ground: Ground) -> int:
    """How many sockets were given a backend so far, on all hosts."""
    rows = [row for host in ground.targets for row in ground.status(host)["counters"]]
    return sum(int(row["packets"]) for row in rows if row["reason"] == "service")


@pytest.fixture
def machine(served: Ground) -> Iterator[Document]:
    """An endpoint at a device of its own, as a virtual machine's: named vm, in h1/vm."""
    host = served.lab.host("h1")
    v4, v6 = served.workloads["web-1"].addresses
    addresses = [v4.rsplit(".", 1)[0] + ".77", v6.rsplit(":", 1)[0] + ":77"]
    script = """
    set -e
    ip netns add vm
    ip link add tap-vm type veth peer name eth0 netns vm
    ip link set tap-vm up
    ip -n vm link set lo up
    ip -n vm link set eth0 up
    ip -n vm address add $0/32 dev eth0
    ip -n vm address add $1/128 dev eth0 nodad
    mac=$(cat /sys/class/net/tap-vm/address)
    for gateway in 169.254.7.7 fe80::7; do
        ip -n vm neighbour add $gateway lladdr $mac dev eth0
        ip -n vm route add default via $gateway dev eth0 onlink
    done
    """
    host.run(["sh", "-c", script, *addresses])
    host.run(["/usr/bin/python3", "-S", "-c", CHECKSUMS_OFF, "tap-vm"])
    try:
        attach = {"interface": "tap-vm"}
        yield document("endpoint", "vm", node="h1", identity="free", addresses=addresses, attach=attach)
    finally:
        served.declare(*served.base())
        host.run(["sh", "-c", "ip link delete tap-vm; ip netns delete vm"])


def test_packets_are_balanced_where_no_socket_is_hooked(served: Ground) -> None:
    """Backends here and on other nodes answer, TCP and UDP, IPv4 and IPv6, and always as the frontend."""
    served.declare(*served.base(), shop())
    before = hooked(served)
    found = ask(served, "free-1", *[way for way in WAYS for _ in range(40)], outside=True)
    for index, (how, address) in enumerate(WAYS):
        answers = found[index * 40 : index * 40 + 40]
        assert {answer[0][0] for answer in answers} == EVERY_WEB, (how, address, answers)
        assert all(peers == [[address, 80]] for _, peers in answers), (how, address)
    assert hooked(served) == before, "no hook had a hand in it"


def test_much_data_arrives_whole(served: Ground) -> None:
    """Segments to be cut and checksums to be finished by the device, both ways."""
    for backend in ("web-1", "web-2"):
        one = service("shop", [f"{V4}:80", f"[{V6}]:80"], [
            {"address": address, "port": PORT + 1} for address in served.workloads[backend].addresses
        ])  # fmt: skip
        served.declare(*served.base(), one)
        for address in (V4, V6):
            said = run(served, "free-1", BULK, address, "80", "3000000", outside=True)
            assert said.split() == [address, "True"], backend


def test_a_machine_at_a_device_of_its_own(served: Ground, machine: Document) -> None:
    served.declare(*served.base(), machine, shop())
    ways = [(how, address) for how in ("tcp", "udp", "sendto") for address in (V4, V6)]
    found = ask(served, "h1/vm", *[way for way in ways for _ in range(12)], outside=True)
    assert {answer[0][0] for answer in found} == EVERY_WEB
    assert [peers for _, peers in found] == [[[address, 80]] for _, address in ways for _ in range(12)]
    served.change(service("shop", FRONTENDS, []))
    before = served.drops("h1")["service_no_backend"]
    ways = [(how, address) for how in ("tcp", "udp") for address in (V4, V6)]
    assert ask(served, "h1/vm", *ways, outside=True) == ["ECONNREFUSED"] * len(ways)
    assert served.drops("h1")["service_no_backend"] == before + len(ways)


def test_a_machine_hears_whose_hops_run_out(served: Ground, machine: Document) -> None:
    """About what it sent: to a frontend, or an address itself; by way of its device, where policy lets nothing in."""
    closed = policy("closed", {"app": "free"}, ingress=[])
    served.declare(*served.base(), machine, closed, shop({"labels": {"app": "web"}, "port": PORT}))
    asked, want = [], []
    for family, frontend, gateway in ((4, V4, GATEWAY_IPV4), (6, V6, GATEWAY_IPV6)):
        for address, port in ((frontend, 80), *((served.address(one, family), PORT) for one in ("web-1", "web-2"))):
            asked.append(["udp", address, port, 1])
            want.append([*TIME_EXCEEDED[family], gateway])
    before = served.drops("h1")["hop_limit"]
    assert json.loads(run(served, "h1/vm", PROBE, json.dumps(asked), "5", outside=True)) == want
    assert served.drops("h1")["hop_limit"] == before + len(asked)


def test_policy_judges_the_backend_of_packets(served: Ground) -> None:
    closed = policy("web-from-db", {"app": "web"}, ingress=[{"peers": [{"labels": {"app": "db"}}]}])
    served.declare(*served.base(), shop(), closed)
    assert ask(served, "free-1", ("tcp", V4), ("sendto", V6), outside=True, patience=1) == ["timeout", "timeout"]
    found = ask(served, "db-1", ("tcp", V4), ("sendto", V6), outside=True)
    assert [answer[0][0] in EVERY_WEB for answer in found] == [True, True]


def test_packets_to_no_backend_are_refused_at_once(served: Ground) -> None:
    served.declare(*served.base(), service("shop", FRONTENDS, [{"labels": {"app": "nobody"}}]))
    before = served.drops("h1")["service_no_backend"]
    ways = [(how, address) for how in ("tcp", "udp") for address in (V4, V6, f"::ffff:{V4}")]
    assert ask(served, "free-1", *ways, outside=True) == ["ECONNREFUSED"] * len(ways)
    assert served.drops("h1")["service_no_backend"] == before + len(ways)
    assert "service_no_backend" in {event.get("reason") for event in served.events("h1", last=20)}


def test_errors_reach_the_client_as_the_frontends(served: Ground) -> None:
    """A port that nobody listens on, here and on another node: a reset by TCP, an ICMP error for UDP."""
    for backend in ("web-1", "web-2"):
        closed = [{"address": address, "port": PORT + 9} for address in served.workloads[backend].addresses]
        served.declare(*served.base(), service("shop", FRONTENDS, closed))
        ways = [(how, address) for how in ("tcp", "udp") for address in (V4, V6)]
        assert ask(served, "free-1", *ways, outside=True) == ["ECONNREFUSED"] * len(ways), backend


def test_a_client_is_never_its_own_backend_by_packets(served: Ground) -> None:
    """By its socket it reaches itself; its packets would come back to it from its own address, which no stack takes."""
    served.declare(*served.base(), shop())
    found = ask(served, "web-1", *[("tcp", V4)] * 16, *[("sendto", V6)] * 16, outside=True)
    assert {answer[0][0] for answer in found} == EVERY_WEB - {"web-1"}
    assert {answer[0][0] for answer in ask(served, "web-1", *[("tcp", V4)] * 24)} == EVERY_WEB


def test_listed_backends_beyond_the_fleet(served: Ground) -> None:
    """The node itself and the world (whose datagrams come from another of its addresses) answer through the stack."""
    for place, protocols in (("h1", ("tcp", "udp")), ("world", ("tcp",))):
        listed = [{"address": served.address(place, family), "port": PORT} for family in (4, 6)]
        served.declare(*served.base(), service("shop", FRONTENDS, listed))
        ways = [(how, address) for how in protocols for address in (V4, V6)]
        want = [[[place], [[address, 80]]] for _, address in ways]
        assert ask(served, "free-1", *ways, outside=True) == want
