"""`ground`: one lab of three hosts and three workloads each for all traffic tests, with a fleet over it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bpfleet.lab import Lab
from bpfleet.transport.fleet import Fleet
from tests.e2e.traffic.ground import Ground
from tests.e2e.traffic.station import FOLDER


@pytest.fixture(scope="session")
def ground(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    name = f"traffic-{os.getpid()}"
    folder = tmp_path_factory.mktemp("traffic")
    with Lab.up(name, 3, 3, directory=folder, share=[FOLDER], guarded=True) as lab, Fleet() as fleet:
        one = Ground(lab, fleet)
        try:
            one.start()
            yield one
        finally:
            one.close()
