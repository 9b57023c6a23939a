"""A fleet on the ground: a lab whose hosts are provisioned through Fleet, and a station in every namespace.

Identities go by workload, so that every pair of identities meets on one host and across hosts:
w1 is a `web`, w2 a `db`, w3 a `free` one, on every host. Endpoints are called <identity>-<host's index>.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bpfleet.lab import Lab
from bpfleet.model.document import Document
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Changes, Committed, Outcome, Unchanged
from bpfleet.transport.target import Target
from tests.e2e.traffic.station import QUIET_SECONDS, Asked, Flow, Station
from tests.fleet import document, identity

T = TypeVar("T")

OWNER = "test:traffic"
PORT = 8472
ROLES = {"w1": "web", "w2": "db", "w3": "free"}
LABELS = {"web": {"app": "web", "tier": "front"}, "db": {"app": "db", "tier": "back"}, "free": {"app": "free"}}
OPEN_PORTS = (7001, 7002, 7003)
FAMILIES = (4, 6)
PROMPT_SECONDS = 5.0
FILTER_KEYS = {"source": "from-any", "destination": "to-any", "port": "to-port"}
NO_TCX = bool(os.environ.get("BPFLEET_TEST_NO_TCX"))
"""Whether the hosts' operator wants clsact filters; tools/test.sh runs the traffic tests in either way."""
SWITCH = "/etc/bpfleet/no-tcx"


@dataclass(frozen=True)
class Workload:
    """One workload: where it is and what it is called."""

    host: str
    netns: str
    identity: str
    endpoint: str
    addresses: tuple[str, str]

    @property
    def place(self) -> str:
        return f"{self.host}/{self.netns}"

    def address(self, family: int) -> str:
        return self.addresses[0 if family == 4 else 1]


class Reached(dict[tuple[str, Flow], "str | None"]):
    """(source, flow) -> the address that the other end saw, or None. `again`: how many packets TCP sent again."""

    def __init__(self) -> None:
        super().__init__()
        self.again: dict[tuple[str, Flow], int] = {}


def eventually(read: Callable[[], T], holds: Callable[[T], bool], seconds: float = PROMPT_SECONDS) -> T:
    """Read until it holds; the last reading if it never does (for the assertion that follows)."""
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if holds(value) or time.monotonic() > deadline:
            return value
        time.sleep(0.02)


class Ground:
    """See the module's head. `hosts`: of the lab only these."""

    def __init__(self, lab: Lab, fleet: Fleet, hosts: Sequence[str] = ()) -> None:
        self.lab = lab
        self.fleet = fleet
        self.hosts = {name: host for name, host in lab.hosts.items() if not hosts or name in hosts}
        self.targets = {
            name: Target(name, host.address, private_key_file=str(lab.private_key), host_key=host.host_key)
            for name, host in self.hosts.items()
        }
        self.workloads = {
            f"{ROLES[netns]}-{host.index}": self._workload(name, netns)
            for name, host in self.hosts.items()
            for netns in host.workloads
        }
        self.stations: dict[str, Station] = {}

    def _workload(self, name: str, netns: str) -> Workload:
        host = self.lab.host(name)
        v4, v6 = (cidr.split("/")[0] for cidr in host.workload_cidrs)
        last = int(netns[1:]) + 10
        addresses = (f"{v4.rsplit('.', 1)[0]}.{last}", f"{v6}{last:x}")
        return Workload(name, netns, ROLES[netns], f"{ROLES[netns]}-{host.index}", addresses)

    def start(self) -> None:
        """Install the agent everywhere and start the stations."""
        if NO_TCX:
            self.switch_tcx(False)
        self.fleet.each(self.targets.values(), self.fleet.install)
        places = ["world", *self.hosts]
        self.stations = {place: Station(self.lab, place) for place in places}
        for workload in self.workloads.values():
            self.stations[workload.place] = Station(self.lab, workload.host, workload.netns)
        world = [self.lab.world.address, self.lab.world.address6]
        asked = [
            station.ask("serve", tcp=OPEN_PORTS, udp=OPEN_PORTS, addresses=world if place == "world" else ["::"])
            for place, station in self.stations.items()
        ]
        for one in asked:
            one.get()

    def switch_tcx(self, on: bool) -> None:
        """Turn the operator's switch on every host."""
        script = f"rm {SWITCH}" if on else f"mkdir -p $(dirname {SWITCH}) && touch {SWITCH}"
        for host in self.hosts.values():
            host.run(["sh", "-c", script])

    def close(self) -> None:
        for station in self.stations.values():
            station.close()

    def at(self, endpoint: str) -> Station:
        """The station of a workload, by its endpoint's name."""
        return self.stations[self.workloads[endpoint].place]

    # Documents

    def number(self, name: str) -> int:
        """The identity number of `web`, `db` or `free`."""
        found: int = identity(name, LABELS[name]).spec["number"]
        return found

    def base(self, **routing: Any) -> list[Document]:
        """Cluster, nodes, identities and endpoints; no policy."""
        return [
            document("cluster", "traffic", id=1, routing={"port": PORT, **routing}, members=sorted(self.hosts)),
            *(document("node", host.name, **host.node_spec) for host in self.hosts.values()),
            *(identity(name, labels) for name, labels in LABELS.items()),
            *(self.endpoint(name) for name in self.workloads),
        ]

    def endpoint(self, name: str, **changed: Any) -> Document:
        workload = self.workloads[name]
        spec: dict[str, Any] = {
            "node": workload.host,
            "identity": workload.identity,
            "addresses": list(workload.addresses),
            "attach": {"netns": workload.netns},
        }
        return document("endpoint", name, **{**spec, **changed})

    def item(self, one: Document) -> Any:
        """A document as it is sent: with its owner, and how to reach a node."""
        target = self.targets.get(one.name) if one.kind == "node" else None
        return {
            "document": {"kind": one.kind, "name": one.name, "spec": one.spec},
            "owner": OWNER,
            "metadata": {"ssh": target.to_metadata()} if target else {},
        }

    def transact(
        self, puts: Iterable[Document] = (), deletes: Sequence[str] = (), *, replace_all: bool = False
    ) -> dict[str, Outcome]:
        """One transaction on all nodes; whatever becomes of it."""
        changes = Changes([self.item(one) for one in puts], list(deletes), OWNER, replace_all)
        return self.fleet.transact(self.targets, changes)

    def change(self, *puts: Document, deletes: Sequence[str] = ()) -> dict[str, Outcome]:
        """One transaction on all nodes, which must succeed."""
        return succeeded(self.transact(puts, deletes))

    def declare(self, *documents: Document) -> dict[str, Outcome]:
        """Make these the whole store of every node."""
        return succeeded(self.transact(documents, replace_all=True))

    # What nodes say

    def status(self, host: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.fleet.call(self.targets[host], "status")
        return answer

    def drops(self, host: str) -> Counter[str]:
        """Dropped packets by reason so far. Reasons as in bpf/include/bpfleet/reasons.h: `spoofed_source`."""
        rows = self.status(host)["counters"]
        return Counter({plain_reason(row["reason"]): row["packets"] for row in rows if row["drop"]})

    def silence(self) -> None:
        """End every connection of every station at once, so that none sends anything again later."""
        for asked in [station.ask("silence") for station in self.stations.values()]:
            asked.get()

    def all_drops(self) -> dict[str, Counter[str]]:
        """`drops` of every host."""
        return {host: self.drops(host) for host in self.targets}

    def writes(self) -> dict[str, int]:
        """The mutating calls that each node has made so far."""
        return {host: self.status(host)["writes"] for host in self.targets}

    def events(self, host: str, last: int = 200, **filters: Any) -> list[dict[str, Any]]:
        """The latest kept events of a node, oldest first."""
        asked = [{"key": FILTER_KEYS.get(name, name), "value": str(value)} for name, value in filters.items()]
        stream = self.fleet.stream(self.targets[host], "events", {"follow": False, "last": last, "filters": asked})
        return [event for event in stream if "lost" not in event]

    def history(self) -> Counter[tuple[str, str, str, str, int, str, str]]:
        """Packets of UDP that the nodes' histories have: (host, who sends, who receives, whose policy, port, verdict,
        "packets" or "answer_packets") -> how many."""
        found: Counter[tuple[str, str, str, str, int, str, str]] = Counter()
        for host, target in self.targets.items():
            asked = [{"key": "protocol", "value": "udp"}, {"key": "verdict", "value": "dropped", "not": True}]
            for line in self.fleet.stream(target, "flows", {"filters": asked}):
                if "verdict" in line:
                    ends = (line["source"]["identity_name"], line["destination"]["identity_name"])
                    flow = (host, *ends, line["direction"], line["destination"]["port"], line["verdict"])
                    for way in ("packets", "answer_packets"):
                        found[(*flow, way)] += line[way]
                else:
                    assert not any(counts["packets"] for counts in line["did_not_fit"].values())
        return found

    def explain(self, host: str, source: str, destination: str, protocol: str, port: int | None) -> dict[str, Any]:
        params: dict[str, Any] = {"source": source, "destination": destination, "protocol": protocol}
        if port:
            params["port"] = port
        answer: dict[str, Any] = self.fleet.call(self.targets[host], "explain", params)
        return answer

    # Probes

    def reached(self, flows: Mapping[str, Sequence[Flow]], quiet: float = QUIET_SECONDS) -> Reached:
        """Probe flows from many endpoints (or places) at once."""
        asked: dict[str, Asked] = {
            source: self.stations[self.place(source)].probe(some, quiet) for source, some in flows.items() if some
        }
        found = Reached()
        for source, answer in asked.items():
            for flow, (seen, again) in zip(flows[source], answer.get(), strict=True):
                found[(source, flow)] = seen
                found.again[(source, flow)] = again
        return found

    def place(self, name: str) -> str:
        return self.workloads[name].place if name in self.workloads else name

    def flow(self, protocol: str, destination: str, port: int = 0, family: int = 4) -> Flow:
        """A flow to an endpoint, a host or the world."""
        return Flow(protocol, self.address(destination, family), port)

    def address(self, name: str, family: int) -> str:
        if name in self.workloads:
            return self.workloads[name].address(family)
        where = self.lab.world if name == "world" else self.lab.host(name)
        return where.address if family == 4 else where.address6


def plain_reason(text: str) -> str:
    """A reason's name without its prefix, in lower case."""
    return text.lower().replace("-", "_").replace(" ", "_").removeprefix("reason_")


def succeeded(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """The outcomes, all of which must be Committed or Unchanged."""
    wrong = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, (Committed, Unchanged))}
    assert not wrong, "\n".join(f"{name}: {outcome}" for name, outcome in wrong.items())
    return outcomes
