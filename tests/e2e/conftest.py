"""Lab hosts for the end-to-end tests.

`lab`       one lab for the whole test run (three hosts, two workloads each). A test leaves it as it found it.
`make_lab`  labs of a test's own, removed when the test ends.

Every lab is guarded: it goes down when the test process ends, killed or not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfleet.lab import Lab

_serial = itertools.count(1)


def _name() -> str:
    """A lab's name that no other test run, worker or test has."""
    return f"test-{os.getpid()}-{next(_serial)}"


@pytest.fixture(scope="session", autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: lab hosts are made of namespaces, mounts and bpf")


@pytest.fixture(scope="session")
def lab(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.up(_name(), 3, 2, directory=tmp_path_factory.mktemp("lab"), guarded=True) as up:
        yield up


@pytest.fixture(scope="session")
def lab_name() -> Callable[[], str]:
    """Names for labs that tests bring up themselves."""
    return _name


@pytest.fixture
def make_lab(needs_root: None, tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Lab.up with a name and folder of its own: make_lab(nodes=2, workloads=1, mtu=...)."""
    made: list[Lab] = []

    def make(nodes: int = 1, workloads: int = 1, **options: object) -> Lab:
        made.append(Lab.up(_name(), nodes, workloads, directory=tmp_path, guarded=True, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.down()
