"""Names of rules that are gone: kept while something names them, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Set

import pytest

from bpfleet.agent import rulebook
from bpfleet.agent.files import Files
from bpfleet.model.state import RuleName


def rule(number: int) -> RuleName:
    return RuleName(f"p{number}", "ingress", f"ingress[{number}]", "allow", "says so", {"team": "shop"})


def rules(*numbers: int) -> Dict[int, RuleName]:
    return {number: rule(number) for number in numbers}


class Book(rulebook.Rulebook):
    """With what events and flows name given by hand."""

    def __init__(self, files: Files) -> None:
        super().__init__(files, None)
        self.named: Set[int] = set()

    def _named(self) -> Set[int]:
        return self.named


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(Files(tmp_path))


def test_what_went_stays_while_it_is_named(book: Book) -> None:
    book.named = {1, 2}
    book.turn(rules(1, 2, 3), rules(3))
    assert book.read() == rules(1, 2)
    book.named = {2, 3}
    book.turn(rules(3), rules(4))
    assert book.read() == rules(2, 3), "1 is named by nothing any more"
    book.named = {2, 3, 4}
    book.turn(rules(4), rules(3))
    assert book.read() == rules(2, 4), "3 is declared again"
    book.named = set()
    book.turn(rules(3), {})
    assert book.read() == {}
    assert not book.path.exists()


def test_nothing_is_written_where_nothing_went(book: Book, tmp_path: Path) -> None:
    files = Files(tmp_path)
    book = Book(files)
    book.named = {1, 2}
    book.turn(rules(1), rules(1, 2))
    book.turn(rules(1, 2), rules(1))
    assert files.writes == 1
    book.turn(rules(1, 2), rules(1))
    assert files.writes == 1


def test_it_is_bounded(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulebook, "RULES_KEPT", 3)
    for number in range(6):
        book.named.add(number)
        book.turn(rules(number), {})
    assert list(book.read()) == [3, 4, 5], "those that went first are forgotten first"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rules": [{"id": 1}]}', '{"rules": [1]}'])
def test_a_damaged_file_is_as_none(book: Book, text: str) -> None:
    book.path.write_text(text)
    assert book.read() == {}
    book.named = {7}
    book.turn(rules(7), {})
    assert book.read() == rules(7)


def test_without_a_kernel_nothing_is_named(tmp_path: Path) -> None:
    book = rulebook.Rulebook(Files(tmp_path), None)
    book.turn(rules(1), {})
    assert not book.path.exists()
