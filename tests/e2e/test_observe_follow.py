"""`bpfleet observe -f` over several real nodes: one order, the newest of all first, and a node that goes away."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic.ground import Ground
from tests.e2e.traffic.station import FOLDER

pytestmark = [pytest.mark.root, pytest.mark.lab]


@pytest.fixture
def ground(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("follow")
    with Lab.up(f"follow-{os.getpid()}", 3, 1, directory=folder, share=[FOLDER], guarded=True) as lab, Fleet() as fleet:
        one = Ground(lab, fleet)
        try:
            one.start()
            one.declare(*one.base())
            yield one
        finally:
            one.close()


class Observing:
    """A following `observe`, and its lines as they come."""

    def __init__(self, lab: Lab, *options: str) -> None:
        command = [sys.executable, "-m", "bpfleet.cli.main", "observe", "--lab", lab.name, "-f", "-o", "json"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(json.loads(line))

    def next(self, seconds: float = 20) -> dict[str, Any]:
        return self._lines.get(timeout=seconds)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            said = errors.read()
        self._reader.join()
        return self.process.wait(30), said


def ask(ground: Ground, endpoint: str, other: str) -> None:
    one = ground.workloads[endpoint]
    command = ["ping", "-c", "1", "-W", "1", ground.address(other, 4)]
    assert ground.lab.host(one.host).run(command, workload=one.netns, check=False) is not None


def test_nodes_are_one_stream_and_one_may_go_away(ground: Ground) -> None:
    for endpoint, other in (("web-1", "web-2"), ("web-2", "web-3"), ("web-3", "web-1")):
        ask(ground, endpoint, other)
    observing = Observing(ground.lab, "--last", "4", "--protocol", "icmp")
    try:
        found = [observing.next() for _ in range(4)]
        # Both ends judged the last two.
        assert [(event["node"], event["direction"]) for event in found] == [
            ("h2", "egress"), ("h3", "ingress"), ("h3", "egress"), ("h1", "ingress"),
        ]  # fmt: skip
        ask(ground, "web-2", "web-1")
        found += [observing.next() for _ in range(2)]
        assert [event["node"] for event in found[4:]] == ["h2", "h1"]
        ground.lab.power_off("h2")
        ask(ground, "web-1", "web-3")
        found += [observing.next() for _ in range(2)]
        assert [event["node"] for event in found[6:]] == ["h1", "h3"]
        assert found == sorted(found, key=lambda event: float(event["time"]))
    finally:
        code, said = observing.end()
    assert (code, said.count("bpfleet:")) == (1, 1), said
    assert "node h2: no answer to events: the SSH connection was lost: " in said and "lost: ." not in said
