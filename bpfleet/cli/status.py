"""`bpfleet status`: what every node holds, whether they agree, what is loaded and what was dropped."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpfleet.cli.asking import most_common
from bpfleet.cli.reach import add_arguments, colour, table, targets, visible
from bpfleet.errors import BpfleetError
from bpfleet.model.resources import RESOURCES

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.target import Target

_SHOWN = 10
_BAR = 20
_HEALTHY = ("ok", "waiting")
"""A document may wait for good, such as an endpoint whose virtual machine is off: shown, but no failure."""


def register(subparsers: Any) -> None:
    """Add `status`."""
    parser = subparsers.add_parser(
        "status",
        help="what the nodes hold, and whether they agree",
        description="What every node holds, whether the nodes agree, what is loaded, and what was dropped. "
        "Exit code 1 if a node does not answer, differs, or needs attention. A node that is well, but has "
        "documents that wait (for another document, or for their workload), is `waiting`, which is no failure.",
    )
    add_arguments(parser)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="(%(default)s)")
    parser.add_argument("--maps", action="store_true", help="a gauge for every map: entries used, of how many")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bpfleet.transport.fleet import Fleet

    with Fleet() as fleet:
        found = fleet.each(targets(options, fleet).values(), lambda target: status_of(fleet, target))
    report = summarise(found)
    shown = visible(report)
    text = render(shown) + (f"\n\n{gauges(shown)}" if options.maps else "")
    print(json.dumps(report, indent=2, sort_keys=True) if options.output == "json" else text)
    return 0 if report["healthy"] else 1


def status_of(fleet: Fleet, target: Target) -> Mapping[str, Any]:
    """wire.StatusResult. Nothing is written on a host that holds nothing of bpfleet; a node that was provisioned
    by another version gets this one's agent beside its own."""
    from bpfleet.agent.journal import empty_digest

    if fleet.installed(target) is not None:
        answer: Mapping[str, Any] = fleet.call(target, "status")
        return answer
    lists = ("programs", "drift", "maps", "counters", "waiting", "services", "warnings", "fitness")
    nothing: dict[str, Any] = {
        "node": None,
        "cluster": None,
        "generation": 0,
        "documents": {},
        "pending": None,
        "writes": 0,
    }
    return {**nothing, "documents_digest": empty_digest(), "state_digest": None, **{name: [] for name in lists}}


def summarise(found: Mapping[str, Mapping[str, Any] | BpfleetError]) -> dict[str, Any]:
    """{"nodes": {name: status | {"error"}}, "digest", "healthy"}; `digest` is that of most nodes."""
    common = most_common(
        str(answer["documents_digest"])
        for answer in found.values()
        if not isinstance(answer, BpfleetError) and answer.get("generation")
    )
    nodes: dict[str, Any] = {}
    for name, answer in sorted(found.items()):
        if isinstance(answer, BpfleetError):
            nodes[name] = {"reachable": False, "state": "unreachable", "error": answer.to_wire()}
        else:
            agrees = answer.get("documents_digest") == common
            nodes[name] = {**answer, "reachable": True, "agrees": agrees, "state": _state(answer, agrees)}
    return {
        "nodes": nodes,
        "digest": common,
        "healthy": bool(nodes) and all(node["state"] in _HEALTHY for node in nodes.values()),
    }


def _state(answer: Mapping[str, Any], agrees: bool) -> str:
    """One word for a node, the most urgent first."""
    if answer["fitness"]:
        return "unfit"
    if answer["pending"]:
        return "pending"
    if not answer["generation"]:
        return "empty"
    if answer["drift"]:
        return "drifted"
    if not agrees:
        return "differs"
    return "waiting" if answer["waiting"] else "ok"


def render(report: Mapping[str, Any]) -> str:
    """The report for people."""
    header = ["NODE", "STATE", "GENERATION", "DIGEST", "DOCUMENTS", "PROGRAMS", "DROPPED", "WAITING", "FULLEST MAP"]
    rows = [_row(name, node) for name, node in report["nodes"].items()]
    lines = table(header, rows).splitlines()
    shown = [colour(lines[0], "1")]
    for line, node in zip(lines[1:], report["nodes"].values(), strict=True):
        shown.append(line if node["state"] == "ok" else colour(line, "31" if not node["reachable"] else "33"))
    for name, node in report["nodes"].items():
        shown.extend(f"{name}: {line}" for line in _remarks(node))
    shown.extend(_services(report))
    return "\n".join(shown)


def _row(name: str, node: Mapping[str, Any]) -> list[str]:
    if not node["reachable"]:
        return [name, node["state"], *["-"] * 7]
    kinds = node["documents"]
    dropped = sum(counter["packets"] for counter in node["counters"] if counter["drop"])
    return [
        name,
        node["state"],
        str(node["generation"]),
        node["documents_digest"][:12] + ("" if node["agrees"] else " differs"),
        f"{sum(kinds.values())}" + (f" ({_counts(kinds)})" if kinds else ""),
        str(len(node["programs"])),
        str(dropped),
        str(len(node["waiting"])),
        _fullest(node["maps"]),
    ]


def _fullest(maps: Sequence[Mapping[str, Any]]) -> str:
    """The map with the least room left, of those that hold anything."""
    held = [entry for entry in maps if entry["used"]]
    one = max(held, key=lambda entry: entry["pressure"], default=None)
    return "-" if one is None else f"{one['map']} {_percent(one)} ({one['used']}/{one['limit']})"


def _percent(entry: Mapping[str, Any]) -> str:
    return f"{entry['pressure']:.0%}" if entry["pressure"] >= 0.01 or not entry["used"] else "<1%"


def gauges(report: Mapping[str, Any]) -> str:
    """How full every map of every node is, for people."""
    rows, levels = [], []
    for name, node in report["nodes"].items():
        for entry in node["maps"] if node["reachable"] else ():
            bar = "#" * max(math.ceil(entry["pressure"] * _BAR), int(entry["used"] > 0))
            fields = (str(entry["used"]), str(entry["limit"]), f"[{bar:<{_BAR}}] {_percent(entry)}", entry["level"])
            rows.append([name, entry["map"], *fields, entry.get("declared_by", "-")])
            levels.append(entry["level"])
    lines = table(["NODE", "MAP", "USED", "LIMIT", "PRESSURE", "LEVEL", "DECLARED BY"], rows).splitlines()
    shown = [colour(lines[0], "1")]
    for line, level in zip(lines[1:], levels, strict=True):
        shown.append(line if level == "ok" else colour(line, "31" if level == "critical" else "33"))
    return "\n".join(shown)


def _pressed(maps: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark on each map that is nearly full."""
    lines = []
    for entry in maps:
        if entry["level"] == "ok":
            continue
        then = "the longest idle are forgotten" if entry["evicts"] else "a change that needs more is refused"
        of = ""
        if "room" in entry:
            then, of = "packets of new flows are counted together", f" of flows that were {entry['room']}"
        more = f"; raise {entry['declared_by']} of the cluster" if "declared_by" in entry else ""
        used = f"{entry['used']} of {entry['limit']} entries"
        if entry["evicts"] and entry["used"] < entry["limit"]:
            used += ", of which each CPU keeps some free"
        lines.append(f"map {entry['map']} is {_percent(entry)} full{of} ({used}; beyond that {then}){more}")
    return lines


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kinds[kind]} {kind}" for kind in RESOURCES if kinds.get(kind))


def _remarks(node: Mapping[str, Any]) -> list[str]:
    """What a row has no room for."""
    if not node["reachable"]:
        return [str(BpfleetError.from_wire(node["error"]))]
    lines = [str(BpfleetError.from_wire(error)) for error in node["fitness"]]
    pending = node["pending"]
    if pending:
        left = f"applied; {pending['seconds_left']:.0f} s left to confirm it"
        doing = {"applying": "being applied", "putting back": "being put back"}.get(pending["state"], left)
        lines.append(f"transaction {pending['transaction']} of {pending['owner']} is {doing}")
    lines += _some("drifted: the next apply would", node["drift"])
    lines += _some("waiting:", [f"{item['document']}: {item['reason']}" for item in node["waiting"]])
    lines += _some("warning:", node["warnings"])
    lines += _pressed(node["maps"])
    for counter in node["counters"]:
        if counter["drop"]:
            lines.append(f"dropped {counter['packets']} packets: {counter['reason'].replace('_', ' ')}")
    return lines


def _services(report: Mapping[str, Any]) -> list[str]:
    """Frontends and how many backends each has: the same on all nodes that agree, so one of them is asked."""
    agreeing = (node for node in report["nodes"].values() if node["reachable"] and node["agrees"])
    services: list[Any] = next((node["services"] for node in agreeing if "services" in node), [])
    lines = []
    for service in services:
        for frontend in service["frontends"]:
            count = frontend["backends"]
            backends = "no backends: connections are refused" if not count else f"{count} backend{'s'[: count > 1]}"
            lines.append(f"{service['name']} {frontend['frontend']}: {backends}")
    return _some("service", lines)


def _some(prefix: str, items: list[str]) -> list[str]:
    more = [f"{prefix} … and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"{prefix} {item}" for item in items[:_SHOWN]] + more
