"""Errors say what, where and what to do, and cross the agent's channel whole."""

from __future__ import annotations

import json

import pytest

from bpfleet import errors
from bpfleet.errors import BpfleetError, Conflict, NumberTaken


def test_text_has_what_where_and_remedy() -> None:
    error = Conflict("10.0.0.1 is taken", resource="endpoint/a", field="addresses[0]", remedy="Use another.")
    assert str(error.at(node="h1")) == (
        "resource endpoint/a, field addresses[0], node h1: 10.0.0.1 is taken. Use another."
    )


def test_an_outer_layer_does_not_overwrite_where() -> None:
    assert Conflict("x", node="h1").at(node="h2").where == {"node": "h1"}


@pytest.mark.parametrize(
    "cls",
    [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, BpfleetError)],
)
def test_wire_keeps_class_and_content(cls: type) -> None:
    error = cls("what", node="h1", resource="node/h1", field="f", file="/x", remedy="do", details={"number": 7})
    again = BpfleetError.from_wire(json.loads(json.dumps(error.to_wire())))
    assert type(again) is cls
    assert again.to_wire() == error.to_wire()


def test_an_unknown_code_is_still_an_error() -> None:
    assert type(BpfleetError.from_wire({"code": "FromTheFuture", "what": "x"})) is BpfleetError


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = errors.__doc__ or ""
    for name, item in vars(errors).items():
        if isinstance(item, type) and issubclass(item, BpfleetError):
            assert name in tree
    assert issubclass(NumberTaken, Conflict)
