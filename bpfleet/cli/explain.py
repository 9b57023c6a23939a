"""`bpfleet explain`: which rule, on which node, decides a flow."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bpfleet.cli.reach import add_arguments, colour, targets, visible
from bpfleet.errors import BpfleetError, InvalidInput, Unreachable
from bpfleet.observe.filters import PORT_HELP, parse_port

_COLOURS = {"allowed": "32", "audited": "33", "denied": "31", "dropped": "31", "mixed": "33", "refused": "31"}
_SHOWN_BACKENDS = 10


def register(subparsers: Any) -> None:
    """Add `explain`."""
    parser = subparsers.add_parser(
        "explain",
        help="which rule decides a flow",
        description="Which rule, on which node, decides the first packet of a flow, in both directions: the egress of "
        "its source and the ingress of its destination. To a service's frontend: for each backend that it may be "
        "given. Taken from what is declared, not from traffic.",
    )
    add_arguments(parser)
    ends = "an endpoint, a node, an address, or world, host, remote-node"
    parser.add_argument("--from", dest="source", required=True, metavar="A", help=ends)
    parser.add_argument("--to", dest="destination", required=True, metavar="B", help="the same")
    parser.add_argument("--port", required=True, metavar="80/tcp", help=PORT_HELP)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="(%(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bpfleet.transport.fleet import Fleet

    params: dict[str, Any] = {"source": options.source, "destination": options.destination, **parse_port(options.port)}
    failures: list[BpfleetError] = []
    with Fleet() as fleet:
        # Every member holds all documents: the first that answers will do.
        for target in targets(options, fleet).values():
            try:
                answer = fleet.call(target, "explain", params)
            except InvalidInput:
                raise
            except BpfleetError as error:
                failures.append(error)
                continue
            print(json.dumps(answer, indent=2, sort_keys=True) if options.output == "json" else render(answer))
            return 0
    raise Unreachable("no node answered: " + "; ".join(str(failure) for failure in failures))


def render(answer: Mapping[str, Any]) -> str:
    """The answer for people."""
    answer = visible(answer)
    verdict = answer["verdict"]
    port = f"/{answer['port']}" if "port" in answer else ""
    if "type" in answer:
        port = f" type {answer['type']} code {answer['code']}"
    flow = f"{_end(answer['source'])} to {_end(answer['destination'])}, {answer['protocol']}{port}"
    lines = [f"{flow}: {colour(verdict, _COLOURS[verdict])}"]
    lines += [f"  {line}" for line in _judged(answer["judged"])]
    if answer.get("backends") == []:
        lines.append("  it has no backends: connections are refused at once")
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for backend in answer.get("backends", ()):
        alike.setdefault((backend["verdict"], *_judged(backend["judged"])), []).append(backend)
    for (verdict, *judged), backends in alike.items():
        shown = ", ".join(f"{_end(one['destination'])} port {one['port']}" for one in backends[:_SHOWN_BACKENDS])
        more = f" and {len(backends) - _SHOWN_BACKENDS} more" if len(backends) > _SHOWN_BACKENDS else ""
        lines += [f"  backend {shown}{more}: {colour(verdict, _COLOURS[verdict])}", *(f"    {line}" for line in judged)]
    return "\n".join(lines)


def _judged(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for entry in entries:
        why = f" by policy {entry['policy']}, {entry['rule']}" if entry.get("policy") else f", {entry['rule']}"
        said = f' "{entry["description"]}"' if entry.get("description") else ""
        place = f"{entry['direction']} of {entry['subject']} on {entry['node']}"
        found.append(f"{place}: {colour(entry['verdict'], _COLOURS[entry['verdict']])}{why}{said}")
    return found


def _end(end: Mapping[str, str]) -> str:
    known = [end.get("identity_name", ""), end.get("node", "")] if end.get("endpoint") else [end["identity_name"]]
    text = ", ".join(part for part in known if part and part != end["name"])
    return f"{end['name']} ({text})" if text else end["name"]
