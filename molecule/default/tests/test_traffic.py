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
OPEN = ("client", "monitor")  # no policy selects them
ALLOWED = {("client", "web"), ("web", "api"), ("batch", "api"), ("api", "db")} | {
    ("monitor", name) for name in ("web", "api", "batch", "db")
}

# Answers connections until its pid file is gone, for a minute at most.
SERVER = """
import os, socket, sys, time
if os.fork(): sys.exit()
os.setsid()
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
listener.settimeout(0.5)
open(sys.argv[3], "w").write(str(os.getpid()))
for descriptor in (0, 1, 2): os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
until = time.monotonic() + 60
while time.monotonic() < until and os.path.exists(sys.argv[3]):
    try:
        listener.accept()[0].close()
    except OSError:
        pass
"""
PROBE = """
import json, socket, sys, threading
answers = {}
def probe(address):
    try:
        socket.create_connection((address, int(sys.argv[1])), 2).close()
        answers[address] = True
    except OSError:
        answers[address] = False
threads = [threading.Thread(target=probe, args=(address,)) for address in sys.argv[2:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(answers))
"""


def fetch(host: Any, address: str) -> Any:
    """Another host of the same inventory."""
    return type(host).get_host(f"ansible://{address}", ansible_inventory=host.backend.ansible_inventory)


def address_of(host: Any, name: str) -> str:
    where, _, last = WORKLOADS[name]
    cidr = fetch(host, where).ansible.get_variables()["workload_cidrs"][0]
    return cidr.removesuffix("0/24") + str(last)


def run_in(host: Any, name: str, program: str, *arguments: object) -> str:
    where, namespace, _ = WORKLOADS[name]
    words = " ".join(str(argument) for argument in arguments)
    command = f"nsenter --net=/run/netns/{namespace} python3 -c '{program}' {words}"
    done = fetch(host, where).run(command)
    assert done.rc == 0, done.stderr
    return str(done.stdout)


@contextmanager
def serving(host: Any, name: str) -> Iterator[str]:
    """Something that answers in this workload."""
    address, mark = address_of(host, name), f"/run/molecule-{name}.pid"
    run_in(host, name, SERVER, address, PORT, mark)
    try:
        yield address
    finally:
        fetch(host, WORKLOADS[name][0]).run(f"rm -f {mark}")


def test_allowed_traffic_passes_and_denied_does_not(host: Any) -> None:
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(host, name)) for name in WORKLOADS}
        for source in WORKLOADS:
            others = {name: address for name, address in addresses.items() if name != source}
            reached = json.loads(run_in(host, source, PROBE, PORT, *others.values()))
            for name, address in others.items():
                expected = name in OPEN or (source, name) in ALLOWED
                assert reached[address] is expected, f"{source} to {name}"
