"""Virtual machines for the tests: one of each Debian release that they want, booted once for the whole run, together.

A test leaves its machine as it found it. Everything is gone when the test process ends, killed or not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bpfleet.transport.artefact import Artefact, current
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.target import Target
from tools.vm.image import ensure_image, ensure_packages
from tools.vm.machine import Machine
from tools.vm.network import Network
from tools.vm.recipe import RECIPES

Machines = Mapping[str, Machine]
SNAPSHOT = Path(__file__).with_name("snapshot.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


def _wants(item: pytest.Item, release: str) -> bool:
    callspec = getattr(item, "callspec", None)
    return release in getattr(item, "fixturenames", ()) or (
        callspec is not None and release in callspec.params.values()
    )


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """The machines by release: those that some test of this run wants. Images that are missing are built first."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"vm: {text}", flush=True)

    ensure_packages(say)
    wanted = [
        recipe for recipe in RECIPES.values() if any(_wants(item, recipe.release) for item in request.session.items)
    ]
    images = [ensure_image(recipe, say) for recipe in wanted]
    with Network() as network:
        started: dict[str, Machine] = {}
        try:
            for image in images:
                started[image.recipe.release] = Machine(image, network, image.recipe.release)
            for machine in started.values():
                machine.wait()
            yield started
        finally:
            for machine in started.values():
                machine.close()


@pytest.fixture
def bookworm(machines: Machines) -> Machine:
    """Debian 12: kernel 6.1, Python 3.11, libbpf 1.1."""
    return machines["bookworm"]


@pytest.fixture
def trixie(machines: Machines) -> Machine:
    """Debian 13: kernel 6.12, Python 3.13, libbpf 1.5."""
    return machines["trixie"]


def patient_fleet() -> Fleet:
    """A controller, reporting on stdout (which pytest shows when a test fails)."""
    patient = Timeouts(launch=180.0, deliver=300.0, request=180.0)
    schedule = Schedule(seconds=120.0)
    return Fleet(lambda node, phase, detail: print(f"{node}: {phase} {detail}"), schedule=schedule, timeouts=patient)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A controller."""
    with patient_fleet() as one:
        yield one


@pytest.fixture(scope="session")
def artefact() -> Artefact:
    """The agent and the objects of this checkout."""
    return current()


def target(machine: Machine, name: str) -> Target:
    """How the controller reaches a machine: by its very key, with ours."""
    return Target(
        name=name,
        host=machine.address,
        private_key_file=str(machine.private_key_file),
        host_key=machine.host_key,
        known_hosts_file=str(machine.known_hosts_file),
    )


def snapshot(machine: Machine) -> list[str]:
    """All on a machine that bpfleet could have touched, line by line."""
    return machine.run("python3 -B -", input=SNAPSHOT.read_bytes()).splitlines()


def changes(before: list[str], after: list[str]) -> list[str]:
    """What is no longer there ("-") and what is new ("+")."""
    return [line for line in difflib.ndiff(before, after) if line.startswith(("-", "+"))]
