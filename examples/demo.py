#!/usr/bin/env python3
"""The quickstart in a lab, with traffic: who reaches whom, who is denied, and by which policy and rule.

Brings up a lab of three hosts with two workloads each (or finds it), runs `pulumi up` on examples/quickstart-pulumi,
with its state in the lab's folder, lets every workload call every other, prints the matrix, changes one policy, and
does it again. The lab stays up. Run again, it starts over from the same policy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bpfleet.lab import Lab  # noqa: E402

EXAMPLE = ROOT / "examples" / "quickstart-pulumi"
BPFLEET = ROOT / ".venv" / "bin" / "bpfleet"
STACK = "demo"
FAMILIES = ("address", "address6")

# Answers each TCP connection on the given addresses and port, until its standard input ends.
SERVER = """
import socket, sys, threading
port, *addresses = sys.argv[1:]
def serve(listener):
    while True:
        listener.accept()[0].close()
for address in addresses:
    listener = socket.create_server((address, int(port)), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""

# Connects to every address at once and prints which answered, as JSON.
PROBE = """
import json, socket, sys, threading
port, seconds, *addresses = sys.argv[1:]
answers = {}
def probe(address):
    try:
        socket.create_connection((address, int(port)), float(seconds)).close()
        answers[address] = True
    except OSError:
        answers[address] = False
threads = [threading.Thread(target=probe, args=(address,)) for address in addresses]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(answers))
"""

Workloads = Mapping[str, Mapping[str, str]]


class Pulumi:
    """The Pulumi CLI on the example, for one lab, with its state in the lab's folder."""

    def __init__(self, lab: Lab, stack: str) -> None:
        self.lab = lab
        self.stack = stack
        state = lab.scratch / "pulumi"  # goes with the lab
        folder = subprocess.run(
            [ROOT / "tools" / "pulumi" / "ensure.sh"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        state.mkdir(parents=True, exist_ok=True)
        self.env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
        }

    def run(self, *arguments: str) -> None:
        subprocess.run(["pulumi", *arguments, "--stack", self.stack], cwd=EXAMPLE, env=self.env, check=True)

    def select(self) -> None:
        """Make the stack if it is not there, and configure it for the lab."""
        subprocess.run(["pulumi", "stack", "select", "--create", self.stack], cwd=EXAMPLE, env=self.env, check=True)
        subprocess.run(
            [sys.executable, EXAMPLE / "configure.py", self.lab.directory / "lab.json"],
            env=self.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def outputs(self) -> dict[str, Any]:
        done = subprocess.run(
            ["pulumi", "stack", "output", "--json", "--stack", self.stack],
            cwd=EXAMPLE,
            env=self.env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        outputs: dict[str, Any] = json.loads(done.stdout)
        return outputs


@contextmanager
def serving(lab: Lab, workloads: Workloads, port: int) -> Iterator[None]:
    """Something that answers in every workload."""
    with ExitStack() as stack:
        for where in workloads.values():
            addresses = [where[family] for family in FAMILIES]
            server = stack.enter_context(
                lab.host(where["host"]).popen(
                    ["python3", "-c", SERVER, str(port), *addresses],
                    workload=where["workload"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert server.stdin is not None and server.stdout is not None
            stack.callback(server.stdin.close)
            if server.stdout.readline() != b"ready\n":
                raise SystemExit(f"demo: no server could be started in {where['endpoint']}")
        yield


def probe(
    lab: Lab, workloads: Workloads, port: int, services: Mapping[str, Mapping[str, str]] | None = None
) -> dict[tuple[str, str], bool]:
    """(from, to) -> whether TCP connects, over IPv4 and IPv6 alike. Services are called by every workload."""
    reached: dict[tuple[str, str], bool] = {}
    running = {}
    called: Workloads = {**workloads, **(services or {})}
    for name, where in workloads.items():
        others = [other[family] for peer, other in called.items() if peer != name for family in FAMILIES]
        running[name] = lab.host(where["host"]).popen(
            ["python3", "-c", PROBE, str(port), "1.5", *others], workload=where["workload"], stdout=subprocess.PIPE
        )
    for name, process in running.items():
        out, _ = process.communicate(timeout=60)
        answers = json.loads(out)
        for peer, other in called.items():
            if peer == name:
                continue
            both = {answers[other[family]] for family in FAMILIES}
            if len(both) != 1:
                raise SystemExit(f"demo: {name} to {peer}: IPv4 and IPv6 disagree: {answers}")
            reached[name, peer] = both.pop()
    return reached


def verdicts(since: float) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(from endpoint, to endpoint) -> the deciding verdict since then, from the nodes' own records.

    Both ends judge; a denial decides, wherever it was.
    """
    done = subprocess.run(
        [BPFLEET, "observe", "--lab", "--last", "1000", "--output", "json"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event.get("protocol") != "tcp" or event.get("time", 0) < since:
            continue
        ends = (event["source"].get("endpoint", ""), event["destination"].get("endpoint", ""))
        if ends not in found or found[ends]["verdict"] == "allowed" or event["verdict"] != "allowed":
            found[ends] = event
    return found


def matrix(
    workloads: Workloads,
    reached: Mapping[tuple[str, str], bool],
    told: Mapping[tuple[str, str], Mapping[str, Any]],
    services: Mapping[str, Mapping[str, str]],
    before: Mapping[tuple[str, str], bool] | None = None,
) -> str:
    """The table for people, then one line for each denial: who, whom, policy, rule. A changed cell is marked *.

    A service has a column. What decides about it is what decides about its backend, and is told of that.
    """
    ends = {name: where["endpoint"] for name, where in workloads.items()}
    ends.update({name: ends[service["backend"]] for name, service in services.items()})
    names = list(ends)
    width = max(len(name) for name in names) + 2
    lines = ["from \\ to".ljust(width + 6) + "".join(name.ljust(width) for name in names)]
    denials = []
    for source in workloads:
        cells = []
        for destination in names:
            if source == destination:
                cells.append("-".ljust(width))
                continue
            passed = reached[source, destination]
            mark = "*" if before is not None and before[source, destination] != passed else ""
            cells.append((("yes" if passed else "DENIED") + mark).ljust(width))
            if not passed:
                event = told.get((ends[source], ends[destination]))
                if event is None:
                    raise SystemExit(f"demo: {source} to {destination} did not pass, and no event says why")
                denials.append(
                    f"  {source:<{width}}-> {destination:<{width}}policy {event['policy']}: {event['rule']}"
                    f" ({event['direction']}, seen on {event['node']})"
                )
        lines.append(source.ljust(width + 6) + "".join(cells).rstrip())
    return "\n".join([*lines, "", "denied by:", *denials])


def judged_as_their_backends(
    reached: Mapping[tuple[str, str], bool], workloads: Workloads, services: Mapping[str, Mapping[str, str]]
) -> None:
    """Policy judges the backend, so a service is reached by whoever reaches that, and by the backend itself."""
    for name, service in services.items():
        for client in workloads:
            wanted = client == service["backend"] or reached[client, service["backend"]]
            if reached[client, name] != wanted:
                raise SystemExit(f"demo: {client} should reach {name} exactly if it reaches {service['backend']}")


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def main() -> int:
    say("a lab of three hosts with two workloads each")
    lab = Lab.up(directory=ROOT / ".lab", nodes=3, workloads=2, progress=print)
    pulumi = Pulumi(lab, STACK)

    say("pulumi up: agent and objects onto the hosts, then identities, endpoints and policies")
    pulumi.select()
    pulumi.run("config", "set", "batchToDb", "deny")
    pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
    outputs = pulumi.outputs()
    workloads, port = outputs["workloads"], int(outputs["port"])
    services = {outputs["service"]["name"]: outputs["service"]}

    with serving(lab, workloads, port):
        named = ", ".join(f"{name} in front of {service['backend']}" for name, service in services.items())
        say(f"every workload calls every other and the service {named}: TCP port {port}, IPv4 and IPv6")
        began = time.time()
        first = probe(lab, workloads, port, services)
        judged_as_their_backends(first, workloads, services)
        print(matrix(workloads, first, verdicts(began), services))

        say("one policy changed (batch may use the database), and pulumi up again")
        pulumi.run("config", "set", "batchToDb", "allow")
        pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
        began = time.time()
        second = probe(lab, workloads, port, services)
        judged_as_their_backends(second, workloads, services)
        print(matrix(workloads, second, verdicts(began), services, before=first))

    changed = {ends for ends in first if first[ends] != second[ends]}
    if changed != {("batch", "db")}:
        raise SystemExit(f"demo: one cell should have changed, but these did: {sorted(changed)}")
    frontend = outputs["service"]["address"]
    print(
        "\nThe lab is up. Try:"
        "\n  .venv/bin/bpfleet explain --lab --from client-1 --to db-1 --port 80/tcp      which rule decides, and why"
        f"\n  .venv/bin/bpfleet explain --lab --from web-1 --to {frontend} --port 80/tcp    the same of a service"
        "\n  .venv/bin/bpfleet observe --lab --follow                                   verdicts as they happen"
        "\n  make demo-down                                                             remove it all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
