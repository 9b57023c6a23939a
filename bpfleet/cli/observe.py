"""`bpfleet observe`: verdicts as they happen on all nodes in one stream, and the history of flows."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpfleet.cli.asking import ask
from bpfleet.cli.negation import AddFilter, AddNode, Not, refuse_negation
from bpfleet.cli.observed import OUTPUTS, Printer
from bpfleet.cli.reach import add_arguments, targets, visible
from bpfleet.cli.recording import check_filters, ends_history, read_lines, replayed
from bpfleet.cli.streams import Streams, clock, unkept
from bpfleet.errors import BpfleetError, InvalidInput
from bpfleet.observe.filters import (
    ENDS,
    PORT_HELP,
    Filter,
    check_for_history,
    known_in,
    known_in_lines,
    matcher,
    span_of,
    unknown_names,
)

if TYPE_CHECKING:
    from bpfleet.model.document import DocumentSet
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

_AHEAD_SECONDS = 60.0
"""By how much --since may be still to come: a node's clock may be ahead."""
_DEFAULT_LAST = 20
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_EPILOG = """\
filters:
  Of one kind they are alternatives, of different kinds all must match, and --not
  turns the next one, or the next --node, around. Names are those of the declared
  resources; one that does not exist is said.

examples:
  bpfleet observe --lab -f                              what happens now, everywhere
  bpfleet observe --lab --verdict denied --since 10m    what policy denied lately
  bpfleet observe --lab --to-label app=db --not --from-label app=api
                                                        who else asks for the database
  bpfleet observe --lab --port 443/tcp --policy web     what the policy web did about https
  bpfleet observe --lab --drop-reason spoofed_source    forged packets
  bpfleet observe --lab --history --to-identity db      who ever talked to it, and how much
  bpfleet observe --lab --since 1h -o json > hour.json
  bpfleet observe --input-file hour.json --from-ip 10.0.0.0/8 -o compact
                                                        look at it again, without the nodes
"""


def register(subparsers: Any) -> None:
    """Add `observe`."""
    parser = subparsers.add_parser(
        "observe",
        help="verdicts as they happen, and the history of flows",
        description="Verdicts on new connections, and drops, of all nodes in order of time; with --history the flows "
        "that the nodes have counted, by pair of identities.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    refuse_negation(parser)
    add_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new ones until interrupted")
    parser.add_argument(
        "--history", action="store_true", help="flows with packets, bytes, first and last seen instead of events"
    )
    parser.add_argument(
        "--last",
        type=_count,
        metavar="N",
        help=f"the newest N ({_DEFAULT_LAST}; with -f 0; all with --since, --history)",
    )
    moment = "a span back from now (90s, 10m, 2h, 1d) or a time (13:05, 2026-01-31T13:05:00, seconds since the epoch)"
    parser.add_argument("--since", type=_moment, metavar="WHEN", help=f"not older: {moment}")
    parser.add_argument("--until", type=_moment, metavar="WHEN", help="not newer")
    parser.add_argument("--input-file", metavar="FILE", help="look at what -o json wrote (- for stdin), not at nodes")
    parser.add_argument("-o", "--output", choices=OUTPUTS, help="(table on a terminal, compact elsewhere)")
    parser.add_argument(
        "--node", action=AddNode, default=[], metavar="NAME", help="only what this node judged; repeatable"
    )
    group = parser.add_argument_group("filters, each repeatable")
    group.add_argument("--not", dest="negate", action=Not, nargs=0, help="turn the next filter, or --node, around")
    _add_filters(group)
    parser.set_defaults(run=_run, filters=[], other_nodes=[])


def _add_filters(group: Any) -> None:
    def add(option: str, key: str, metavar: str | None, text: str | None, choices: Any = None) -> None:
        group.add_argument(
            option, dest=f"filter:{key}", action=AddFilter, metavar=metavar, help=text, choices=choices,
            default=argparse.SUPPRESS,
        )  # fmt: skip

    add("--verdict", "verdict", None, "what was decided", ("allowed", "audited", "denied", "dropped"))
    add("--drop-reason", "drop-reason", "REASON", "why it was dropped or denied, as -o json and `status` call it")
    name = "an address, endpoint, identity, node, or label key=value"
    add("--from", "from-any", "A", f"who sends: {name}")
    add("--to", "to-any", "B", "who receives, likewise")
    add("--with", "any", "A", "either of the two")
    kinds = {
        "ip": ("ADDRESS", "an address or CIDR"),
        "port": ("PORT", PORT_HELP),
        "label": ("KEY[=VALUE]", "a label of the identity"),
        "identity": ("NAME", "an identity's name or number; also world, host, remote-node"),
        "endpoint": ("NAME", "an endpoint's name"),
        "node": ("NAME", "the node that an end is on"),
    }
    for kind, (metavar, text) in kinds.items():
        if kind in ENDS:
            add(f"--{kind}", kind, metavar, f"{text}, of either end")
        add(f"--from-{kind}", f"from-{kind}", metavar, None if kind in ENDS else f"{text}: the sender's")
        add(f"--to-{kind}", f"to-{kind}", metavar, None if kind in ENDS else "the receiver's")
    add("--protocol", "protocol", "NAME", "a protocol's name or number")
    add("--direction", "direction", None, "whose policy judged", ("ingress", "egress"))
    add("--policy", "policy", "NAME", "the policy that decided, or a label of it key=value")


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of events")
    return int(text)


def _moment(text: str) -> float:
    try:
        return moment(text, time.time())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 10m, 13:05 or 2026-01-31T13:05:00") from None


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of a span back from now, a time of this day, a date with time, or such seconds."""
    import datetime

    span = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]+)?)([smhdw])", text)
    if span is not None:
        return now - float(span[1]) * _SPANS[span[2]]
    if re.fullmatch(r"[0-9]{9,12}(\.[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", text):
        day = datetime.datetime.fromtimestamp(now).date()
        text = f"{day.isoformat()}T{text if text.index(':') == 2 else f'0{text}'}"
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _run(options: argparse.Namespace) -> int:
    if options.negate:
        raise InvalidInput("--not stands before no filter", field="not", remedy="Write --not --verdict allowed.")
    if options.follow and options.history:
        raise InvalidInput("a history cannot be followed", field="follow", remedy="Leave -f or --history out.")
    since, _ = span_of(vars(options))
    is_of_now = not options.follow and options.input_file is None
    if since is not None and since > time.time() + _AHEAD_SECONDS and is_of_now:
        raise InvalidInput(
            f"--since is still to come: {clock(since)}",
            field="since",
            remedy="Give an earlier time, with its date if it is not of today, or -f to wait for it.",
        )
    matcher(options.filters)  # what no filter can be is said before anything is asked
    if options.history:
        check_for_history(options.filters)
    last = options.last
    if last is None:
        spans = options.history or options.since is not None or options.until is not None or options.input_file
        last = -1 if spans else 0 if options.follow else _DEFAULT_LAST
    printer = Printer(options.output)
    if options.input_file is not None:
        return _replay(options, last, printer)
    params: dict[str, Any] = {"last": last, "filters": [one.to_json() for one in options.filters]}
    params.update({name: getattr(options, name) for name in ("since", "until") if getattr(options, name) is not None})
    return _ask(options, params, printer)


def _ask(options: argparse.Namespace, params: dict[str, Any], printer: Printer) -> int:
    from bpfleet.transport.fleet import Fleet

    with Fleet() as fleet:
        chosen = targets(options, fleet)
        for name in (*options.node, *options.other_nodes):
            if name not in chosen:
                raise InvalidInput(f"there is no node {name}", field="node", remedy=f"Nodes: {', '.join(chosen)}.")
        documents = documents_for(fleet, chosen, options.filters)
        if documents is not None:
            known = known_in(documents)
            if options.history:
                check_for_history(options.filters, known)
            for warning in unknown_names(known, options.filters):
                print(f"bpfleet: {visible(warning)}", file=sys.stderr)
        nodes = [target for name, target in chosen.items() if _is_of(options, name)]
        streams = Streams(fleet, nodes, "flows" if options.history else "events")
        try:
            if options.follow:
                lines = streams.follow({**params, "follow": True, "notices": True})
            else:
                lines = streams.kept({**params, "notices": True}, params["last"])
            for line in lines:
                printer.show(line)
        except (KeyboardInterrupt, BrokenPipeError):
            streams.stop()
    for warning in streams.said(options.since):
        print(f"bpfleet: {warning}", file=sys.stderr)
    return 1 if streams.failures else 0


def _is_of(options: argparse.Namespace, node: Any) -> bool:
    """Whether the options want what this node judged."""
    return (not options.node or node in options.node) and node not in options.other_nodes


def _replay(options: argparse.Namespace, last: int, printer: Printer) -> int:
    """Show what `-o json` wrote, by the same filters."""
    if options.follow:
        raise InvalidInput("a file cannot be followed", field="follow", remedy="Leave -f or --input-file out.")
    if options.lab is not None or options.seed:
        raise InvalidInput(
            "a file and nodes are not looked at together",
            field="input-file",
            remedy="Leave --input-file out, or --lab and --seed.",
        )
    name = options.input_file
    try:
        # What is no UTF-8 is kept, for the line that has it to be named.
        with open(0 if name == "-" else name, encoding="utf-8", errors="surrogateescape", closefd=name != "-") as file:
            lines = list(read_lines(file, name))
    except OSError as problem:
        raise InvalidInput(f"{name} cannot be read: {problem.strerror}", field="input-file") from problem
    told = sum("verdict" in line for line in lines)
    if options.history:
        lines = [line for line in lines if "verdict" not in line or "packets" in line]
    known = known_in_lines(lines)
    asked = [Filter("from-node", node) for node in (*options.node, *options.other_nodes)]
    lines = [line for line in lines if _is_of(options, line.get("node"))]
    check_filters(lines, options.filters, known)
    for warning in unknown_names(known, [*asked, *options.filters]):
        print(f"bpfleet: {visible(f'{name}: {warning}')}", file=sys.stderr)
    for line in replayed(lines, options.filters, options.since, options.until, last):
        printer.show(line)
    for line in filter(ends_history, lines):
        for warning in unkept(str(line.get("node", "a node")), line):
            print(f"bpfleet: {visible(warning)}", file=sys.stderr)
    if not printer.shown:
        print(f"bpfleet: none of the {told} lines of {name} matches", file=sys.stderr)
    return 0


def documents_for(fleet: Fleet, nodes: Mapping[str, Target], filters: list[Filter]) -> DocumentSet | None:
    """What the names in filters may be of; None if no node answers, or there are no filters. What they name and no
    document has is worth a word and no more: it may come while following, and verdicts of a policy that is gone are
    kept."""
    from bpfleet.model.document import Document, DocumentSet

    if not filters:
        return None
    # Every member holds all documents, an emptied one none; a node that does not answer is told of by its stream.
    for _, answer in fleet.as_they_answer(nodes.values(), lambda node: ask(fleet, node, "documents")):
        if not isinstance(answer, BpfleetError) and answer["items"]:
            items = [item["document"] for item in answer["items"]]
            return DocumentSet(Document(item["kind"], item["name"], item["spec"]) for item in items)
    return None
