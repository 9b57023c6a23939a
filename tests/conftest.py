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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite golden files instead of comparing with them")
