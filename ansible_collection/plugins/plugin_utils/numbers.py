# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity numbers: allocated once for all hosts of a play, whichever of Ansible's forks comes first.

A number is a hash of the labels, probed against the numbers that are in use. What one fork found stands in a file in
the run's own temporary directory, so that all hosts get the same; a number that a host refuses is struck out there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import Conflict
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.document import canonical_json
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.model.identity import candidates

InUse = dict[int, set[str]]
"""Which labels (as canonical JSON) have a number; two sets for one number is what two controllers at once can leave."""


def in_use(items: Iterable[Mapping[str, Any]]) -> InUse:
    """The numbers that these stored items hold."""
    used: InUse = {}
    for item in items:
        document = item["document"]
        if document["kind"] == "identity":
            used.setdefault(int(document["spec"]["number"]), set()).add(canonical_json(document["spec"]["labels"]))
    return used


def allocate(
    cluster_id: int, wanted: Iterable[Mapping[str, str]], used: Mapping[int, set[str]], struck: Iterable[int] = ()
) -> dict[str, int]:
    """A number for each set of labels, by their canonical JSON. Labels that have a number of their own keep it."""
    free_for: dict[str, int] = {}
    taken = set(used) | set(struck)
    labels_of = {canonical_json(dict(labels)): dict(labels) for labels in wanted}
    for number in sorted(used):
        (holder, *others) = sorted(used[number])
        if not others and number not in set(struck) and holder in labels_of:
            free_for.setdefault(holder, number)
    for text in sorted(set(labels_of) - set(free_for)):
        number = next((one for one in candidates(cluster_id, labels_of[text]) if one not in taken), None)
        if number is None:
            raise Conflict(f"cluster id {cluster_id} has no free identity number", remedy="Remove identities.")
        free_for[text] = number
        taken.add(number)
    return free_for


class Table:
    """The numbers of one task of a run for one set of identities, shared by its forks. name: of the task and the set.

    What is done within `open` is done by one fork at a time while the others wait.
    """

    def __init__(self, directory: Path, name: Any, cluster_id: int, wanted: Iterable[Mapping[str, str]]) -> None:
        self._cluster_id = cluster_id
        self._wanted = [dict(labels) for labels in wanted]
        texts = sorted(canonical_json(labels) for labels in self._wanted)
        digest = hashlib.sha256(canonical_json([name, cluster_id, texts]).encode()).hexdigest()[:32]
        self._path = directory / f"bpfleet-numbers-{digest}.json"

    def numbers(self, used: Callable[[], InUse]) -> dict[str, int]:
        """A number for each set of labels. `used` is asked once, by the first to come."""
        with self.open() as state:
            if "numbers" not in state:
                found = used()
                state["used"] = [[number, sorted(labels)] for number, labels in found.items()]
                state["numbers"] = allocate(self._cluster_id, self._wanted, found)
            return dict(state["numbers"])

    def strike(self, number: int, labels: Mapping[str, str]) -> dict[str, int]:
        """A host says that others have this number: the numbers with another one for `labels`."""
        with self.open() as state:
            return self.strike_in(state, number, labels)

    def strike_in(self, state: dict[str, Any], number: int, labels: Mapping[str, str]) -> dict[str, int]:
        """The same for who has it open."""
        if state["numbers"].get(canonical_json(dict(labels))) == number:
            state["struck"] = [*state.get("struck", ()), number]
            state["decided"] = False
            used: InUse = {one: set(texts) for one, texts in state["used"]}
            rest = {one: texts for one, texts in used.items() if one != number}
            kept = {one: {text} for text, one in state["numbers"].items() if one != number}
            state["numbers"] = allocate(self._cluster_id, self._wanted, {**rest, **kept}, state["struck"])
        return dict(state["numbers"])

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """What the forks know together, for one at a time; changes to it are kept, also when the body raises."""
        with self._path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed
            file.seek(0)
            text = file.read()
            state: dict[str, Any] = json.loads(text) if text else {}
            try:
                yield state
            finally:
                changed = json.dumps(state)
                if changed != text:
                    file.seek(0)
                    file.truncate()
                    file.write(changed)
