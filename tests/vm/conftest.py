"""Virtual machines for the tests: one of each Debian release, booted when a test first wants it, for the whole run.

A test leaves its machine as it found it. Everything is gone when the test process ends, killed or not. The tests of one
release are one group: with `-n 2 --dist loadgroup` each machine, which has one CPU, is tested beside the other.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from bpfleet.errors import HostFailed
from bpfleet.transport.artefact import Artefact, current
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.target import Target
from tools.vm.image import ensure_image, ensure_packages
from tools.vm.machine import Machine
from tools.vm.network import Network
from tools.vm.recipe import RECIPES

SNAPSHOT = Path(__file__).with_name("snapshot.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup`, the tests of one release go to one worker. (xdist 3.8 sees no marks of pytest 9.2.)"""
    return ByRelease(config, log) if config.getoption("dist") == "loadgroup" else None


class ByRelease(LoadScopeScheduling):
    """A test's parameters name its release; what is about none goes with the first."""

    def _split_scope(self, nodeid: str) -> str:
        parameters = nodeid.partition("[")[2]
        return next((release for release in RECIPES if release in parameters), next(iter(RECIPES)))


class Machines:
    """By release, each booted when it is first asked for."""

    def __init__(self, network: Network, say: Callable[[str], None]) -> None:
        self._network = network
        self._say = say
        self._booted: dict[str, Machine | HostFailed] = {}

    def __getitem__(self, release: str) -> Machine:
        if release not in self._booted:
            machine = Machine(ensure_image(RECIPES[release], self._say), self._network, release)
            try:
                machine.wait()
                self._booted[release] = machine
            except HostFailed as failure:
                machine.close()
                self._booted[release] = failure
        found = self._booted[release]
        if isinstance(found, HostFailed):
            raise found
        return found

    def close(self) -> None:
        for machine in self._booted.values():
            if isinstance(machine, Machine):
                machine.close()


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """The machines by release. Images that are missing are built."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"vm: {text}", file=sys.stderr, flush=True)

    ensure_packages(say)
    with Network() as network:
        machines = Machines(network, say)
        try:
            yield machines
        finally:
            machines.close()


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
