"""One change on many nodes: staged everywhere, then applied on each and confirmed over a new connection.

Atomic on each node, not over all of them. A document that any node refuses stops the change everywhere, before
anything is applied. After that each node is for itself: where a step fails, that node is put back; the others go on.

Identity numbers are the exception: they must be one and the same on all nodes, whoever else hands out numbers at the
same moment. So a change with identities is committed on one node first, the lowest-named that answers
(bpfleet/model/identity.py), and only then applied on the others. Nodes compare and set; hence of two controllers that
want one number for two sets of labels, the one that comes second is refused there, before it has changed any node.

Called off, a change ends within a second: what is confirmed stays, the rest is put back or told to put itself back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from typing import cast

from bpfleet.agent import wire
from bpfleet.errors import BpfleetError, InvalidInput, TransactionFailed, Unreachable
from bpfleet.model.identity import decider
from bpfleet.transport.channel import Stop
from bpfleet.transport.node import Node
from bpfleet.transport.outcome import Changes, Committed, Failed, Outcome, Refusal, Refused, Unchanged, Unreached

GRACE_SECONDS = 0.3
"""How long a step that changes a node may go on after the change was called off."""
_OVERTAKEN = 6
"""How often a node's change is staged again because another controller's came first."""
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class _Staged:
    transaction: str
    answer: wire.StageResult


@dataclass(frozen=True)
class _Applied:
    staged: _Staged
    answer: wire.ApplyResult


class Transaction:
    """One change on `nodes` (by name). `run` once."""

    def __init__(self, nodes: Mapping[str, Node], changes: Mapping[str, Changes], pool: Executor, stop: Stop) -> None:
        self._nodes = nodes
        self._changes = changes
        self._pool = pool
        self._stop = stop
        self._outcomes: dict[str, Outcome] = {}

    def run(self) -> dict[str, Outcome]:
        """The outcome on every node."""
        staged = {
            name: result for name, result in self._each(self._nodes, self._stage).items() if isinstance(result, _Staged)
        }
        refusing = [name for name, outcome in self._outcomes.items() if isinstance(outcome, Refused)]
        if refusing:
            self._withdraw_all(staged, Refused((), refusing))
        else:
            staged = self._decide_numbers(staged)
            if self._stop():
                self._each(staged, lambda name: self._withdraw(name, staged[name], Failed(_cancelled(name, "apply"))))
            else:
                self._each(staged, lambda name: self._carry_out(name, staged[name]))
        return {name: self._outcomes[name] for name in self._nodes}

    def _decide_numbers(self, staged: dict[str, _Staged]) -> dict[str, _Staged]:
        """Commit a change with identities on the node that decides over their numbers; the nodes that then follow.

        None follow where it refused, and where others kept it busy: their numbers may be the same. If it failed
        otherwise, the next node decides: one broken host does not stop the fleet.
        """
        rest = dict(staged)
        while rest and not self._stop() and (first := self._deciding(rest)) is not None:
            if first in rest:
                deciding = {first: rest.pop(first)}
                self._each(deciding, lambda name, own=deciding: self._carry_out(name, own[name]))  # type: ignore[misc]
            outcome = self._outcomes[first]
            if isinstance(outcome, Refused):
                self._withdraw_all(rest, Refused((), [first]))
                return {}
            if isinstance(outcome, Failed) and _is_busy(outcome.error):
                self._withdraw_all(rest, Failed(outcome.error))
                return {}
            if isinstance(outcome, (Committed, Unchanged)):
                break
        return rest

    def _withdraw_all(self, staged: Mapping[str, _Staged], outcome: Outcome) -> None:
        self._each(staged, lambda name: self._withdraw(name, staged[name], outcome))

    def _deciding(self, staged: Mapping[str, _Staged]) -> str | None:
        """The node that takes the numbers first, which may have them already, or be kept busy by others; None if there
        are none to take."""
        answering = {
            name
            for name, outcome in self._outcomes.items()
            if isinstance(outcome, Unchanged) or (isinstance(outcome, Failed) and _is_busy(outcome.error))
        }
        concerned = {name for name in (*staged, *answering) if _gives_numbers(self._changes[name])}
        return decider(concerned) if concerned & staged.keys() else None

    def _each(self, names: Iterable[str], work: Callable[[str], _Staged | Outcome]) -> dict[str, _Staged | Outcome]:
        """Do a phase on these nodes at the same time; note the outcome of those for which it was the last."""

        def to_the_end(name: str) -> _Staged | Outcome:
            result = work(name)
            if not isinstance(result, _Staged):
                self._nodes[name].report("done", _in_words(result))
            return result

        futures = {name: self._pool.submit(to_the_end, name) for name in names}
        wait(futures.values())
        results = {name: future.result() for name, future in futures.items()}
        self._outcomes.update({name: result for name, result in results.items() if not isinstance(result, _Staged)})
        return results

    def _carry_out(self, name: str, staged: _Staged) -> Outcome:
        """Apply and confirm. No node waits for another in between: its time to confirm is running."""
        applied = self._apply(name, staged)
        if not isinstance(applied, _Applied):
            return applied
        if self._stop():
            return self._put_back(name, applied.staged, _cancelled(name, "confirm"))
        return self._confirm(name, applied)

    def _stage(self, name: str) -> _Staged | Outcome:
        node, changes = self._nodes[name], self._changes[name]
        node.report("stage")
        params: wire.StageParams = {"node": name, "puts": list(changes.puts), "deletes": list(changes.deletes)}
        if changes.owner:
            params["owner"] = changes.owner
        if changes.replace_all:
            params["replace_all"] = True
        try:
            answer = self._ask_to_stage(node, params)
        except InvalidInput as error:
            return Refused([Refusal(error.resource or "", error)])
        except Unreachable as error:
            return Unreached(error)
        except BpfleetError as error:
            return Failed(error)
        if answer.get("refused"):
            return Refused(
                [
                    Refusal(refusal["document"], BpfleetError.from_wire(refusal["error"]).at(node=name))
                    for refusal in answer["refused"]
                ]
            )
        transaction = answer.get("transaction")
        if answer.get("unchanged") or transaction is None:
            return Unchanged(
                answer.get("documents_digest", ""),
                answer.get("state_digest", ""),
                answer.get("warnings", []),
                answer.get("waiting", []),
            )
        return _Staged(transaction, answer)

    def _ask_to_stage(self, node: Node, params: wire.StageParams) -> wire.StageResult:
        """Another controller's transaction is waited for, and a dead one's outlasted: each attempt waits in the agent
        as well."""
        for again in range(_OVERTAKEN):
            try:
                return cast(wire.StageResult, node.call("stage", params, stop=self._stop))
            except TransactionFailed as busy:
                if not _is_busy(busy):
                    raise
                node.report("stage", busy.what)
            self._pause(again)
        return cast(wire.StageResult, node.call("stage", params, stop=self._stop))

    def _pause(self, again: int) -> None:
        """Not in step with the other controller."""
        self._stop.wait(_PAUSE_SECONDS * (again + 1) * random.uniform(0.5, 1.5))

    def _apply(self, name: str, staged: _Staged) -> _Applied | Outcome:
        node = self._nodes[name]
        for again in range(_OVERTAKEN + 1):
            node.report("apply", f"{sum(staged.answer.get('steps', {}).values())} steps")
            params = {"transaction": staged.transaction}
            try:
                return _Applied(staged, node.call("apply", params, stop=self._stop, grace=GRACE_SECONDS))
            except BpfleetError as error:
                if not _is_busy(error) or again == _OVERTAKEN:
                    return self._put_back(name, staged, error)
            # Another controller was first, or the agent that had it staged is gone.
            self._pause(again)
            restaged = self._stage(name)
            if not isinstance(restaged, _Staged):
                return restaged
            staged = restaged
        raise AssertionError("the loop returns at its last round")

    def _confirm(self, name: str, applied: _Applied) -> Outcome:
        node = self._nodes[name]
        node.report("confirm")
        confirmed: wire.ConfirmResult | wire.Hello
        try:
            confirmed = node.call(
                "confirm",
                {"transaction": applied.staged.transaction},
                stop=self._stop,
                grace=GRACE_SECONDS,
                new_connection=True,
            )
        except BpfleetError as error:
            # The confirmation may have arrived although its answer did not.
            hello = self._hello(node)
            if hello is None or not _is_confirmed(hello, applied):
                return self._put_back(name, applied.staged, error)
            confirmed = hello
        return Committed(
            generation=confirmed["generation"],
            documents_digest=confirmed["documents_digest"],
            state_digest=confirmed["state_digest"] or "",
            writes=applied.answer["writes"],
            steps=applied.staged.answer.get("steps", {}),
            warnings=applied.staged.answer.get("warnings", []),
            waiting=applied.staged.answer.get("waiting", []),
        )

    def _hello(self, node: Node) -> wire.Hello | None:
        try:
            return node.install()
        except BpfleetError:
            # Putting back, which comes next, meets the same and reports it.
            return None

    def _put_back(self, name: str, staged: _Staged, error: BpfleetError) -> Outcome:
        """After `error`: the node's last confirmed generation, if the node can be told."""
        node = self._nodes[name]
        node.report("rollback", error.what)
        if error.details.get("left"):
            return Failed(error, rolled_back=False)  # the node is told, and not waited for
        try:
            node.call("rollback", {"transaction": staged.transaction}, stop=self._stop, grace=GRACE_SECONDS)
        except BpfleetError as failed:
            error.details["rollback"] = failed.to_wire()
            if isinstance(error, Unreachable):
                return Unreached(error, in_doubt=True)
            return Failed(error, rolled_back=False)
        return Failed(_unconfirmed(error) if isinstance(error, Unreachable) else error, rolled_back=True)

    def _withdraw(self, name: str, staged: _Staged, outcome: Outcome) -> Outcome:
        """Drop what is staged only. Nothing was changed, so failing to say so costs no more than the agent's memory."""
        node = self._nodes[name]
        try:
            node.call("rollback", {"transaction": staged.transaction}, stop=self._stop, grace=GRACE_SECONDS)
        except BpfleetError as failed:
            node.report("rollback", failed.what)
        return outcome


def _is_busy(error: BpfleetError) -> bool:
    """Whether another transaction on the node is why, so that it may go well when staged again."""
    return isinstance(error, TransactionFailed) and error.details.get("retry") == "stage"


def _gives_numbers(changes: Changes) -> bool:
    """Whether identities are put: with numbers that another controller might want. A copied store's are settled."""
    return not changes.replace_all and any(item["document"]["kind"] == "identity" for item in changes.puts)


def _is_confirmed(hello: wire.Hello, applied: _Applied) -> bool:
    return hello["pending"] is None and hello["generation"] == applied.answer["generation"]


def _cancelled(name: str, phase: str) -> TransactionFailed:
    return TransactionFailed(
        f"cancelled before {phase}",
        node=name,
        remedy="Run the same again to make the change",
        details={"cancelled": True},
    )


def _unconfirmed(error: Unreachable) -> TransactionFailed:
    """Why a node that still answers over the connection that it had is back at what it was."""
    failed = TransactionFailed(
        f"the change was put back, because it could not be confirmed over a new connection: {error.what}",
        remedy="See whether the change itself, or something else on the way, keeps new SSH connections from the host "
        "(those that stand go on), then run the same again",
        details={**error.details, "cause": error.to_wire()},
    )
    failed.where.update(error.where)
    return failed


def _in_words(outcome: Outcome) -> str:
    if isinstance(outcome, Committed):
        return f"generation {outcome.generation}, {outcome.writes} writes"
    if isinstance(outcome, Unchanged):
        return "unchanged"
    if isinstance(outcome, Refused):
        if outcome.refusals:
            return "refused: " + "; ".join(str(refusal.error) for refusal in outcome.refusals)
        return f"nothing applied: refused by {', '.join(outcome.elsewhere)}"
    return f"{'failed' if isinstance(outcome, Failed) else 'unreachable'}: {outcome.error}"
