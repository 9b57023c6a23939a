"""What all operations share: the fleet, worker threads, messages to the user, and the end of it all."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Set, TypeVar

from bpfleet.errors import TransactionFailed
from bpfleet.transport.outcome import Changes, Outcome
from bpfleet.transport.target import Target
from provider.directory import Directory
from provider.engine import Engine
from provider.writing import transact

if TYPE_CHECKING:
    from bpfleet.transport.fleet import Fleet

T = TypeVar("T")

_THREADS = 64
_CANCEL_SECONDS = 30.0


class Runtime:
    """One for the process. `run` is how the event loop has blocking work done."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cancelled = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bpfleet-call")
        self._askers = ThreadPoolExecutor(_THREADS, thread_name_prefix="bpfleet-ask")
        self._watchers: Dict[str, List[str]] = {}
        self._running: Set[asyncio.Future[Any]] = set()
        self._fleet: Optional[Fleet] = None
        self._fleet_lock = threading.Lock()
        self.directory = Directory(lambda: self.fleet, self._askers)

    @property
    def fleet(self) -> Fleet:
        """The connections to all nodes, from the first use on: most runs of the plugin only check and compare, and
        importing SSH takes a third of their time."""
        from bpfleet.transport.fleet import Fleet

        with self._fleet_lock:
            if self._fleet is None:
                self._fleet = Fleet(progress=self._progress, cancelled=self.cancelled)
            return self._fleet

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)` on a worker thread."""
        if self.cancelled.is_set():
            raise cancelled_error()
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*arguments))
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await future

    def each(self, targets: Mapping[str, Target], work: Callable[[Target], T]) -> Dict[str, T]:
        """`work` for all targets at the same time; for worker threads. `work` must not raise."""
        futures = {name: self._askers.submit(work, target) for name, target in targets.items()}
        return {name: future.result() for name, future in futures.items()}

    def transact(self, targets: Mapping[str, Target], changes: Mapping[str, Changes]) -> Dict[str, Outcome]:
        """A transaction over these nodes; for worker threads."""
        return transact(self.fleet, self.directory, targets, changes, self.cancelled)

    @contextmanager
    def shown_at(self, urn: str, nodes: List[str]) -> Iterator[None]:
        """Show what these nodes are doing beside the resource `urn`."""
        for node in nodes:
            self._watchers.setdefault(node, []).append(urn)
        try:
            yield
        finally:
            for node in nodes:
                self._watchers[node].remove(urn)

    def _progress(self, node: str, phase: str, detail: str) -> None:
        text = f"{node}: {phase} {detail}".rstrip()
        for urn in set(self._watchers.get(node, ())):
            self.engine.progress(urn, text)

    async def close(self) -> None:
        """Stop between two phases, wait for what is under way to end, close every session. Idempotent."""
        self.cancelled.set()
        if self._running:
            await asyncio.wait(self._running, timeout=_CANCEL_SECONDS)
        if self._fleet is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._fleet.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._askers.shutdown(wait=False, cancel_futures=True)
        await self.engine.flush()


def cancelled_error() -> TransactionFailed:
    """The error of an operation that was not begun because the run was cancelled."""
    return TransactionFailed("cancelled before anything was done", remedy="Run `pulumi up` again to make the change")
