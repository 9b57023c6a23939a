"""The agent of one node: its store, its journal, its kernel, and the transactions that change them.

    stage     documents in, checked, compiled, planned, objects verified, room on the disk checked; the watchdog is
              started. In memory only.
    apply     under the node's lock: generation file, journal "applying", kernel, journal "applied"
    confirm   over a new connection: journal "committed"
    rollback  the last confirmed generation is put back

A process that dies in between leaves a journal from which the next start puts the last confirmed generation back
(`resolve`). Putting back is compiling what is confirmed and doing what is to do: the same code as every change.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, Sequence, Set, Tuple

from bpfleet.agent import session
from bpfleet.agent.files import Files
from bpfleet.agent.journal import APPLIED, APPLYING, PUTTING_BACK, Head, Journal, JournalFile, Transaction
from bpfleet.agent.lock import NodeLock
from bpfleet.agent.pending import confirmed, last_word, occupied, unexpected, unfinished
from bpfleet.agent.wire import ApplyResult, ConfirmResult, RollbackResult, StageParams, StageResult, WipeResult
from bpfleet.errors import BpfleetError, Conflict, DiskFull, HostFailed, InvalidInput, TransactionFailed

if TYPE_CHECKING:
    from bpfleet.agent.guard import Arm, Guard
    from bpfleet.agent.rulebook import Rulebook
    from bpfleet.agent.store import Contents, Store
    from bpfleet.compile.compiler import Compiler
    from bpfleet.loader.kernel import Kernel
    from bpfleet.loader.steps import Step
    from bpfleet.model.state import Compiled, Facts, NodeState

DEFAULT_WAIT_SECONDS = 10.0
DEFAULT_DEADLINE_SECONDS = 60.0
DESCRIBED_STEPS = 50
LOGS = "logs"
"""Directory below the state root for the verifier's full logs."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Staged:
    """A transaction that is ready to be applied. `revision`, `confirmed`: of the journal that it was made against, as
    that of a node that was cleared comes to the same revision again; `changed`: how many documents of each kind it puts
    or deletes."""

    head: Head
    owner: str
    contents: Contents
    before: Contents
    data: bytes
    want: NodeState
    revision: int
    confirmed: Head
    guard: Guard
    changed: Mapping[str, int]


class Agent:
    """One process's view of the node. Heavy imports happen in the methods that need them: hello must be quick.

    local: see session.session_started. pins: where counters and events are pinned, None if there are none to read.
    arm: starts the watchdog of a transaction; without it nothing can be staged, only put back or removed.
    """

    def __init__(
        self,
        root: Path,
        kernel: Callable[[], Kernel],
        *,
        local: bool = False,
        pins: Optional[str] = None,
        arm: Optional[Arm] = None,
    ) -> None:
        self.root = root
        self.pins = pins
        self._arm = arm
        self.files = Files(root)
        self.journal_file = JournalFile(self.files)
        self.lock = NodeLock(root / "lock")
        self.session_started = session.session_started(local=local)
        self._local = local
        self._make_kernel = kernel
        self._kernel: Optional[Kernel] = None
        self._store: Optional[Store] = None
        self._compiler: Optional[Compiler] = None
        self._staged: Optional[Staged] = None
        self._counted = 0

    # What is made when it is first needed.

    @property
    def kernel(self) -> Kernel:
        """The kernel side; made (and libbpf with it) on first use."""
        if self._kernel is None:
            self._kernel = self._make_kernel()
        return self._kernel

    @property
    def store(self) -> Store:
        """The document store."""
        if self._store is None:
            from bpfleet.agent.store import Store

            self._store = Store(self.files)
        return self._store

    @property
    def rulebook(self) -> Rulebook:
        """Names of rules that are gone."""
        from bpfleet.agent.rulebook import Rulebook

        return Rulebook(self.files, self.pins)

    @property
    def compiler(self) -> Compiler:
        """The compiler, which remembers what it did."""
        if self._compiler is None:
            from bpfleet.compile.compiler import Compiler

            self._compiler = Compiler()
        return self._compiler

    def compiled(self, contents: Contents, node: str, seen: Callable[[Facts], Facts] = lambda facts: facts) -> Compiled:
        """What the documents mean for this node as it is now; `seen` may take something away from the facts."""
        return self.compiler.compile(contents.documents, seen(self.kernel.facts(node)))

    def confirmed_state(self, head: Head, seen: Callable[[Facts], Facts] = lambda facts: facts) -> NodeState:
        """The state that a generation on disk asks for; the empty one if nothing was ever confirmed."""
        from bpfleet.model.state import NodeState

        if head.node is None:
            return NodeState()
        return self.compiled(self.store.load(head), head.node, seen).state

    # Reading.

    def journal(self) -> Journal:
        """The journal as it is on disk now."""
        return self.journal_file.read()

    def _mutations(self) -> int:
        """Writes of this process so far, of every kind."""
        return self.files.writes + self.lock.writes + (self._kernel.writes if self._kernel is not None else 0)

    def record(self, journal: Journal) -> Journal:
        """Write the journal with the total of writes brought up to date, its own included.

        The total is never written on its own, so that what writes nothing else leaves it alone.
        """
        made = self._mutations() - self._counted + 1
        written = self.journal_file.write(replace(journal, writes=journal.writes + made))
        self._counted = self._mutations()
        return written

    # Changing.

    def stage(self, params: StageParams) -> StageResult:
        """Make a change ready, or say everything that is wrong with it. Nothing is changed."""
        node = params.get("node")
        if not node:
            raise InvalidInput("stage needs the node's name", field="node")
        owner = params.get("owner", "")
        if params.get("deletes") and not owner:
            raise InvalidInput("deletes need an owner", field="owner", remedy="Say who deletes: only its own may go.")
        wait = float(params.get("wait_seconds", DEFAULT_WAIT_SECONDS))
        self._drop_staged()
        journal = self._wait_until_free(wait)
        with self.lock.shared(wait):
            journal = self.journal()
            if journal.transaction is not None:
                raise occupied(journal.transaction)
            head = journal.confirmed
            if head.node not in (None, node):
                raise Conflict(
                    f"this host is node {head.node}, not {node}",
                    remedy=f"Check the address of node {node}; to give this host a new name, delete node {head.node} "
                    "first.",
                    resource=f"node/{node}",
                    details={"node": head.node},
                )
            return self._stage(params, node, owner, journal)

    def _stage(self, params: StageParams, node: str, owner: str, journal: Journal) -> StageResult:
        from bpfleet.agent import store
        from bpfleet.compile.host import session_refusal
        from bpfleet.loader import capacity
        from bpfleet.loader.plan import plan

        self.kernel.check_fitness()
        base = self.store.load(journal.confirmed)
        contents, refused = store.change(
            base,
            params.get("puts", []),
            params.get("deletes", []),
            owner,
            replace_all=bool(params.get("replace_all")),
        )
        changed = store.differing(base, contents)
        came = session.ssh_port(local=self._local)
        facts = replace(self.kernel.facts(node), controller=came.client if came else "")
        conflicts, standing = self._conflicts(base, contents, facts, changed)
        refused += store.refusals(conflicts, changed)
        if refused:
            return {"refused": refused}
        arrived = self._arrived(contents, facts)
        compiled = self.compiled(contents, node)
        cut = session_refusal(contents.documents, compiled, node, session.ssh_port(local=self._local))
        if cut is not None:
            return {"refused": store.refusals([cut], {cut.resource or ""})}
        want = compiled.state
        obstacles = [_at_its_field(error, contents, node) for error in self.kernel.obstacles(want)]
        if obstacles:
            return {"refused": store.refusals(obstacles, changed)}
        state_digest = want.digest
        have = self.kernel.read(want)
        overfull = capacity.overfull(want, have, compiled.identities)
        full = [capacity.blame(error, compiled, changed) for error in overfull]
        if arrived is not None and not full:
            overfull = capacity.overfull_once_arrived(arrived.state, have, arrived.identities)
            full = [capacity.blame(error, arrived, changed) for error in overfull]
        if full:
            return {"refused": store.refusals(full, changed)}
        steps = plan(want, have)
        clusters = sorted(contents.documents.of_kind("cluster"))
        head = Head(
            generation=journal.confirmed.generation + 1,
            transaction=os.urandom(8).hex(),
            node=node if contents.items else None,
            cluster=clusters[0] if clusters else None,
            documents_digest=contents.documents.digest,
            state_digest=state_digest,
        )
        answer: StageResult = {
            "transaction": None,
            "unchanged": not changed and not steps,
            "steps": dict(Counter(step.kind for step in steps)),
            "describe": described(steps),
            "warnings": [*compiled.warnings, *standing, *capacity.kept_sizes(want, have, head.cluster)],
            "capacity": [one.to_json() for one in capacity.usage(want, have)],
            "waiting": [{"document": item.document, "reason": item.reason} for item in compiled.waiting],
            "documents_digest": head.documents_digest,
            "state_digest": state_digest,
        }
        if answer["unchanged"]:
            return answer
        data = contents.to_bytes(head)
        self.files.require(self.store.path(head.generation), len(data))
        guard = self._armed(str(head.transaction))
        try:
            self.kernel.prepare(want.programs)
            guard.ready()  # it started while the objects were verified
        except BaseException:
            guard.close()
            self.kernel.release()
            raise
        kinds = Counter(key.partition("/")[0] for key in changed)
        made_against = journal.revision, journal.confirmed
        self._staged = Staged(head, owner, contents, base, data, want, *made_against, guard, kinds)
        answer["transaction"] = head.transaction
        return answer

    def _conflicts(
        self, base: Contents, contents: Contents, facts: Facts, changed: Set[str]
    ) -> Tuple[List[BpfleetError], List[str]]:
        """What keeps the change from being made; and, in words, what stood before it and is not about what it changes:
        the host came to contradict what is confirmed, such as by an endpoint's address or without a device."""
        found = self.compiler.conflicts(contents.documents, facts)
        if not found:
            return [], []
        before = {str(error) for error in self.compiler.conflicts(base.documents, facts)}
        standing = [
            error
            for error in found
            if str(error) in before and changed.isdisjoint((error.resource, error.details.get("other")))
        ]
        return [error for error in found if error not in standing], [str(error) for error in standing]

    def _arrived(self, contents: Contents, facts: Facts) -> Optional[Compiled]:
        """What the documents will mean once every device is there that endpoints wait for; None if they all are."""
        from bpfleet.compile.topology import once_arrived

        then = once_arrived(contents.documents, facts)
        return None if then == facts else self.compiler.compile(contents.documents, then)

    def _armed(self, transaction: str) -> Guard:
        if self._arm is None:
            raise HostFailed(
                "this process was started without a way to start a watchdog, so it changes nothing",
                remedy="Change the node over an agent's channel.",
            )
        return self._arm(transaction)

    def _wait_until_free(self, seconds: float) -> Journal:
        """The journal once no transaction is under way; TransactionFailed if that takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self.resolve()
            journal = self.journal()
            if journal.transaction is None:
                return journal
            if time.monotonic() >= deadline:
                raise occupied(journal.transaction)
            time.sleep(_POLL_SECONDS)

    def staged_here(self) -> str:
        """The transaction that this process has staged."""
        if self._staged is None:
            raise TransactionFailed("nothing is staged here", remedy="Stage a change first.")
        return str(self._staged.head.transaction)

    def apply(self, transaction: str, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS) -> ApplyResult:
        """Bring the staged change into the kernel. If a step fails, the last confirmed generation is put back."""
        staged = self._staged
        if staged is None or staged.head.transaction != transaction:
            raise TransactionFailed(
                f"no transaction {transaction} is staged here",
                remedy="Stage the change again.",
                details={"retry": "stage"},
            )
        with self.lock.exclusive(f"apply of transaction {transaction}", DEFAULT_WAIT_SECONDS):
            journal = self.journal()
            if (journal.revision, journal.confirmed) != (staged.revision, staged.confirmed):
                raise self._outdated("another transaction changed the node since this one was staged")
            if not staged.guard.ask():
                raise self._outdated("the watchdog that would put this change back is gone")
            before = self._mutations()
            self._staged = None
            try:
                self._realise(self._begin(journal, staged, deadline_seconds), staged)
            finally:
                staged.guard.close()  # from here on it goes by the journal
            self.kernel.release()
            return {
                "transaction": transaction,
                "generation": staged.head.generation,
                "writes": self._mutations() - before,
                "state_digest": str(staged.head.state_digest),
                "documents_digest": staged.head.documents_digest,
            }

    def _outdated(self, what: str) -> TransactionFailed:
        self._drop_staged()
        return TransactionFailed(what, remedy="Stage the change again.", details={"retry": "stage"})

    def _begin(self, journal: Journal, staged: Staged, deadline_seconds: float) -> Journal:
        """Write the generation and the journal entry that says it is being applied."""
        self.files.require(self.store.path(staged.head.generation), len(staged.data))
        self.store.write(staged.head, staged.contents, staged.data)
        begun = Transaction(
            state=APPLYING,
            head=staged.head,
            owner=staged.owner,
            pid=os.getpid(),
            boot_id=session.boot_id(),
            deadline_seconds=deadline_seconds,
        )
        try:
            return self.record(replace(journal, transaction=begun))
        except DiskFull:
            self.files.remove(self.store.path(staged.head.generation))
            raise

    def _realise(self, journal: Journal, staged: Staged) -> None:
        """Do the steps and say so; on failure put the last confirmed generation back and raise what happened."""
        from bpfleet.loader.apply import apply
        from bpfleet.loader.plan import plan

        try:
            # Planned again under the lock: the kernel may have changed since, and what another process had loaded but
            # not used may be gone.
            apply(self.kernel, plan(staged.want, self.kernel.read(staged.want)))
            # Before the journal says so: whoever reads names reads them anew when it does.
            self._turn_rules(journal.confirmed.node, staged.before, staged.contents)
            self._applied(journal, staged.changed)
        except Exception as problem:
            error = problem if isinstance(problem, BpfleetError) else unexpected(problem)
            why = f"failed to {error.details.get('doing', 'apply')}: {error.what}"
            error.details["rolled_back"] = True
            error.remedy = f"{error.remedy} The last confirmed generation was put back.".strip()
            try:
                self.put_back(journal, why)
            except Exception as failure:  # noqa: BLE001 - what failed first must be told
                worse = failure if isinstance(failure, BpfleetError) else unexpected(failure)
                error.details.update({"rolled_back": False, "put_back_error": worse.to_wire()})
                error.remedy = (
                    f"Putting the last confirmed generation back failed too ({worse.what}); it is tried again at the "
                    "agent's next start and before the next change."
                )
            raise error from problem

    def _turn_rules(self, node: Optional[str], before: Contents, now: Contents, *, only_gone: bool = False) -> None:
        """Events and flows name rules of one generation while the kernel holds the other. This is about names alone:
        whatever goes wrong here must not undo a change or keep one from being put back."""
        from bpfleet.observe.past import Known

        if node is None:
            return
        with contextlib.suppress(BpfleetError, OSError):
            old, new = (Known(one.documents, self.compiled(one, node).rules) for one in (before, now))
            self.rulebook.turn(old, new, time.monotonic_ns(), only_gone=only_gone)

    def _applied(self, journal: Journal, changed: Mapping[str, int]) -> None:
        transaction = journal.transaction
        assert transaction is not None
        now = session.boot_seconds()
        transaction = replace(
            transaction,
            state=APPLIED,
            applied_ticks=session.boot_ticks(),
            deadline=now + transaction.deadline_seconds,
        )
        journal = replace(journal, transaction=transaction)
        self.record(journal.noting("applied", transaction.head, owner=transaction.owner, changed=dict(changed)))

    def confirm(self, transaction: str) -> ConfirmResult:
        """Make the applied generation the confirmed one. The connection must be newer than the apply."""
        self.resolve()
        with self.lock.exclusive(f"confirmation of transaction {transaction}", DEFAULT_WAIT_SECONDS):
            journal = self.journal()
            pending = journal.transaction
            if pending is None or pending.id != transaction:
                if journal.confirmed.transaction == transaction:
                    return confirmed(journal.confirmed)
                raise TransactionFailed(
                    f"transaction {transaction} does not await a confirmation{last_word(journal, transaction)}",
                    remedy="Stage and apply the change again.",
                    details={"retry": "stage"},
                )
            if pending.state == PUTTING_BACK or not self.store.path(pending.head.generation).exists():
                raise TransactionFailed(
                    f"transaction {transaction} is being put back",
                    remedy="Stage and apply the change again.",
                    details={"retry": "stage"},
                )
            if pending.state != APPLIED:
                raise TransactionFailed(f"transaction {transaction} is not applied yet", remedy="Apply it first.")
            if self.session_started < pending.applied_ticks:
                raise TransactionFailed(
                    "the confirmation came over a connection that was made before the change",
                    remedy="Confirm over a new connection (an SSH connection kept by ControlPersist is not new): it "
                    "proves that the node can still be reached.",
                    details={"retry": "connect"},
                )
            journal = replace(journal, confirmed=pending.head, transaction=None)
            self.store.prune(pending.head.generation)
            journal = self.record(journal.noting("committed", pending.head, owner=pending.owner))
            return confirmed(journal.confirmed)

    def rollback(self, transaction: Optional[str] = None) -> RollbackResult:
        """Drop what is staged here, or put back the last confirmed generation if something is pending."""
        staged = self._staged
        if staged is not None and transaction in (None, staged.head.transaction):
            self._drop_staged()
            return self._rolled_back(staged.head.transaction, self.journal())
        with self.lock.exclusive("rollback", DEFAULT_WAIT_SECONDS):
            journal = self.journal()
            pending = journal.transaction
            if pending is None or transaction not in (None, pending.id):
                return self._rolled_back(None, journal)
            return self._rolled_back(pending.id, self.put_back(journal, "asked"))

    @staticmethod
    def _rolled_back(transaction: Optional[str], journal: Journal) -> RollbackResult:
        head = journal.confirmed
        return {
            "rolled_back": transaction,
            "generation": head.generation,
            "documents_digest": head.documents_digest,
        }

    def resolve(self) -> Optional[str]:
        """Put back what a dead process or a passed deadline left; answers in words what was done, if anything.

        Whoever changes the node holds its lock while the journal says "applying" or "putting back"; so if the lock can
        be had and the journal still says so, that process is dead, or could not put back.
        """
        pending = self.journal().transaction
        # Of an applied one the journal alone says whether it must go; whoever waits for it must not take the lock.
        if pending is None or (pending.state == APPLIED and unfinished(pending) is None):
            return None
        try:
            with self.lock.exclusive("resolution of an unfinished transaction", 0):
                journal = self.journal()
                why = unfinished(journal.transaction)
                if journal.transaction is None or why is None:
                    return None
                self.put_back(journal, why)
                return f"transaction {journal.transaction.id} was rolled back: {why}"
        except TransactionFailed:  # the lock is held: somebody is at work
            return None

    def put_back(self, journal: Journal, why: str) -> Journal:
        """Bring the last confirmed generation back into the kernel, and end the transaction in the journal."""
        from bpfleet.loader.apply import apply
        from bpfleet.loader.plan import plan

        pending = journal.transaction
        if pending is not None and pending.state == APPLIED:
            begun = replace(pending, state=PUTTING_BACK, reason=why)
            try:
                journal = self.record(replace(journal, transaction=begun))
            except BpfleetError:
                # No disk keeps anybody from putting back. A full one lets files go: without its own, no generation is
                # confirmed. One that is read-only notes no confirmation either.
                with contextlib.suppress(BpfleetError):
                    self.files.remove(self.store.path(pending.head.generation))
        want = self.confirmed_state(journal.confirmed)
        steps = plan(want, self.kernel.read(want))
        if steps:
            self.kernel.prepare(want.programs)
        apply(self.kernel, steps)  # also where nothing is to do: whoever died may have left grace periods expedited
        self.kernel.release()
        return self.ended(journal, why)

    def ended(self, journal: Journal, why: str) -> Journal:
        """End the transaction in the journal; the kernel holds the last confirmed generation again."""
        pending = journal.transaction
        assert pending is not None
        with contextlib.suppress(BpfleetError):
            contents = self.store.load(pending.head), self.store.load(journal.confirmed)
            # What was not applied to its end was not turned to either: only its new rules may be named.
            self._turn_rules(pending.head.node, *contents, only_gone=pending.state == APPLYING)
        self.files.remove(self.store.path(pending.head.generation))
        journal = replace(journal, transaction=None)
        return self.record(journal.noting("rolled back", pending.head, owner=pending.owner, reason=why))

    def wipe(self, node: Optional[str]) -> WipeResult:
        """Remove everything of ours from the kernel and the disk, except the installed agents, the log and the lock."""
        from bpfleet.loader.apply import apply
        from bpfleet.loader.plan import plan
        from bpfleet.model.state import NodeState

        self._drop_staged()
        with self.lock.exclusive("wipe", DEFAULT_WAIT_SECONDS):
            held = self._held_node()
            if node is not None and held is not None and node != held:
                raise Conflict(
                    f"this host is node {held}, not {node}: nothing was removed",
                    remedy=f"Check the address of node {node}.",
                    resource=f"node/{node}",
                    details={"node": held},
                )
            before = self._mutations()
            apply(self.kernel, plan(NodeState(), self.kernel.read(NodeState())))
            self.kernel.release()
            self.files.remove(self.journal_file.path)
            self.store.clear()
            self.rulebook.clear()
            shutil.rmtree(self.root / LOGS, ignore_errors=True)
            self._counted = self._mutations()
            return {"writes": self._counted - before, "wiped": True}

    def _held_node(self) -> Optional[str]:
        try:
            return self.journal().confirmed.node
        except HostFailed:
            return None  # a journal that nobody can read is what a wipe is for

    def close(self) -> None:
        """Let go of what was staged and never applied."""
        self._drop_staged()

    def _drop_staged(self) -> None:
        if self._staged is not None:
            self._staged.guard.close()
            self._staged = None
            self.kernel.release()


def described(steps: Sequence[Step]) -> List[str]:
    """Steps in words, so many that somebody reads them; the last line says how many more there are."""
    more = len(steps) - DESCRIBED_STEPS
    return [step.describe() for step in steps[:DESCRIBED_STEPS]] + ([f"and {more} more"] if more > 0 else [])


def _at_its_field(error: HostFailed, contents: Contents, node: str) -> HostFailed:
    """An obstacle at a device of the node, or in a map, as one of the document in which it is declared and changed."""
    for cluster in contents.documents.of_kind("cluster") if "map" in error.details else ():
        error.where.update(resource=f"cluster/{cluster}", field=f"limits.{error.details['map']}")
    document = contents.documents.of_kind("node").get(node)
    names = [device["name"] for device in document.spec["devices"]] if document is not None else []
    if error.details.get("device") in names:
        error.where.update(resource=f"node/{node}", field=f"devices[{names.index(error.details['device'])}].xdp")
    return error
