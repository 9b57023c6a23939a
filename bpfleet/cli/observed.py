"""How `bpfleet observe` shows events and flows: a table, one compact line each, indented fields, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from bpfleet.cli.reach import colour, visible
from bpfleet.observe.names import short_end

OUTPUTS = ("table", "compact", "dict", "json")
_COLOURS = {"allowed": "32", "audited": "33", "denied": "31", "dropped": "31"}
_EVENT = "{:<15}  {:<8}  {:<8}  {:<8}  {:<7}  {}"
_FLOW = "{:<14}  {:<8}  {:<8}  {:<8}  {:<12}  {:>8}  {:>8}  {:>8}  {:>8}  {}"
_EVENT_HEADER = ("TIME", "NODE", "VERDICT", "WHERE", "PROTO", "FLOW")
_FLOW_HEADER = ("LAST SEEN", "NODE", "VERDICT", "WHERE", "PROTO", "PACKETS", "BYTES", "ANSWERS", "BYTES", "FLOW")
_FIELDS = (
    *("time", "first_seen", "last_seen", "node", "direction", "hook", "verdict", "reason"),
    *("policy", "policy_labels", "rule", "rule_id", "description", "changed", "gone"),
    *("source", "destination", "endpoint", "address", "port", "identity_name", "identity", "labels"),
    *("protocol", "icmp", "type", "code", "length", "packets", "bytes", "answer_packets", "answer_bytes"),
)
"""Of an event or flow, of its ends and what else lies in it."""
_RANKS = {name: rank for rank, name in enumerate(_FIELDS)}


class Printer:
    """Writes lines of a stream to stdout as they come. What a node says of itself goes to stderr, but in JSON."""

    def __init__(self, output: str | None) -> None:
        """None: a table on a terminal, compact lines elsewhere."""
        self._output = output or ("table" if sys.stdout.isatty() else "compact")
        self._begun = False
        self.shown = 0

    def show(self, line: Mapping[str, Any]) -> None:
        """One event or flow, at once."""
        is_said = "verdict" in line
        self.shown += is_said
        if self._output == "json":
            print(json.dumps(line, sort_keys=True), flush=True)
            return
        line = visible(line)
        if not is_said:
            if "lost" in line:
                print(f"bpfleet: {lost(line)}", file=sys.stderr)
        elif self._output == "table":
            if not self._begun:
                print(colour(header(line), "1"))
                self._begun = True
            print(render(line), flush=True)
        elif self._output == "compact":
            print(compact(line), flush=True)
        else:
            print(fields(line), flush=True)


def header(line: Mapping[str, Any]) -> str:
    """The table's first line, for events or flows."""
    return _FLOW.format(*_FLOW_HEADER) if "packets" in line else _EVENT.format(*_EVENT_HEADER)


def render(line: Mapping[str, Any]) -> str:
    """One event or flow as a line of the table: when, where, what, who, and why."""
    verdict = str(line["verdict"])
    shown = colour(f"{verdict:<8}", _COLOURS.get(verdict, "0"))
    node = str(line.get("node", ""))
    if "packets" not in line:
        return _EVENT.format(_clock(line["time"]), node, shown, line["direction"], line["protocol"], _told(line))
    return _FLOW.format(
        time.strftime("%m-%d %H:%M:%S", time.localtime(line["last_seen"])),
        node,
        shown,
        line["direction"],
        _protocol(line),
        _short(line["packets"], 1000),
        _short(line["bytes"], 1024),
        _short(line["answer_packets"], 1000),
        _short(line["answer_bytes"], 1024),
        _told(line),
    )


def compact(line: Mapping[str, Any]) -> str:
    """One event or flow as a line that needs no columns."""
    verdict = str(line["verdict"])
    seconds = line["time"] if "time" in line else line["last_seen"]
    stamp = time.strftime("%b %d ", time.localtime(seconds)) + _clock(seconds)
    ends = f"{short_end(line['source'])} -> {short_end(line['destination'])}"
    counted = ""
    if "packets" in line:
        since = time.strftime("%b %d %H:%M:%S", time.localtime(line["first_seen"]))
        counted = f" {line['packets']} packets, {line['bytes']} bytes"
        counted += f"; answers {line['answer_packets']}, {line['answer_bytes']}; since {since}"
    said = colour(verdict.upper(), _COLOURS.get(verdict, "0"))
    reason = why(line)
    return (
        f"{stamp} {line.get('node', '')}: {ends} {_protocol(line)} {line['direction']} {said}"
        f"{f' ({reason})' if reason else ''}{counted}"
    )


def fields(line: Mapping[str, Any]) -> str:
    """One event or flow with a line for each thing that is known."""
    rows = []
    for name, value in _ordered(line):
        if name in ("time", "first_seen", "last_seen"):
            value = time.strftime("%Y-%m-%d ", time.localtime(value)) + _clock(value)
        elif isinstance(value, Mapping):
            value = ", ".join(f"{key} {_inner(one)}" for key, one in _ordered(value))
        rows.append(f"{name.replace('_', ' ').rjust(15)}: {value}")
    return "\n".join([*rows, "------------"])


def _ordered(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """In one order, whoever wrote them; what is not known comes last."""
    return sorted(fields.items(), key=lambda field: (_RANKS.get(field[0], len(_RANKS)), field[0]))


def _inner(value: Any) -> Any:
    return ",".join(f"{key}={one}" for key, one in _ordered(value)) if isinstance(value, Mapping) else value


def lost(line: Mapping[str, Any]) -> str:
    """Events that a node overwrote before they were read."""
    return f"{line.get('node', 'a node')}: {line['lost']} events were overwritten before they were read"


def why(event: Mapping[str, Any]) -> str:
    """The reason in words: the policy's rule, or what the packet path found wrong."""
    if event["verdict"] == "dropped":
        return str(event["reason"]).replace("_", " ")
    if not event.get("policy"):
        return str(event.get("rule", ""))
    said = f' "{event["description"]}"' if event.get("description") else ""
    gone = " (no longer declared)" if event.get("gone") else " (changed since)" if event.get("changed") else ""
    return f"{event['policy']} {event['rule']}{said}{gone}"


def _told(line: Mapping[str, Any]) -> str:
    return f"{short_end(line['source'])} -> {short_end(line['destination'])}  {why(line)}"


def _protocol(line: Mapping[str, Any]) -> str:
    icmp = line.get("icmp")
    return f"{line['protocol']} {icmp['type']}.{icmp['code']}" if icmp else str(line["protocol"])


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}"


def _short(number: int, step: int) -> str:
    """A number in at most six characters: 999, 1.2k, 34M."""
    value, units = float(number), ["", "k", "M", "G", "T", "P"]
    while value >= step and len(units) > 1:
        value, units = value / step, units[1:]
    if len(units) == 6:
        return str(number)
    return f"{value:.1f}{units[0]}" if value < 10 else f"{value:.0f}{units[0]}"
