"""What the journal's word on a transaction means: may it still be confirmed, who waits for whom, and in what words."""

from __future__ import annotations

from typing import Optional

from bpfleet.agent import session
from bpfleet.agent.journal import APPLIED, APPLYING, PUTTING_BACK, Head, Journal, Transaction
from bpfleet.agent.wire import ConfirmResult, Pending
from bpfleet.errors import HostFailed, TransactionFailed


def pending(journal: Journal) -> Optional[Pending]:
    """The transaction under way, as hello and status report it."""
    transaction = journal.transaction
    if transaction is None:
        return None
    left = transaction.deadline_seconds if transaction.state == APPLYING else 0.0
    if transaction.state == APPLIED:
        left = transaction.deadline - session.boot_seconds()
    return {
        "transaction": transaction.id,
        "state": transaction.state,
        "owner": transaction.owner,
        "generation": transaction.head.generation,
        "seconds_left": max(0.0, round(left, 1)),
    }


def in_force(journal: Journal) -> Head:
    """The generation that the kernel holds now, while nothing is being applied."""
    transaction = journal.transaction
    return transaction.head if transaction is not None and transaction.state == APPLIED else journal.confirmed


def confirmed(head: Head) -> ConfirmResult:
    """The answer to a confirmation."""
    return {
        "generation": head.generation,
        "documents_digest": head.documents_digest,
        "state_digest": str(head.state_digest),
    }


def unfinished(transaction: Optional[Transaction]) -> Optional[str]:
    """Why this transaction must be put back, seen by who holds the lock; None if it may still be confirmed."""
    if transaction is None:
        return None
    if transaction.state == PUTTING_BACK:
        return transaction.reason
    if transaction.state == APPLYING:
        return f"process {transaction.pid}, which applied it, ended before it was done"
    if transaction.boot_id != session.boot_id():
        return "the node was rebooted before it was confirmed"
    if session.boot_seconds() > transaction.deadline:
        return f"it was not confirmed within {transaction.deadline_seconds:g} s"
    return None


def occupied(transaction: Transaction) -> TransactionFailed:
    """The error for who comes while another transaction is under way."""
    if transaction.state != APPLIED:
        doing = "put back" if transaction.state == PUTTING_BACK else "applied"
        what = f"transaction {transaction.id} of {transaction.owner or 'another caller'} is being {doing}"
        remedy = "Try again when it is done."
    else:
        left = max(0.0, transaction.deadline - session.boot_seconds())
        what = (
            f"transaction {transaction.id} of {transaction.owner or 'another caller'} awaits its confirmation for "
            f"{left:.0f} s more"
        )
        remedy = "Try again then (it is rolled back unless it is confirmed), or roll it back now."
    return TransactionFailed(what, remedy=remedy, details={"pending": transaction.id, "retry": "stage"})


def last_word(journal: Journal, transaction: str) -> str:
    """Why a transaction is no longer there, if the journal still knows."""
    for entry in reversed(journal.entries):
        if entry["transaction"] == transaction and entry["event"] == "rolled back":
            return f": it was rolled back ({entry['reason']})"
    return ""


def unexpected(problem: Exception) -> HostFailed:
    """The error for an exception that no step should raise."""
    return HostFailed(
        f"a step failed in a way nobody thought of: {problem!r}",
        remedy="The agent's log has the traceback; please report it.",
    )
