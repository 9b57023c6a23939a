"""Traffic between the quickstart's workloads: what is allowed passes, what is denied does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

testinfra_hosts = ["ansible://h1"]  # one does it for all: the matrix is the cluster's

PORT = 80
# endpoint -> (host, namespace); the addresses end in 10 and 20
WORKLOADS = {
    "web": ("h1", "w1", 10),
    "client": ("h1", "w2", 20),
    "api": ("h2", "w1", 10),
    "batch": ("h2", "w2", 20),
    "db": ("h3", "w1", 10),
    "monitor": ("h3", "w2", 20),
}
SERVICE = ("10.96.0.10", "fd00:bf:96::10")  # of api
OPEN = ("client", "monitor")  # no policy selects them
ALLOWED = {("client", "web"), ("web", "api"), ("batch", "api"), ("api", "db")} | {
    ("monitor", name) for name in ("web", "api", "batch", "db")
}

# Answers connections and datagrams at the addresses, from the end of the command until it is killed, a minute at most.
SERVER = """
import os, select, socket, sys, time
port, mark = int(sys.argv[1]), sys.argv[2]
taken = {}
for address in sys.argv[3:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    taken[socket.create_server((address, port), family=family)] = True
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    taken[datagrams] = False
if pid := os.fork():
    open(mark, "w").write(str(pid))
    sys.exit()
os.setsid()
for descriptor in (0, 1, 2): os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
until = time.monotonic() + 60
while time.monotonic() < until:
    for one in select.select(list(taken), [], [], 0.5)[0]:
        try:
            if taken[one]:
                one.accept()[0].close()
            else:
                one.sendto(*one.recvfrom(64))
        except OSError:
            pass
"""
# Whether something answers, by "protocol address"; all at once.
PROBE = """
import json, socket, sys, threading, time
port, answers = int(sys.argv[1]), {}
def tcp(address):
    socket.create_connection((address, port), 2).close()
def udp(address):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((address, port))
        one.settimeout(0.5)
        for attempt in range(4):
            one.send(b"?")
            try:
                return one.recv(64)
            except TimeoutError:
                pass
        raise TimeoutError
def probe(how, address):
    try:
        how(address)
        answers[how.__name__ + " " + address] = True
    except OSError:
        answers[how.__name__ + " " + address] = False
threads = [threading.Thread(target=probe, args=(how, to)) for to in sys.argv[2:] for how in (tcp, udp)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(answers))
"""


def fetch(host: Any, address: str) -> Any:
    """Another host of the same inventory."""
    return type(host).get_host(f"ansible://{address}", ansible_inventory=host.backend.ansible_inventory)


def addresses_of(host: Any, name: str) -> list[str]:
    """IPv4 and IPv6."""
    where, _, last = WORKLOADS[name]
    four, six = fetch(host, where).ansible.get_variables()["workload_cidrs"]
    return [four.removesuffix("0/24") + str(last), six.removesuffix("/64") + str(last)]


def run_in(host: Any, name: str, program: str, *arguments: object) -> str:
    where, namespace, _ = WORKLOADS[name]
    words = " ".join(str(argument) for argument in arguments)
    command = f"nsenter --net=/run/netns/{namespace} python3 -c '{program}' {words}"
    done = fetch(host, where).run(command)
    assert done.rc == 0, done.stderr
    return str(done.stdout)


@contextmanager
def serving(host: Any, name: str) -> Iterator[list[str]]:
    """Something that answers in this workload."""
    addresses, mark = addresses_of(host, name), f"/run/molecule-{name}.pid"
    run_in(host, name, SERVER, PORT, mark, *addresses)
    try:
        yield addresses
    finally:
        end = f"kill $(cat {mark}); while kill -0 $(cat {mark}); do sleep 0.05; done; rm {mark}"
        fetch(host, WORKLOADS[name][0]).run(end)


def expected(source: str, name: str, protocol: str) -> bool:
    """As the policies say. What they name, they name for TCP; where a policy selects, nothing else passes."""
    return name in OPEN or (protocol == "tcp" and (source, name) in ALLOWED)


def test_allowed_traffic_passes_and_denied_does_not(host: Any) -> None:
    """TCP and UDP, by either family."""
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(host, name)) for name in WORKLOADS}
        for source in WORKLOADS:
            others = {name: addresses[name] for name in WORKLOADS if name != source}
            asked = [address for pair in others.values() for address in pair]
            assert json.loads(run_in(host, source, PROBE, PORT, *asked)) == {
                f"{protocol} {address}": expected(source, name, protocol)
                for name, pair in others.items()
                for address in pair
                for protocol in ("tcp", "udp")
            }, source


def test_the_service_is_judged_as_its_backend(host: Any) -> None:
    with serving(host, "api"):
        for source in ("web", "db"):
            reached = json.loads(run_in(host, source, PROBE, PORT, *SERVICE))
            assert {reached[f"tcp {address}"] for address in SERVICE} == {(source, "api") in ALLOWED}, source
