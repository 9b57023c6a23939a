"""Which calls in flight become one transaction.

Pulumi calls Create, Update and Delete once a resource, in parallel. What has arrived waits a moment for more:

- A Check of a new resource and a Diff with changes announce a call. While announced calls have not arrived, the
  batch waits for them; when none is announced, for `QUIET` without an arrival. (Deletes are never announced.)
- An announced call may never come, as what it depends on failed, or as it depends on a call in the batch itself:
  after a stall without any news the batch goes. A stall is `STALL`, and where news come slowly, as on a busy machine,
  `PATIENCE` times the longest pause between two of them, up to `STALL_MOST`.
- The engine runs only so many calls at once. When a batch had to go by a stall with n calls in it, the next one with
  n calls is taken to be all that the engine will send.

`Batch` is pure: the time is an argument. `Batcher` is the task that drives one.
"""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Generic, List, Optional, Set, TypeVar

QUIET = 0.030
STALL = 0.250
STALL_MOST = 2.0
PATIENCE = 4

Item = TypeVar("Item")


class Batch(Generic[Item]):
    """Calls that wait, and those that are announced. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._announced: Set[str] = set()
        self._waiting: List[Item] = []
        self._last_arrival = 0.0
        self._last_news = 0.0
        self._longest_pause = 0.0
        self._ceiling: Optional[int] = None

    def announce(self, urn: str, now: float) -> None:
        """A call for `urn` is likely to come."""
        self._announced.add(urn)
        self._hear(now)

    def withdraw(self, urn: str, now: float) -> None:
        """The call for `urn` came, but has nothing to add to the batch."""
        if urn in self._announced:
            self._announced.discard(urn)
            self._hear(now)

    def arrive(self, urn: str, item: Item, now: float) -> None:
        """The call for `urn` waits in the batch."""
        self._announced.discard(urn)
        self._hear(now)
        self._waiting.append(item)
        self._last_arrival = now
        if self._ceiling is not None and len(self._waiting) > self._ceiling:
            self._ceiling = None

    def _hear(self, now: float) -> None:
        if self._waiting:  # otherwise it may have been busy with something else, such as the last batch
            self._longest_pause = max(self._longest_pause, now - self._last_news)
        self._last_news = now

    @property
    def expecting(self) -> bool:
        """Whether more calls wait or are announced."""
        return bool(self._announced or self._waiting)

    def due(self) -> Optional[float]:
        """When the batch goes if nothing more happens; None while nothing waits."""
        if not self._waiting:
            return None
        if not self._announced or len(self._waiting) == self._ceiling:
            return self._last_arrival + QUIET
        stall = min(STALL_MOST, max(STALL, PATIENCE * self._longest_pause))
        return self._last_news + stall

    def take(self) -> List[Item]:
        """What waits, which no longer does."""
        if self._announced and self._ceiling is None:
            self._ceiling = len(self._waiting)
        taken, self._waiting = self._waiting, []
        self._longest_pause = 0.0
        return taken


class Batcher(Generic[Item]):
    """Hands batches to `work`, one after the other. Every method is for the event loop's thread."""

    def __init__(self, work: Callable[[List[Item]], Awaitable[None]]) -> None:
        """`work` must deal with failures itself: it is what resolves the calls."""
        self._batch: Batch[Item] = Batch()
        self._work = work
        self._news = asyncio.Event()
        self._task: Optional[asyncio.Task[None]] = None

    def announce(self, urn: str) -> None:
        """See Batch.announce."""
        self._batch.announce(urn, self._now())

    def withdraw(self, urn: str) -> None:
        """See Batch.withdraw."""
        self._batch.withdraw(urn, self._now())
        self._news.set()

    def arrive(self, urn: str, item: Item) -> None:
        """See Batch.arrive."""
        self._batch.arrive(urn, item, self._now())
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    @property
    def expecting(self) -> bool:
        """See Batch.expecting."""
        return self._batch.expecting

    def drain(self) -> List[Item]:
        """What waits, taken out without being worked on."""
        return self._batch.take()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        """Work off batches until nothing waits."""
        try:
            while (due := self._batch.due()) is not None:
                remaining = due - self._now()
                if remaining <= 0:
                    await self._work(self._batch.take())
                    continue
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), remaining)
                except asyncio.TimeoutError:
                    continue  # it is due
        finally:
            self._task = None
