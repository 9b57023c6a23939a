"""The controller's side of all nodes: deliver the agent, ask one node, ask many, change many as one transaction."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from bpfleet.agent import wire
from bpfleet.errors import BpfleetError, TransactionFailed
from bpfleet.transport.artefact import Artefact, current
from bpfleet.transport.channel import LOOK_SECONDS, Connector, Stop
from bpfleet.transport.dial import Dialler, Schedule
from bpfleet.transport.node import Counters, Means, Node, Timeouts
from bpfleet.transport.outcome import Changes, Outcome
from bpfleet.transport.ssh import SshConnector
from bpfleet.transport.target import Target
from bpfleet.transport.transaction import Transaction

T = TypeVar("T")
Progress = Callable[[str, str, str], None]

_log = logging.getLogger(__name__)
_BUSY_SECONDS = 900.0
_HEAD_START_SECONDS = 1.0


class Fleet:
    """Connections to nodes, kept for a run. Thread-safe. Use it as a context manager, or `close` it.

    progress: called with (node, phase, detail), from any thread but never twice at once. Phases: dial, install, stage,
    apply, confirm, rollback, done. connector: how to connect (SSH unless given). artefact: what to deliver; made when
    first needed. dials: attempts to connect at any time; workers: nodes worked on at any time. root: where on the
    hosts the agent keeps itself and its state. cancelled: when set, everything under way ends within a second: dials
    and questions at once, transactions as described at `transact`.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        *,
        artefact: Artefact | None = None,
        connector: Connector | None = None,
        schedule: Schedule | None = None,
        timeouts: Timeouts | None = None,
        dials: int = 8,
        workers: int = 32,
        root: str = wire.STATE_ROOT,
        cancelled: threading.Event | None = None,
    ) -> None:
        connector = connector or SshConnector()
        self.root = root
        self._progress = progress
        self._progress_lock = threading.Lock()
        self._artefact = artefact
        self._lock = threading.Lock()
        self._nodes: dict[Target, Node] = {}
        self._closed = False
        self._stop = Stop(cancelled) if cancelled is not None else Stop()
        self._dialler = Dialler(connector, schedule or Schedule(), dials)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="bpfleet-fleet")
        self._means = Means(
            dialler=self._dialler,
            artefact=self._get_artefact,
            timeouts=timeouts or Timeouts(),
            root=root,
            local=connector.local,
            progress=self._report,
            stop=self._stop,
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # One node

    def install(self, target: Target) -> wire.Hello:
        """Deliver the agent if the host does not have this very one, start it, and return its hello."""
        return self._node(target).install()

    def installed(self, target: Target) -> wire.Hello | None:
        """Its hello if the host holds anything of bpfleet, of whatever version, else None, nothing written then."""
        return self._node(target).installed()

    def call(self, target: Target, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """The result of one request (bpfleet/agent/wire.py has the methods). Installs the agent if it is missing.

        Raises the node's own error; Unreachable, HostKeyMismatch, AuthenticationFailed, HostUnfit, ProtocolFailed.
        """
        return self._node(target).call(method, params)

    def stream(self, target: Target, method: str, params: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """The events of a streaming request as they come. Close the iterator to end it; other requests go on."""
        return self._node(target).stream(method, params or {})

    def remove_agent(self, target: Target) -> None:
        """Take the agent off the host, after `wipe`."""
        self._node(target).remove_agent()

    # Many nodes

    def each(self, targets: Iterable[Target], work: Callable[[Target], T]) -> dict[str, T | BpfleetError]:
        """`work(target)` for all at the same time: results, or the errors of the tree, by node. `work` must not call
        `each` or `transact` itself."""

        futures = {target.name: self._pool.submit(_told, work, target) for target in targets}
        return {name: future.result() for name, future in futures.items()}

    def as_they_answer(
        self, targets: Iterable[Target], work: Callable[[Target], T]
    ) -> Iterator[tuple[Target, T | BpfleetError]]:
        """`work(target)` as of `each`, for whoever needs one answer: each begins once those before it had a second, or
        one of them failed and that was not enough. Results, or errors of the tree, as they come."""
        waiting = list(targets)
        futures: dict[Future[T | BpfleetError], Target] = {}
        while waiting or futures:
            if waiting:
                target = waiting.pop(0)
                futures[self._pool.submit(_told, work, target)] = target
            done, _ = wait(futures, _HEAD_START_SECONDS if waiting else None, FIRST_COMPLETED)
            for future in done:
                yield futures.pop(future), future.result()

    def transact(
        self,
        targets: Mapping[str, Target],
        changes: Changes | Mapping[str, Changes],
        cancelled: threading.Event | None = None,
    ) -> dict[str, Outcome]:
        """Make one change on all targets (or, given a mapping, each target's own) and say what became of it on each.

        See bpfleet/transport/transaction.py. Errors of nodes are outcomes, not exceptions. Setting `cancelled` ends it
        within a second: what is confirmed stays, what is applied is put back, and a node that is just applying is told
        to put it back and not waited for. So does Ctrl-C, which is raised after that.
        """
        nodes = {name: self._node(target) for name, target in targets.items()}
        by_node = dict.fromkeys(nodes, changes) if isinstance(changes, Changes) else dict(changes)
        cancelled = cancelled or threading.Event()
        stop = self._stop.also(cancelled)
        with ExitStack() as held:
            # In one order everywhere, so that two transactions over the same nodes wait for each other, not both.
            for _, node in sorted(nodes.items()):
                _take(node, stop)
                held.callback(node.transaction_lock.release)
            return _uninterrupted(Transaction(nodes, by_node, self._pool, stop).run, cancelled)

    # What it took

    def counters(self, target: Target) -> Counters:
        """What this node took so far."""
        return self._node(target).counters

    def totals(self) -> Counters:
        """What all nodes took together."""
        with self._lock:
            nodes = list(self._nodes.values())
        return sum((node.counters for node in nodes), Counters())

    def close(self) -> None:
        """End all agents and connections; requests under way fail. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            nodes = list(self._nodes.values())
        self._dialler.close()
        for node in nodes:
            node.interrupt()
        list(self._pool.map(Node.close, nodes))
        self._pool.shutdown(wait=True)

    def _node(self, target: Target) -> Node:
        with self._lock:
            if self._closed:
                raise TransactionFailed("the fleet was closed", node=target.name)
            return self._nodes.setdefault(target, Node(target, self._means))

    def _get_artefact(self) -> Artefact:
        with self._lock:
            if self._artefact is None:
                self._artefact = current()
            return self._artefact

    def _report(self, node: str, phase: str, detail: str) -> None:
        if self._progress is None:
            return
        with self._progress_lock:
            try:
                self._progress(node, phase, detail)
            except Exception:  # noqa: BLE001 - whoever watches must not stop a transaction halfway
                _log.exception("the progress callback failed")


def _told(work: Callable[[Target], T], target: Target) -> T | BpfleetError:
    try:
        return work(target)
    except BpfleetError as error:
        return error


def _take(node: Node, stop: Stop) -> None:
    """Take a node's transaction lock, or say who has it."""
    end = time.monotonic() + _BUSY_SECONDS
    while not node.transaction_lock.acquire(timeout=LOOK_SECONDS):
        if stop():
            raise TransactionFailed(
                "cancelled while another transaction of this process was under way",
                node=node.target.name,
                remedy="Run the same again to make the change",
                details={"cancelled": True},
            )
        if time.monotonic() > end:
            raise TransactionFailed(
                "another transaction of this process did not end",
                node=node.target.name,
                remedy="See bpfleet status on that node, then run the same again",
            )


def _uninterrupted(work: Callable[[], T], cancelled: threading.Event) -> T:
    """The result of `work`. A KeyboardInterrupt in the meantime sets `cancelled` and is raised when `work` has ended:
    half a transaction has nobody to put it back."""
    interrupt: KeyboardInterrupt | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="bpfleet-transaction") as runner:
        future = runner.submit(work)
        while not future.done():
            try:
                # In slices: a signal that another thread received is noticed between two of them.
                wait([future], LOOK_SECONDS)
            except KeyboardInterrupt as interrupted:
                interrupt = interrupted
                cancelled.set()
    if interrupt is not None:
        raise interrupt
    return future.result()
