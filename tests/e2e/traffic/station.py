"""The controller's end of a station (program.py): every command of it as a method."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpfleet.lab import Lab

FOLDER = str(Path(__file__).parent)
"""To be shared with the lab's hosts: what runs there is read from here."""

_ANSWER_SECONDS = 30.0
QUIET_SECONDS = 0.8
PATIENT_SECONDS = 3.0  # where an answer is expected: waiting costs nothing then


class Flow(NamedTuple):
    """One probe: `protocol` is tcp, udp or icmp (ICMPv6 for an IPv6 address); `port` 0 for icmp."""

    protocol: str
    address: str
    port: int = 0


class Asked:
    """An answer that is under way."""

    def __init__(self) -> None:
        self._box: queue.Queue[dict[str, Any]] = queue.Queue()

    def put(self, message: dict[str, Any]) -> None:
        self._box.put(message)

    def get(self, seconds: float = _ANSWER_SECONDS) -> Any:
        message = self._box.get(timeout=seconds)
        if "error" in message:
            raise RuntimeError(message["error"])
        return message["answer"]


class Station:
    """A process in one network namespace that sends and receives on command. Commands may overlap."""

    def __init__(self, lab: Lab, place: str, workload: str | None = None) -> None:
        self.name = f"{place}/{workload}" if workload else place
        where = lab.world if place == "world" else lab.host(place)
        self._process: subprocess.Popen[str] = where.popen(
            ["/usr/bin/python3", "-E", "-s", "-S", "-B", f"{FOLDER}/program.py"],
            workload=workload,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._numbers = itertools.count()
        self._asked: dict[int, Asked] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, do: str, **arguments: Any) -> Asked:
        """Send a command; the answer is fetched by .get()."""
        number = next(self._numbers)
        asked = self._asked[number] = Asked()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return asked

    def do(self, do: str, **arguments: Any) -> Any:
        """Send a command and wait for its answer."""
        return self.ask(do, **arguments).get()

    def probe(self, flows: Sequence[Flow], quiet: float = QUIET_SECONDS) -> Asked:
        """Probe all at once; the answer holds for each, in order: the address that the other end saw, or None when
        nothing came back until nothing at all did for `quiet` seconds; and how often TCP asked again."""
        return self.ask("probe", flows=[flow._asdict() for flow in flows], quiet=quiet)

    def reaches(self, flow: Flow, quiet: float = PATIENT_SECONDS) -> bool:
        """Whether one flow gets an answer."""
        ((seen, _),) = self.probe([flow], quiet).get()
        return seen is not None and not seen.startswith("refused")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            self._asked.pop(message["id"]).put(message)
        for asked in list(self._asked.values()):
            asked.put({"error": f"station {self.name} ended"})
