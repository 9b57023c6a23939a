"""`bpfleet explain`: which rule, on which node, decides a flow."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpfleet.cli.asking import Asked, ask, holding, most_common
from bpfleet.cli.reach import add_arguments, colour, targets, visible
from bpfleet.errors import BpfleetError, HostFailed, InvalidInput, Unreachable
from bpfleet.observe.addresses import as_address
from bpfleet.observe.filters import parse_port

if TYPE_CHECKING:
    from bpfleet.agent.wire import Hello
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

_COLOURS = {"allowed": "32", "audited": "33", "denied": "31", "dropped": "31", "mixed": "33", "refused": "31"}
_SHOWN_BACKENDS = 10
_PORT_HELP = (
    "destination port and protocol (443/tcp, 53/udp; of a port alone TCP is meant), or for ICMP the protocol (icmp, an "
    "echo request) or a message's type or type and code (8/icmp, 3.1/icmp)"
)


def register(subparsers: Any) -> None:
    """Add `explain`."""
    parser = subparsers.add_parser(
        "explain",
        help="which rule decides a flow",
        description="Which rule, on which node, decides the first packet of a flow, in both directions: the egress of "
        "its source and the ingress of its destination. To a service's frontend: for each backend that it may be "
        "given. Taken from what is declared, not from traffic. Where an address is in no document, all nodes are asked "
        "whether it is theirs.",
    )
    add_arguments(parser)
    ends = "an endpoint, a node, an address, or world, host, remote-node"
    parser.add_argument("--from", dest="source", required=True, metavar="A", help=ends)
    parser.add_argument("--to", dest="destination", required=True, metavar="B", help="the same")
    parser.add_argument("--port", required=True, metavar="80/tcp", help=_PORT_HELP)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="(%(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bpfleet.observe.explain import first_packet
    from bpfleet.transport.fleet import Fleet

    asked = {"protocol": "tcp", **parse_port(options.port)}
    # What no packet can be is said before a node is asked.
    first_packet(asked["protocol"], asked.get("port"), (asked.get("type"), asked.get("code")))
    params: dict[str, Any] = {"source": options.source, "destination": options.destination, **asked}
    with Fleet() as fleet:
        answer = decided(fleet, list(targets(options, fleet).values()), params)
    print(json.dumps(answer, indent=2, sort_keys=True) if options.output == "json" else render(answer))
    return 0


def decided(fleet: Fleet, nodes: Sequence[Target], params: Mapping[str, Any]) -> Mapping[str, Any]:
    """wire.ExplainResult of a node that holds what most hold. Who missed a change, and holds other documents, is said.

    Of addresses that no document has each node knows its own only. So where one is asked about, all are asked for
    theirs, and the node decides again with them; who does not answer is said.
    """
    failures: dict[str, BpfleetError] = {}
    addresses = [params[end] for end in ("source", "destination") if as_address(params[end], end) is not None]
    for target in _members(fleet, nodes, failures):
        answer: Mapping[str, Any] = {}
        try:
            answer = fleet.call(target, "explain", params)
            asked = answer.get("undeclared", [])
        except InvalidInput:
            if not addresses:
                raise
            asked = addresses
        except BpfleetError as error:
            failures[target.name] = error
            continue
        if asked:
            others = [node for node in nodes if node != target and node.name not in failures]
            told = fleet.each(others, lambda other: ask(fleet, other, "addresses"))
            failures.update({name: found for name, found in told.items() if isinstance(found, BpfleetError)})
            for name, failure in failures.items():
                text = f"whether {' or '.join(asked)} is an address of {name} is not known: {failure}"
                print(f"bpfleet: {visible(text)}", file=sys.stderr)
            known = {name: found for name, found in told.items() if name not in failures}
            answer = fleet.call(target, "explain", {**params, "known": known})
        return answer
    raise Unreachable("no node answered: " + "; ".join(str(failure) for failure in failures.values()))


def _members(fleet: Fleet, nodes: Sequence[Target], failures: dict[str, BpfleetError]) -> list[Target]:
    """Those that answer soon, first who holds what most hold; the errors of others go to `failures`."""
    asked = Asked(nodes, lambda node: holding(fleet, node))
    hellos: list[tuple[Target, Hello]] = []
    for node, hello in asked.prompt():
        if isinstance(hello, BpfleetError):
            failures[node.name] = hello
        elif hello["node"] is None:  # it must not be taken for a member that knows what is declared
            failures[node.name] = HostFailed("the host is no node, so it cannot tell", node=node.name)
        else:
            hellos.append((node, hello))
    common = most_common(hello["documents_digest"] for _, hello in hellos)
    odd = sorted(node.name for node, hello in hellos if hello["documents_digest"] != common)
    if odd:
        text = f"{', '.join(odd)}: holds other documents than most, and judges by them (see bpfleet status)"
        print(f"bpfleet: {visible(text)}", file=sys.stderr)
    return [node for node, _ in sorted(hellos, key=lambda one: one[1]["documents_digest"] != common)]


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
        if entry.get("reason"):
            why = f" ({entry['reason']}){why}"
        said = f' "{entry["description"]}"' if entry.get("description") else ""
        assumes = f", assuming that {entry['assumes']}" if entry.get("assumes") else ""
        place = f"{entry['direction']} of {entry['subject']} on {entry['node']}"
        found.append(f"{place}: {colour(entry['verdict'], _COLOURS[entry['verdict']])}{why}{said}{assumes}")
    return found


def _end(end: Mapping[str, str]) -> str:
    known = [end.get("identity_name", ""), end.get("node", "")] if end.get("endpoint") else [end["identity_name"]]
    text = ", ".join(part for part in known if part and part != end["name"])
    return f"{end['name']} ({text})" if text else end["name"]
