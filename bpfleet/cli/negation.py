"""`--not` of `bpfleet observe`: it is about the option that follows, and about no other."""

from __future__ import annotations

import argparse
from typing import Any

from bpfleet.observe.filters import Filter

_PLAIN: dict[str | None, type[argparse.Action]] = {
    None: argparse._StoreAction,
    "append": argparse._AppendAction,
    "store_true": argparse._StoreTrueAction,
}
"""What options are by default, or by the name of their action."""


def refuse_negation(parser: argparse.ArgumentParser) -> None:
    """Options that are added to the parser from now on, but with the actions below, cannot follow --not."""
    for name, action in _PLAIN.items():
        parser.register("action", name, _never_negated(action))


def _never_negated(action: type[argparse.Action]) -> type[argparse.Action]:
    class Checked(action):  # type: ignore[valid-type, misc]
        def __call__(
            self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
        ) -> None:
            if namespace.negate:
                raise argparse.ArgumentError(self, "is no filter, so --not cannot turn it around")
            super().__call__(parser, namespace, values, option_string)

    return Checked


class Not(argparse.Action):
    """Notes that the next filter is negated."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if namespace.negate:
            raise argparse.ArgumentError(self, "stands before no filter")
        namespace.negate = True


class AddFilter(argparse.Action):
    """Appends a Filter with the key that `dest` holds."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        key = self.dest.partition(":")[2]
        namespace.filters = [*namespace.filters, Filter(key, str(values), bool(namespace.negate))]
        namespace.negate = None


class AddNode(argparse.Action):
    """Appends to the nodes that are asked (`node`), or to those that are not (`other_nodes`)."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        into = "other_nodes" if namespace.negate else "node"
        setattr(namespace, into, [*getattr(namespace, into), str(values)])
        namespace.negate = None
