"""Which calls become one transaction: a batch with a clock of its own, and the task that drives it."""

from __future__ import annotations

import asyncio
from typing import List

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provider.batching import PATIENCE, QUIET, STALL, STALL_MOST, Batch, Batcher


def test_nothing_waits() -> None:
    batch: Batch[str] = Batch()
    batch.announce("a", 0.0)
    assert batch.due() is None


def test_unannounced_calls_go_after_quiet() -> None:
    batch: Batch[str] = Batch()
    batch.arrive("a", "a", 1.0)
    batch.arrive("b", "b", 1.02)
    assert batch.due() == 1.02 + QUIET
    assert batch.take() == ["a", "b"]
    assert batch.due() is None and not batch.expecting


def test_a_batch_waits_for_announced_calls() -> None:
    batch: Batch[str] = Batch()
    batch.announce("a", 0.0)
    batch.announce("b", 0.1)
    batch.arrive("a", "a", 0.2)
    assert batch.due() == 0.2 + STALL
    batch.arrive("b", "b", 0.3)
    assert batch.due() == 0.3 + QUIET


def test_news_of_others_put_a_stall_off() -> None:
    batch: Batch[str] = Batch()
    batch.announce("b", 0.0)
    batch.arrive("a", "a", 0.1)
    batch.announce("c", 0.11)
    assert batch.due() == 0.11 + STALL


def test_where_news_come_slowly_a_batch_is_patient() -> None:
    """A busy machine must not make three transactions of one."""
    batch: Batch[str] = Batch()
    for urn in "abcdef":
        batch.announce(urn, 0.0)
    batch.arrive("a", "a", 30.0)
    assert batch.due() == 30.0 + STALL, "what was before anything waited says nothing"
    batch.arrive("b", "b", 30.2)
    assert batch.due() == pytest.approx(30.2 + PATIENCE * 0.2)
    batch.arrive("c", "c", 30.9)
    assert batch.due() == 30.9 + STALL_MOST
    assert batch.take() == ["a", "b", "c"]
    batch.arrive("d", "d", 99.0)
    assert batch.due() == 99.0 + STALL


def test_withdrawn_calls_are_not_waited_for() -> None:
    batch: Batch[str] = Batch()
    batch.announce("b", 0.0)
    batch.arrive("a", "a", 0.1)
    batch.withdraw("b", 0.2)
    assert batch.due() == 0.1 + QUIET


def test_the_engines_parallelism_is_learnt_from_a_stall() -> None:
    batch: Batch[str] = Batch()
    for urn in "abcd":
        batch.announce(urn, 0.0)
    batch.arrive("a", "a", 0.1)
    batch.arrive("b", "b", 0.1)
    assert batch.due() == 0.1 + STALL
    batch.take()
    batch.arrive("c", "c", 1.0)
    assert batch.due() == 1.0 + STALL
    batch.announce("e", 1.0)
    batch.arrive("d", "d", 1.1)
    assert batch.due() == 1.1 + QUIET, "two are all that the engine sends at once"
    batch.take()
    for urn in "efg":
        batch.announce("h", 2.0)
        batch.arrive(urn, urn, 2.0)
    assert batch.due() == 2.0 + STALL, "three came: two is not the limit any more"


@example([("a", "arrive"), *[("a", "withdraw")] * 6, ("a", "announce")]).via("a long pause")
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["announce", "arrive", "withdraw"])), max_size=40))
def test_whatever_happens_a_waiting_batch_is_due_within_a_stall(events: List[tuple[str, str]]) -> None:
    batch: Batch[str] = Batch()
    now, arrived = 0.0, []
    for urn, event in events:
        now += 0.01
        if event == "arrive":
            batch.arrive(urn, urn, now)
            arrived.append(urn)
        else:
            getattr(batch, event)(urn, now)
        due = batch.due()
        assert (due is None) == (not arrived)
        patient = max(STALL, min(STALL_MOST, PATIENCE * now))  # no pause was longer than all that passed
        assert due is None or due <= now + patient
    assert batch.take() == arrived


def test_the_task_hands_over_batches_one_after_the_other() -> None:
    async def scenario() -> List[List[str]]:
        seen: List[List[str]] = []
        working = False

        async def work(items: List[str]) -> None:
            nonlocal working
            assert not working, "two batches at once"
            working = True
            seen.append(items)
            if len(seen) == 1:
                batcher.arrive("c", "c")
            await asyncio.sleep(0)
            working = False
            if len(seen) == 2:
                finished.set()

        finished = asyncio.Event()
        batcher: Batcher[str] = Batcher(work)
        batcher.announce("b")
        batcher.arrive("a", "a")
        batcher.arrive("b", "b")
        await asyncio.wait_for(finished.wait(), 30)
        return seen

    assert asyncio.run(scenario()) == [["a", "b"], ["c"]]


def test_what_is_drained_is_not_worked_on() -> None:
    async def scenario() -> None:
        async def work(items: List[str]) -> None:
            raise AssertionError(items)

        batcher: Batcher[str] = Batcher(work)
        batcher.arrive("a", "a")
        assert batcher.drain() == ["a"]
        await asyncio.sleep(3 * QUIET)

    asyncio.run(scenario())
