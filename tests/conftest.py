"""Options that all tests share."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("bpfleet", deadline=None)
settings.load_profile("bpfleet")


# A shell that starts the tests in the background has them ignore SIGINT, and tests of Ctrl-C would see nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests wait the longest: begun first, so that no worker is left with one of them at the end.
LONGEST = (
    "test_fleet_cuts.py",
    "test_ansible_cuts.py",
    "test_ansible_faults.py",
    "test_kills.py",
    "test_python_example.py",
    "test_pulumi_kills.py",
    "test_ansible.py",
    "test_ansible_numbers.py",
    "test_pulumi_life.py",
    "test_pulumi_order.py",
    "test_identity_numbers.py",
    "test_pulumi_revert.py",
    "test_watchdog.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lab tests before those that only compute, the longest first; within a file all stays as it is."""

    def turn(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.name
        return item.path.parent.name != "e2e", LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=turn)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files instead of comparing with them")
