"""The loaded datapath: once for all packet tests, in a network namespace of its own."""

from __future__ import annotations

import os
from typing import Iterator

import pytest

from tests.packet import world
from tests.packet.kernel import BUILD, Datapath, devices


@pytest.fixture(scope="session")
def loaded() -> Iterator[Datapath]:
    """All objects in the kernel."""
    if os.geteuid():
        pytest.skip("loading programs needs root")
    if not (BUILD / "from_endpoint.bpf.o").exists():
        pytest.fail("the objects are not built: run `make objects`")
    with devices(world.DEVICES):
        datapath = Datapath(world.CONSTANTS)
        try:
            yield datapath
        finally:
            datapath.close()


@pytest.fixture
def datapath(loaded: Datapath) -> Datapath:
    """The datapath with nothing in its maps but the world."""
    loaded.reset()
    world.build(loaded)
    return loaded
