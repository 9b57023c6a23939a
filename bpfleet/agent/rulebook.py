"""What rules, addresses and identities stood for, for as long as a kept event or a flow of the history is older.

A rule leaves the compiled table with its policy, an address goes to another endpoint, a description is written anew.
What was stays here, in one file, until nothing that is kept asks for it.
"""

from __future__ import annotations

import json
from typing import Dict, List, Optional

from bpfleet.agent import session
from bpfleet.agent.files import Files
from bpfleet.observe.past import RULE, Key, Known, Meaning, Past, ended, kept, rule_of_row, said_by

MEANINGS_KEPT = 16384
"""More than the history and the events of most nodes can ask for; beyond it those that ended first are forgotten."""


class Rulebook:
    """The file. `pins`: where events and flows are pinned."""

    def __init__(self, files: Files, pins: Optional[str]) -> None:
        self._files = files
        self._pins = pins
        self.path = files.root / "rules.json"

    def read(self) -> Past:
        """What is kept. A damaged file is as none: no traffic depends on it."""
        return Past(self._read())

    def _read(self) -> List[Meaning]:
        try:
            data = json.loads(self.path.read_bytes())
            # Events and flows end with a boot, and so does the clock of their times.
            if data["boot_id"] != session.boot_id():
                return []
            found = [Meaning(str(kind), str(key), int(until), dict(row)) for kind, key, until, row in data["past"]]
            for one in found:
                if one.kind == RULE:
                    rule_of_row(one.row)
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def turn(self, before: Known, now: Known, at_ns: int, *, only_gone: bool = False) -> None:
        """What the node said was `before` and is `now`: keep what ended and is asked for, forget what no longer is.

        only_gone: `before` was never in force as a whole. Of it only those count that `now` does not know.
        """
        ends = list(ended(before, now, at_ns))
        if only_gone and ends:
            has = now.keys()
            ends = [one for one in ends if one.of not in has]
        if not ends:
            return
        had = self._read()
        left = kept([*had, *ends], now, self._named(), MEANINGS_KEPT)
        if left == had:
            return
        if left:
            self._files.write(self.path, json.dumps({"boot_id": session.boot_id(), "past": left}).encode())
        else:
            self.clear()

    def clear(self) -> None:
        """Remove the file."""
        self._files.remove(self.path)

    def _named(self) -> Dict[Key, int]:
        if self._pins is None:
            return {}
        from bpfleet.observe.history import kept_flows
        from bpfleet.observe.reader import kept_events

        return said_by(kept_events(self._pins), kept_flows(self._pins))
