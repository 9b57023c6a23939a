"""How long a changed policy takes to be enforced on all of 20 hosts with whom sessions are open.

On each host one workload sends to another, a datagram every few milliseconds, and a policy lets it pass or not. The
policy is changed to and fro by one transaction on all hosts; enforced is the change on a host with the first datagram
that is judged by it (traffic.c probe), which stands well before the transaction's end, as confirmations follow.
Beside it a cold start: a controller that has no connection yet, to the same hosts.

    python -m bench.policy_change
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, ContextManager, Dict, Iterator, List, Mapping, Tuple

from bench.policy_beds import TRAFFIC, deliver, host_cidr
from bench.report import Measurement, table
from bench.survival_fleet import CLUSTER, Documents, change, document, host_target, identity, node
from bpfleet.lab import Host, Lab
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Target

HOSTS = 20
CHANGES, COLD = 24, 3
PORT = 7_000
EVERY_MS = 5
PATIENCE_SECONDS = 30.0


class Probe:
    """A workload that sends to another of its host, and when what it sent was last judged otherwise."""

    def __init__(self, host: Host) -> None:
        self.host = host.name
        words = [TRAFFIC, "probe", "/run/netns/w1", "/run/netns/w2", _address(host, 2), str(PORT), str(EVERY_MS)]
        self._process = host.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._changed = threading.Condition()
        self._at: Dict[bool, int] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def await_turn(self, passes: bool, since: int) -> int:
        """When the first datagram sent after `since` passed, or did not. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._at.get(passes, 0) > since, PATIENCE_SECONDS):
                raise TimeoutError(f"{self.host}: the change was not enforced within {PATIENCE_SECONDS:.0f} s")
            return self._at[passes]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sign, _, at = line.partition(" ")
            with self._changed:
                self._at[sign == "+"] = int(at)
                self._changed.notify_all()


def measure() -> List[Measurement]:
    """policy_change_20_nodes_p99_seconds."""
    name = f"bench-change-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        with Lab.up(name, HOSTS, 2, directory=Path(directory), guarded=True) as lab:
            deliver(lab)
            targets = {host.name: host_target(lab, host) for host in lab.hosts.values()}
            with Fleet() as fleet:
                change(fleet, targets, _documents(lab))
                with _probes(lab) as probes:
                    warm, whole = _changes(lambda: contextlib.nullcontext(fleet), targets, probes, CHANGES)
                    cold, _ = _changes(Fleet, targets, probes, COLD)
    hosts = sorted(one for each in warm for one in each)
    return [
        Measurement(
            "policy_change_20_nodes_p99_seconds",
            round(_percentile([max(each) for each in warm], 0.99), 3),
            "s",
            at_most=1.0,
            sides={
                "median of the last host": statistics.median(max(each) for each in warm),
                "median of all hosts": statistics.median(hosts),
                "p99 of all hosts": _percentile(hosts, 0.99),
                "median until confirmed": statistics.median(whole),
                "cold, worst last host": max(max(each) for each in cold),
                "load average": os.getloadavg()[0],
            },
            note=f"from the call to the first packet judged anew on the last of {HOSTS} hosts; {CHANGES} changes",
        )
    ]


def _changes(
    controllers: Callable[[], ContextManager[Fleet]],
    targets: Mapping[str, Target],
    probes: List[Probe],
    count: int,
) -> Tuple[List[List[float]], List[float]]:
    """Seconds until enforced by host, and until confirmed everywhere, of so many changes."""
    enforced: List[List[float]] = []
    confirmed: List[float] = []
    for number in range(count):
        passes = bool(number % 2)
        with controllers() as fleet:
            began = time.monotonic_ns()
            change(fleet, targets, [_policy(passes)])
            confirmed.append((time.monotonic_ns() - began) / 1e9)
            enforced.append([(probe.await_turn(passes, began) - began) / 1e9 for probe in probes])
    return enforced, confirmed


@contextlib.contextmanager
def _probes(lab: Lab) -> Iterator[List[Probe]]:
    probes = [Probe(host) for host in lab.hosts.values()]
    try:
        yield probes
    finally:
        for probe in probes:
            probe.close()


def _documents(lab: Lab) -> Documents:
    hosts = list(lab.hosts.values())
    return [
        document("cluster", CLUSTER, id=1, members=sorted(lab.hosts)),
        *(node(host) for host in hosts),
        *(identity(app, {"app": app}) for app in ("client", "server")),
        *(
            document(
                "endpoint",
                f"{host.name}-{app}",
                node=host.name,
                identity=app,
                addresses=[_address(host, number)],
                attach={"netns": f"w{number}"},
            )
            for host in hosts
            for number, app in ((1, "client"), (2, "server"))
        ),
        _policy(True),
    ]


def _policy(passes: bool) -> Dict[str, object]:
    rule = {
        "peers": [{"labels": {"app": "client"}}],
        "ports": [{"protocol": "udp", "port": PORT if passes else PORT + 1}],
    }
    return document("policy", "turned", selector={"app": "server"}, ingress=[rule])


def _address(host: Host, number: int) -> str:
    return f"{host_cidr(host).partition('/')[0].rpartition('.')[0]}.{9 + number}"


def _percentile(values: List[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    print(table(measure()))
