"""Identity numbers over many forks: none for two sets of labels, the same on all hosts."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bpfleet.model.document import canonical_json
from bpfleet.model.identity import candidates
from tests.unit.collection import module

numbers = module("numbers")

LABELS = [{"role": str(serial)} for serial in range(8)]


def text(labels: dict[str, str]) -> str:
    return canonical_json(labels)


def first(labels: dict[str, str]) -> int:
    return next(candidates(1, labels))


def test_the_first_candidate_unless_it_is_taken() -> None:
    a, b = LABELS[:2]
    assert numbers.allocate(1, [a], {}) == {text(a): first(a)}
    used = {first(a): {text(b)}}
    second = list(zip(range(2), candidates(1, a)))[1][1]
    assert numbers.allocate(1, [a], used) == {text(a): second}
    assert numbers.allocate(1, [a, b], used) == {text(a): second, text(b): first(a)}


def test_a_number_that_two_hold_is_nobodys() -> None:
    a, b = LABELS[:2]
    found = numbers.allocate(1, [a, b], {first(a): {text(a), text(b)}})
    assert first(a) not in found.values()


@given(
    st.lists(st.sampled_from(LABELS), unique_by=text),
    st.dictionaries(
        st.sampled_from([first(labels) for labels in LABELS]),
        st.sets(st.sampled_from([text(labels) for labels in LABELS]), min_size=1, max_size=2),
    ),
    st.sets(st.sampled_from([first(labels) for labels in LABELS])),
)
def test_no_number_for_two_and_none_that_others_have(
    wanted: list[dict[str, str]], used: dict[int, set[str]], struck: set[int]
) -> None:
    found = numbers.allocate(1, wanted, used, struck)
    assert set(found) == {text(labels) for labels in wanted}
    assert len(set(found.values())) == len(found)
    assert not struck & set(found.values())
    for labels, number in found.items():
        assert used.get(number, {labels}) == {labels}


def test_adding_and_removing_others_changes_no_number() -> None:
    before = numbers.allocate(1, LABELS[:4], {})
    used = {number: {labels} for labels, number in before.items()}
    assert before.items() <= numbers.allocate(1, LABELS, used).items()
    assert numbers.allocate(1, LABELS[1:3], used).items() <= before.items()


def _fork(arguments: tuple[str, int]) -> dict[str, Any]:
    directory, serial = arguments
    table = numbers.Table(Path(directory), "shop", 1, LABELS)
    # What each would find by itself differs: only the first one's counts.
    found: dict[str, Any] = table.numbers(lambda: {first(LABELS[0]): {f"fork {serial}"}} if serial % 2 else {})
    return found


def test_twenty_forks_get_the_same_numbers(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(20) as pool:
        found = pool.map(_fork, [(str(tmp_path), serial) for serial in range(40)], chunksize=1)
    assert all(one == found[0] for one in found)
    assert len(set(found[0].values())) == len(LABELS)


def test_a_struck_number_is_replaced_for_all_that_come_later(tmp_path: Path) -> None:
    table = numbers.Table(tmp_path, "shop", 1, LABELS)
    before = table.numbers(dict)
    after = table.strike(first(LABELS[0]), LABELS[0])
    assert after[text(LABELS[0])] != first(LABELS[0])
    rest = {key: number for key, number in before.items() if key != text(LABELS[0])}
    assert rest.items() <= after.items()
    assert numbers.Table(tmp_path, "shop", 1, LABELS).numbers(dict) == after
    # Another host that was refused the same number must not move it on once more.
    assert table.strike(first(LABELS[0]), LABELS[0]) == after
