"""Names of rules that are gone, for as long as a kept event or a flow of the history names them.

A rule leaves the compiled table with its policy. Here it stays, in one file, until nothing that is kept has its id.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Optional, Set

from bpfleet.agent.files import Files
from bpfleet.model.state import RuleName

RULES_KEPT = 16384
"""More than the history and the events of most nodes can name; beyond it those that went first are forgotten."""


class Rulebook:
    """The file. `pins`: where events and flows are pinned."""

    def __init__(self, files: Files, pins: Optional[str]) -> None:
        self._files = files
        self._pins = pins
        self.path = files.root / "rules.json"

    def read(self) -> Dict[int, RuleName]:
        """Rules that are gone by their id, those that went first at the start. A damaged file is as none: no traffic
        depends on it."""
        try:
            rules = json.loads(self.path.read_bytes())["rules"]
            return {int(rule.pop("id")): RuleName(**rule) for rule in rules}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def turn(self, before: Mapping[int, RuleName], now: Mapping[int, RuleName]) -> None:
        """The node's rules were `before` and are `now`: keep what went and is still named, forget what no longer is."""
        gone = {number: name for number, name in before.items() if number not in now}
        if not gone:
            return
        had = self.read()
        named = self._named()
        kept = {number: name for number, name in {**had, **gone}.items() if number in named and number not in now}
        kept = dict(list(kept.items())[-RULES_KEPT:])
        if kept == had:
            return
        if kept:
            self._files.write(self.path, json.dumps({"rules": [_row(*item) for item in kept.items()]}).encode())
        else:
            self.clear()

    def clear(self) -> None:
        """Remove the file."""
        self._files.remove(self.path)

    def _named(self) -> Set[int]:
        if self._pins is None:
            return set()
        from bpfleet.observe.history import rules_named
        from bpfleet.observe.reader import rules_of_events

        return rules_named(self._pins) | rules_of_events(self._pins)


def _row(number: int, name: RuleName) -> Dict[str, Any]:
    row: Dict[str, Any] = {"id": number, "policy": name.policy, "direction": name.direction, "rule": name.rule}
    row.update({"action": name.action, "description": name.description, "labels": dict(name.labels)})
    return row
