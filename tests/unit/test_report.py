"""How the agent names what the kernel tells by numbers and by its monotonic clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent import report
from bpfleet.agent.node import Agent
from bpfleet.errors import TransactionFailed
from bpfleet.model.document import Document
from tests import fleet
from tests.agent.agent_process import DeadWatchdog
from tests.agent.conftest import items
from tests.unit.test_transport_numbers import Machine

EPOCH = 1_800_000_000.0


class Clocks:
    """Both clocks of a process that is put aside for 20 ms before one of its questions."""

    CLOCK_MONOTONIC = 1

    def __init__(self, aside: int) -> None:
        self._aside = aside
        self._asked = 0
        self._now = 5000.0

    def _tick(self) -> float:
        self._now += 0.02 if self._asked == self._aside else 1e-6
        self._asked += 1
        return self._now

    def clock_gettime(self, which: int) -> float:
        assert which == self.CLOCK_MONOTONIC
        return self._tick()

    def time(self) -> float:
        return EPOCH + self._tick()


@pytest.mark.parametrize("aside", range(10))
def test_a_process_that_has_to_wait_takes_no_clock_for_set(monkeypatch: pytest.MonkeyPatch, aside: int) -> None:
    """Or its events would go back by that time, before those that it told just now, and forth again."""
    monkeypatch.setattr(report, "time", Clocks(aside))
    assert report._boot_offset() == pytest.approx(EPOCH, abs=report._CLOCK_MOVED_SECONDS / 10)


class Host:
    """An agent on a host that has a node's address."""

    def __init__(self, folder: Path) -> None:
        machine = Machine(folder, "192.168.77.1")
        arm: Any = lambda transaction: DeadWatchdog()  # noqa: E731
        self.agent = Agent(folder, lambda: machine.kernel, local=True, arm=arm)
        self.agent.session_started = 1 << 62  # whoever confirms has come after the change

    def apply(self, *puts: Document) -> str:
        staged = self.agent.stage({"node": "h1", "owner": "test", "puts": items(list(puts), "test")})  # type: ignore[typeddict-item]
        transaction = str(staged["transaction"])
        self.agent.apply(transaction)
        return transaction


def whose(book: report._Book, address: str) -> object:
    return book._current().end(address, 0, fleet.identity("web").spec["number"], 1).get("endpoint")


@pytest.mark.parametrize("begun", [True, False])
def test_a_change_that_is_just_being_put_back_ends_no_stream(tmp_path: Path, begun: bool) -> None:
    """Its generation's file goes first, then the journal says so. Names are those of what is confirmed meanwhile."""
    host = Host(tmp_path)
    base = (fleet.cluster(["h1"]), fleet.node(1), fleet.identity("web"), fleet.endpoint("web-1", 1, 1, "web"))
    host.agent.confirm(host.apply(*base))
    book = report._Book(host.agent)
    if begun:
        assert whose(book, "10.77.1.1") == "web-1"
    host.apply(fleet.endpoint("web-2", 1, 2, "web"))
    host.agent.store.path(2).unlink()
    reader = Host(tmp_path)  # another process, which has loaded nothing yet
    book._agent = reader.agent
    assert (whose(book, "10.77.1.1"), whose(book, "10.77.1.2")) == ("web-1", None)
    host.agent.rollback()
    assert (whose(book, "10.77.1.1"), whose(book, "10.77.1.2")) == ("web-1", None)


def test_what_was_staged_before_a_node_was_cleared_is_not_applied_after_it(tmp_path: Path) -> None:
    """The journal of the new node counts from the start, and comes to the number at which the change was staged."""
    host, other = Host(tmp_path), Host(tmp_path)
    base = (fleet.cluster(["h1"]), fleet.node(1), fleet.identity("web"), fleet.endpoint("web-1", 1, 1, "web"))
    host.agent.confirm(host.apply(*base))
    puts = items([fleet.endpoint("web-2", 1, 2, "web")], "test")
    staged = host.agent.stage({"node": "h1", "owner": "test", "puts": puts})
    assert staged["transaction"] is not None
    other.agent.wipe("h1")
    other.agent.confirm(other.apply(*base[:3]))
    with pytest.raises(TransactionFailed, match="another transaction changed the node"):
        host.agent.apply(staged["transaction"])
    held = other.agent.store.load(other.agent.journal().confirmed).items
    assert set(held) == {one.key for one in base[:3]}
