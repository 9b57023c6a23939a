# Copyright (c) bpfleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of one host: what it holds, what is to be put and deleted, and the two steps of making it.

Stage and apply are one command, the confirmation another over a new connection: it proves that the host can still be
reached. Until it comes, the host keeps the last confirmed documents at hand and goes back to them by itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.channel import Channel, NotInstalled
from ansible_collections.bpfleet.fleet.plugins.plugin_utils.vendored.bpfleet.errors import (
    BpfleetError,
    HostFailed,
    InvalidInput,
    Unreachable,
)

CONFIRM_ATTEMPTS = 8
_PAUSE_SECONDS = 0.5
_MOST_PAUSE_SECONDS = 8.0
_MARGIN_SECONDS = 3.0
_OVERTAKEN = 6
_OVERTAKEN_SECONDS = 0.1

Item = dict[str, Any]
Store = dict[str, Item]
"""Items by key, as a host holds them."""


@dataclass
class Held:
    """What a host says before a change. agent: whether the very agent that this collection carries is installed."""

    hello: Mapping[str, Any] = field(default_factory=dict)
    store: Store = field(default_factory=dict)
    agent: bool = False


@dataclass
class Change:
    """What is to be put and deleted, in an owner's name, on the host that is `node`.

    wait_seconds: how long to wait for another transaction there to end.
    """

    node: str
    owner: str
    puts: Sequence[Item]
    deletes: Sequence[str]
    wait_seconds: float = 10.0

    def params(self) -> dict[str, Any]:
        """Parameters of stage."""
        return {
            "node": self.node,
            "owner": self.owner,
            "puts": list(self.puts),
            "deletes": list(self.deletes),
            "wait_seconds": self.wait_seconds,
        }


class Refused(InvalidInput):
    """The host refused documents; nothing was changed. `errors` by document."""

    def __init__(self, refusals: Sequence[Mapping[str, Any]]) -> None:
        self.errors = [(str(refusal["document"]), BpfleetError.from_wire(refusal["error"])) for refusal in refusals]
        super().__init__(
            "; ".join(str(error) for _key, error in self.errors),
            details={"refused": [{"document": key, "error": error.to_wire()} for key, error in self.errors]},
        )

    def __str__(self) -> str:
        return "nothing was changed:\n" + "\n".join(str(error) for _key, error in self.errors)


def read(channel: Channel, kinds: Sequence[str] = ()) -> Held:
    """What a host holds; an empty Held if no agent is there. Writes nothing."""
    requests = (("hello", {}), ("documents", {"kinds": list(kinds)} if kinds else {}))
    try:
        hello, documents = _results(channel.ask(*requests))
        agent = True
    except NotInstalled:
        agent = False
        try:
            hello, documents = _results(channel.ask_any(*requests))
        except NotInstalled:
            return Held()
    return Held(hello, {key_of(item): item for item in documents["items"]}, agent)


def must_be(node: str, held: Held) -> None:
    """Raise InvalidInput if the host is another node."""
    name = held.hello.get("node")
    if name not in (None, node):
        raise InvalidInput(
            f"this host is node {name}, not {node}",
            resource=f"node/{node}",
            remedy=f"Set this_node to {name}, correct the address in the inventory, or remove node {name} from the "
            "host first (role bpfleet.fleet.node with bpfleet_state: absent).",
        )


def key_of(item: Mapping[str, Any]) -> str:
    """ "kind/name"."""
    document = item["document"]
    return f"{document['kind']}/{document['name']}"


def preview(channel: Channel, change: Change) -> dict[str, Any]:
    """What the host would do: stage's answer. Refused if it would not take it. Nothing is kept or written."""
    (staged,) = _results(channel.ask(("stage", change.params())))
    if staged.get("refused"):
        raise Refused(staged["refused"])
    return dict(staged)


def make(channel: Channel, change: Change, renew: Callable[[], None], deadline_seconds: float) -> dict[str, Any]:
    """Make the change and confirm it; stage's answer, with apply's and confirm's over it.

    `renew` ends the connection, so that the next command makes a new one. Raises Refused; the host's own error if
    applying failed (it is then back at what was confirmed); Unreachable if it could not be reached afterwards.
    """
    for again in range(_OVERTAKEN + 1):
        staged, applied = channel.ask(("stage", change.params()), ("apply", {"deadline_seconds": deadline_seconds}))
        until = time.monotonic() + deadline_seconds - _MARGIN_SECONDS
        failed = next((answer for answer in (staged, applied) if isinstance(answer, BpfleetError)), None)
        if isinstance(staged, dict):
            if staged.get("refused"):
                raise Refused(staged["refused"])
            if staged["unchanged"]:
                return dict(staged)
        if failed is None:
            renew()
            confirmed = _confirm(channel, applied["transaction"], renew, until)
            return {**staged, **applied, **confirmed}
        if not is_busy(failed) or again == _OVERTAKEN:
            raise failed
        # Another controller was first. Not in step with it.
        time.sleep(_OVERTAKEN_SECONDS * (again + 1) * random.uniform(0.5, 1.5))
    raise AssertionError("the loop returns or raises at its last round")


def is_busy(error: BpfleetError) -> bool:
    """Whether another transaction on the host is why, so that it may go well when staged again."""
    return error.details.get("retry") == "stage"


def _confirm(channel: Channel, transaction: str, renew: Callable[[], None], until: float) -> dict[str, Any]:
    """Confirm, trying again while the host cannot be reached and the time lasts. Confirming twice is no error."""
    pause, failure = _PAUSE_SECONDS, ""
    for _attempt in range(CONFIRM_ATTEMPTS):
        try:
            (confirmed,) = channel.ask(("confirm", {"transaction": transaction}))
        except (AnsibleConnectionFailure, HostFailed) as error:
            failure = str(error)
        else:
            if isinstance(confirmed, BpfleetError) and confirmed.details.get("retry") == "connect":
                # Another fork began to connect before the change, and its connection has become the shared one.
                failure = str(confirmed)
                renew()
            elif isinstance(confirmed, BpfleetError):
                _put_back(channel, transaction, confirmed)
                raise confirmed
            else:
                return dict(confirmed)
        if time.monotonic() + pause >= until:
            break
        time.sleep(pause)
        pause = min(2 * pause, _MOST_PAUSE_SECONDS)
    raise Unreachable(
        f"the change was made, but the host could not be reached over a new connection to confirm it ({failure})",
        remedy="The host goes back to what was last confirmed when the time to confirm is over. Look at what this "
        "change does to its SSH, then run the playbook again.",
        details={"transaction": transaction, "in_doubt": True},
    )


def _put_back(channel: Channel, transaction: str, error: BpfleetError) -> None:
    """After a refused confirmation: the last confirmed documents, if the host can be told."""
    try:
        (answer,) = channel.ask(("rollback", {"transaction": transaction}))
    except (AnsibleConnectionFailure, HostFailed) as failed:
        error.details["rollback"] = str(failed)
    else:
        if isinstance(answer, BpfleetError):
            error.details["rollback"] = answer.to_wire()


def _results(answers: Sequence[Any]) -> Sequence[Any]:
    for answer in answers:
        if isinstance(answer, BpfleetError):
            raise answer
    return answers
