"""What several nodes tell, as one: kept lines together, or their streams while they go on, and what is missing."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bpfleet.cli.asking import Asked, holding
from bpfleet.cli.merging import Arrived, merge
from bpfleet.cli.observed import lost
from bpfleet.cli.recording import newest, when
from bpfleet.errors import BpfleetError

if TYPE_CHECKING:
    from bpfleet.agent.wire import Hello
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

MERGE_SECONDS = 0.3
"""How long an event of a followed stream is held back, so that an earlier one of another node can come before it."""
SKEW_SECONDS = 1.0
"""By how much a node's clock may differ from this machine's without a word about it."""


class Streams:
    """The streams of several nodes as one. Nodes that fail are told and in `failures`; the others go on."""

    def __init__(self, fleet: Fleet, nodes: list[Target], method: str = "events") -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._method = method
        self._stopping = threading.Event()
        self.failures: dict[str, BpfleetError] = {}
        self.lost: dict[str, int] = {}
        self._notices: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def stop(self) -> None:
        """What ends from now on ends because we let go of it."""
        self._stopping.set()

    def said(self, since: float | None) -> list[str]:
        """What there is to know about the answers: losses, clocks, and what is no longer kept."""
        found = [f"in all, {lost({'node': node, 'lost': count})}" for node, count in sorted(self.lost.items())]
        for node, (arrived, notice) in sorted(self._notices.items()):
            ahead = float(notice["clock"]) - arrived
            if abs(ahead) > SKEW_SECONDS:
                way = "ahead of" if ahead > 0 else "behind"
                found.append(f"the clock of {node} is {abs(ahead):.1f} s {way} this machine's: so are its times")
            kept_from = notice.get("kept_from")
            if since is not None and kept_from is not None and kept_from > since:
                found.append(
                    f"{node} no longer keeps all events from before {clock(kept_from)}: see --history for what it "
                    "counted"
                )
            found.extend(unkept(node, notice))
        return found

    def _failed(self, name: str, error: BpfleetError) -> None:
        if not self._stopping.is_set():
            self.failures[name] = error
            print(f"bpfleet: {error.at(node=name)}", file=sys.stderr)

    def kept(self, params: Mapping[str, Any], last: int) -> Iterator[dict[str, Any]]:
        """The newest `last` lines of all nodes together (all, if negative), oldest first, and each node's losses.

        Who cannot be reached soon is said; if it is reached after all, what it adds to those comes behind.
        """
        asked = Asked(self._nodes, lambda node: holding(self._fleet, node))
        found = self._told_by(asked.prompt(), params)
        yield from newest(found, last)
        if asked.waiting:
            print(f"bpfleet: not answered yet: {', '.join(sorted(asked.waiting))}", file=sys.stderr)
        for one in asked.late():
            more = self._told_by([one], params)
            found = sorted((*found, *more), key=when)
            added = set(map(id, more))
            yield from (line for line in newest(found, last) if id(line) in added)

    def _told_by(
        self, nodes: Iterable[tuple[Target, Hello | BpfleetError]], params: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """All that the nodes which were reached have kept, in order of time."""
        reached: list[Target] = []
        for node, hello in nodes:
            if isinstance(hello, BpfleetError):
                self._failed(node.name, hello)
            else:
                reached.append(node)
        found: list[dict[str, Any]] = []
        for name, answer in self._fleet.each(reached, lambda node: list(self._stream(node, params))).items():
            if isinstance(answer, BpfleetError):
                self._failed(name, answer)
            else:
                found.extend(answer)
        return sorted(found, key=when)

    def follow(self, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The newest `last` of what all nodes together have kept, then events as they come, until all streams end."""
        arrived: Arrived = queue.Queue(maxsize=10_000)
        for node in self._nodes:
            threading.Thread(target=self._feed, args=(node, params, arrived), daemon=True).start()
        return merge(arrived, len(self._nodes), MERGE_SECONDS, params["last"])

    def _feed(self, node: Target, params: Mapping[str, Any], arrived: Arrived) -> None:
        try:
            holding(self._fleet, node)
            for event in self._told(node, params):
                arrived.put(event)
        except BpfleetError as error:
            self._failed(node.name, error)
        finally:
            arrived.put({"node": node.name, "clock": 0.0})  # what never began is not waited for
            arrived.put(None)

    def _stream(self, node: Target, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return (line for line in self._told(node, params) if "clock" not in line or "kept" in line)

    def _told(self, node: Target, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for line in self._fleet.stream(node, self._method, params):
            line.setdefault("node", node.name)
            if "clock" in line:
                self._notices[node.name] = (time.time(), line)
            if "lost" in line:
                self.lost[node.name] = self.lost.get(node.name, 0) + int(line["lost"])
            yield line


def unkept(node: str, notice: Mapping[str, Any]) -> Iterator[str]:
    """What the line that ends a node's history says it does not hold."""
    for kind, counts in notice.get("did_not_fit", {}).items():
        packets, size = (counts[name] + counts[f"answer_{name}"] for name in ("packets", "bytes"))
        if packets:
            yield (
                f"{node}: {packets} packets ({size} bytes) that were {kind} are in no flow above: they did not fit "
                f"among the {notice['limit']} that the history keeps"
            )
    for kind, count in notice.get("retired", {}).items():
        if count:
            yield f"{node}: {count} idle flows that were {kind} gave their place to new ones"


def clock(seconds: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
