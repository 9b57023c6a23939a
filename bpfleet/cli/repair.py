"""`bpfleet repair`: put back what somebody removed or changed on the nodes, after showing it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpfleet.cli.reach import add_arguments, targets, visible
from bpfleet.cli.status import status_of
from bpfleet.errors import BpfleetError

if TYPE_CHECKING:
    from bpfleet.transport.outcome import Outcome


def register(subparsers: Any) -> None:
    """Add `repair`."""
    parser = subparsers.add_parser(
        "repair",
        help="put back what somebody removed or changed on the nodes",
        description="Compare every node's kernel with its last confirmed generation, and do the difference, as a "
        "transaction: watched over, and put back unless it is confirmed over a new connection. Only what is bpfleet's "
        "is looked at. Exit code 1 if a node does not answer or could not be repaired; with --check, if one differs.",
    )
    add_arguments(parser)
    parser.add_argument("--check", action="store_true", help="only show what would be done")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="(%(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bpfleet.transport.fleet import Fleet
    from bpfleet.transport.outcome import Changes

    with Fleet() as fleet:
        chosen = targets(options, fleet)
        report: dict[str, dict[str, Any]] = {}
        for name, answer in fleet.each(chosen.values(), lambda target: status_of(fleet, target)).items():
            report[name] = {"error": str(answer)} if isinstance(answer, BpfleetError) else {"drift": answer["drift"]}
        drifted = {name: chosen[name] for name, found in report.items() if found.get("drift")}
        if drifted and not options.check:
            # A change of no documents: what there is to do is the difference.
            for name, outcome in fleet.transact(drifted, Changes()).items():
                report[name].update(_told(outcome))
    print(json.dumps(report, indent=2, sort_keys=True) if options.output == "json" else render(visible(report)))
    bad = [found for found in report.values() if "error" in found or (found["drift"] and not found.get("repaired"))]
    return 1 if bad else 0


def _told(outcome: Outcome) -> dict[str, Any]:
    from bpfleet.transport.outcome import Committed, Failed, Unchanged, Unreached

    if isinstance(outcome, (Committed, Unchanged)):
        return {"repaired": True}
    if isinstance(outcome, (Failed, Unreached)):
        return {"error": str(outcome.error)}
    return {"error": "; ".join(str(refusal.error) for refusal in outcome.refusals)}


def render(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The report for people."""
    lines = []
    for name, found in sorted(report.items()):
        lines += [f"{name}: {step}" for step in found.get("drift", ())]
        if "error" in found:
            lines.append(f"{name}: {found['error']}")
        elif found.get("repaired"):
            lines.append(f"{name}: repaired")
        elif not found["drift"]:
            lines.append(f"{name}: as it should be")
    return "\n".join(lines)
