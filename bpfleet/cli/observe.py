"""`bpfleet observe`: verdicts as they happen on all nodes, in one stream, with names instead of numbers."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bpfleet.cli.explain import PORT_HELP, parse_port
from bpfleet.cli.reach import add_arguments, colour, targets
from bpfleet.errors import BpfleetError, InvalidInput
from bpfleet.observe.names import short_end

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

MERGE_SECONDS = 0.3
"""How long an event of a followed stream is held back, so that an earlier one of another node can come before it."""

_VERDICT_COLOURS = {"allowed": "32", "audited": "33", "denied": "31", "dropped": "31"}
_LAYOUT = "{:<15}  {:<8}  {:<8}  {:<8}  {:<7}  {}"


def register(subparsers: Any) -> None:
    """Add `observe`."""
    parser = subparsers.add_parser(
        "observe",
        help="verdicts as they happen",
        description="Verdicts on new connections, and drops, of all nodes in order of time.",
    )
    add_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new ones until interrupted")
    parser.add_argument("--last", type=int, metavar="N", help="how many of those that are kept (20; with -f 0)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="(%(default)s)")
    parser.add_argument("--node", action="append", default=[], metavar="NAME", help="only of this node; repeatable")
    parser.add_argument("--verdict", choices=("allowed", "audited", "denied", "dropped"), help="only these")
    name = "an address, endpoint, identity, node, or label key=value"
    parser.add_argument("--from", dest="source", metavar="A", help=f"only from {name}")
    parser.add_argument("--to", dest="destination", metavar="B", help="only to such a one")
    parser.add_argument("--with", dest="any_end", metavar="A", help="only from or to such a one")
    parser.add_argument("--port", metavar="80/tcp", help=f"only to such a one: {PORT_HELP}")
    parser.add_argument(
        "--policy", metavar="NAME", help="only those that this policy decided, or one with this label key=value"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bpfleet.transport.fleet import Fleet

    last = options.last if options.last is not None else (0 if options.follow else 20)
    params: dict[str, Any] = {"follow": options.follow, "last": last}
    for key in ("verdict", "source", "destination", "any_end", "policy"):
        if getattr(options, key) is not None:
            params[key] = getattr(options, key)
    if options.port is not None:
        params.update(parse_port(options.port))
    printer = Printer(options.output)
    with Fleet() as fleet:
        chosen = targets(options, fleet)
        for name in options.node:
            if name not in chosen:
                raise InvalidInput(f"there is no node {name}", field="node", remedy=f"Nodes: {', '.join(chosen)}.")
        for warning in unknown_names(fleet, chosen, params):
            print(f"bpfleet: {warning}", file=sys.stderr)
        streams = Streams(
            fleet, [target for name, target in chosen.items() if not options.node or name in options.node]
        )
        try:
            events = streams.follow(params) if options.follow else streams.kept(params, last)
            for event in events:
                printer.show(event)
        except (KeyboardInterrupt, BrokenPipeError):
            streams.stop()
    return 1 if streams.failures else 0


def unknown_names(fleet: Fleet, nodes: Mapping[str, Target], params: Mapping[str, Any]) -> list[str]:
    """What the filters name and no document has. Worth a word and no more: it may come while following, and verdicts of
    a policy that is gone are kept."""
    from bpfleet.model.document import Document, DocumentSet
    from bpfleet.observe.events import unknown_end, unknown_policy

    ends = [params[key] for key in ("source", "destination", "any_end") if key in params]
    if not ends and "policy" not in params:
        return []
    for target in nodes.values():
        # Every member holds all documents; a node that does not answer is told of by its stream.
        with contextlib.suppress(BpfleetError):
            items = [item["document"] for item in fleet.call(target, "documents")["items"]]
            documents = DocumentSet(Document(item["kind"], item["name"], item["spec"]) for item in items)
            found = [unknown_end(documents, end) for end in ends]
            if "policy" in params:
                found.append(unknown_policy(documents, params["policy"]))
            return [warning for warning in found if warning is not None]
    return []


class Streams:
    """The event streams of several nodes as one. Nodes that fail are told and in `failures`; the others go on."""

    def __init__(self, fleet: Fleet, nodes: list[Target]) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._stopping = threading.Event()
        self.failures: dict[str, BpfleetError] = {}

    def stop(self) -> None:
        """What ends from now on ends because we let go of it."""
        self._stopping.set()

    def _failed(self, name: str, error: BpfleetError) -> None:
        if not self._stopping.is_set():
            self.failures[name] = error
            print(f"bpfleet: {error.at(node=name)}", file=sys.stderr)

    def kept(self, params: Mapping[str, Any], last: int) -> Iterator[dict[str, Any]]:
        """The newest `last` events of all nodes together, oldest first, and each node's losses."""
        found: list[dict[str, Any]] = []
        for name, answer in self._fleet.each(self._nodes, lambda node: list(self._stream(node, params))).items():
            if isinstance(answer, BpfleetError):
                self._failed(name, answer)
            else:
                found.extend(answer)
        found.sort(key=lambda event: float(event["time"]))
        return iter(found[-last:] if last else [])

    def follow(self, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of all nodes as they come, until every stream has ended."""
        arrived: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=10_000)
        for node in self._nodes:
            threading.Thread(target=self._feed, args=(node, params, arrived), daemon=True).start()
        return merge(arrived, len(self._nodes), MERGE_SECONDS)

    def _feed(self, node: Target, params: Mapping[str, Any], arrived: queue.Queue[dict[str, Any] | None]) -> None:
        try:
            for event in self._stream(node, params):
                arrived.put(event)
        except BpfleetError as error:
            self._failed(node.name, error)
        finally:
            arrived.put(None)

    def _stream(self, node: Target, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for event in self._fleet.stream(node, "events", params):
            event.setdefault("node", node.name)
            yield event


def merge(arrived: queue.Queue[dict[str, Any] | None], sources: int, hold_seconds: float) -> Iterator[dict[str, Any]]:
    """Events from a queue in order of their time, each held back for a moment; None in the queue ends one source."""
    held: list[tuple[float, int, float, dict[str, Any]]] = []
    order = itertools.count()
    while sources or held:
        now = time.monotonic()
        while held and (held[0][2] <= now or not sources):
            yield heapq.heappop(held)[3]
            now = time.monotonic()
        if not sources:
            continue
        with contextlib.suppress(queue.Empty):
            event = arrived.get(timeout=max(0.0, held[0][2] - now) if held else None)
            if event is None:
                sources -= 1
            else:
                heapq.heappush(held, (float(event["time"]), next(order), time.monotonic() + hold_seconds, event))


class Printer:
    """Writes events to stdout: JSON lines, or aligned columns with a header."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._begun = False

    def show(self, event: Mapping[str, Any]) -> None:
        """One event, at once."""
        if self._output == "json":
            print(json.dumps(event, sort_keys=True), flush=True)
            return
        if not self._begun:
            header = _LAYOUT.format("TIME", "NODE", "VERDICT", "WHERE", "PROTO", "FLOW")
            print(colour(header, "1"))
            self._begun = True
        print(render(event), flush=True)


def render(event: Mapping[str, Any]) -> str:
    """One event as a line: when, where, what, who, and why."""
    seconds = float(event["time"])
    clock = time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}"
    node = str(event.get("node", ""))
    if "lost" in event:
        return _LAYOUT.format(clock, node, "lost", "", "", f"{event['lost']} events overwritten before they were read")
    verdict = str(event["verdict"])
    flow = f"{short_end(event['source'])} -> {short_end(event['destination'])}"
    shown = colour(f"{verdict:<8}", _VERDICT_COLOURS.get(verdict, "0"))
    return _LAYOUT.format(clock, node, shown, event["direction"], event["protocol"], f"{flow}  {why(event)}")


def why(event: Mapping[str, Any]) -> str:
    """The reason in words: the policy's rule, or what the packet path found wrong."""
    if event["verdict"] == "dropped":
        return str(event["reason"]).replace("_", " ")
    if not event.get("policy"):
        return str(event.get("rule", ""))
    said = f' "{event["description"]}"' if event.get("description") else ""
    gone = " (no longer declared)" if event.get("gone") else ""
    return f"{event['policy']} {event['rule']}{said}{gone}"
