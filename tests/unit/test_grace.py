"""Expedited grace periods: for many waits only, and never left on."""

from __future__ import annotations

from pathlib import Path
from typing import ContextManager, Sequence, Tuple
from unittest.mock import Mock

import pytest

from bpfleet.agent.node import Agent
from bpfleet.loader.fake import FakeKernel
from bpfleet.loader.grace import MANY, expedited
from bpfleet.loader.steps import Detach, RemoveInner, SetDown, Step, SwapInner
from bpfleet.model.state import Table
from tests import fleet


@pytest.fixture
def files(tmp_path: Path) -> Tuple[Path, Path]:
    (tmp_path / "setting").write_text("0\n")
    return tmp_path / "setting", tmp_path / "mark"


def waits(number: int) -> list[Step]:
    return [Detach(f"d{index}", "ingress") for index in range(number)]


def test_only_while_there_are_many_waits(files: Tuple[Path, Path]) -> None:
    setting, mark = files
    few = [*waits(MANY - 1), *(SetDown(f"d{index}") for index in range(1000))]
    with expedited(few, *files):
        assert setting.read_text() == "0\n"
    with expedited(waits(MANY), *files):
        assert setting.read_text() == "1"
    assert setting.read_text() == "0" and not mark.exists()


def test_every_inner_map_is_a_wait(files: Tuple[Path, Path]) -> None:
    setting, _ = files
    maps = {number: Table((), ()) for number in range(MANY)}
    for many, few in (
        (SwapInner("policies_staged", maps), SwapInner("policies_staged", {1: maps[1]})),
        (RemoveInner("policies", tuple(maps)), RemoveInner("policies", (1,))),
    ):
        with expedited([few], *files):
            assert setting.read_text().strip() == "0"
        with expedited([many], *files):
            assert setting.read_text() == "1"


def test_a_step_that_fails_leaves_it_off(files: Tuple[Path, Path]) -> None:
    with pytest.raises(OSError), expedited(waits(MANY), *files):
        raise OSError
    assert files[0].read_text() == "0" and not files[1].exists()


def test_what_a_dead_process_left_on_is_put_back_by_the_next_change(files: Tuple[Path, Path]) -> None:
    setting, mark = files
    setting.write_text("1")
    mark.touch()
    with expedited(waits(1), *files):
        pass
    assert setting.read_text() == "0" and not mark.exists()


class Hurried(FakeKernel):
    """Is told of what is done in a hurry."""

    def __init__(self) -> None:
        super().__init__(dict(fleet.facts(1).devices), ("w1", "w2"))
        self.told: list[list[Step]] = []

    def hurry(self, steps: Sequence[Step]) -> ContextManager[None]:
        self.told.append(list(steps))
        return super().hurry(steps)


def test_where_nothing_was_done_yet_it_is_put_back_too(tmp_path: Path) -> None:
    kernel = Hurried()
    changed = Agent(tmp_path, lambda: kernel, local=True, arm=Mock())
    puts = [{"document": one.to_json(), "owner": "o", "metadata": {}} for one in fleet.quickstart()]
    changed.stage({"node": "h1", "owner": "o", "puts": puts})  # type: ignore[typeddict-item]
    assert changed._staged is not None
    changed._begin(changed.journal(), changed._staged, 60.0)  # it dies here
    kernel.release()
    assert "ended before it was done" in str(Agent(tmp_path, lambda: kernel, local=True).resolve())
    assert kernel.told == [[]]


def test_an_administrators_setting_stays(files: Tuple[Path, Path]) -> None:
    files[0].write_text("1\n")
    with expedited(waits(MANY), *files):
        pass
    assert files[0].read_text() == "1\n"


def test_a_kernel_without_it(tmp_path: Path) -> None:
    with expedited(waits(MANY), tmp_path / "none", tmp_path / "mark"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_no_mark_can_be_left_it_is_not_set(files: Tuple[Path, Path]) -> None:
    setting, mark = files
    with expedited(waits(MANY), setting, mark / "in-a-folder-that-is-not-there"):
        assert setting.read_text() == "0\n"
