"""What goes wrong on the real kernel in the middle of a change: the last confirmed generation is put back, whole, and
the error says what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfleet.agent.node import Agent
from bpfleet.errors import BpfleetError, HostFailed, ObjectRejected
from bpfleet.loader import syscall
from bpfleet.loader.pins import Pins
from bpfleet.loader.plan import plan
from bpfleet.loader.steps import Step
from bpfleet.model.document import Document
from bpfleet.model.state import NodeState
from tests import fleet
from tests.agent.agent_process import DeadWatchdog
from tests.agent.conftest import items
from tests.contract.conftest import real
from tests.contract.rigs import TAP, UNDERLAY, RealRig, corrupted
from tests.contract.test_xdp import foreign_xdp

pytestmark = pytest.mark.root

OWNER = "test:faults"
MOST_ADDRESSES = 1024


def node(**device: str) -> Document:
    return fleet.document(
        "node",
        "h1",
        address="192.0.2.1",
        devices=[{"name": UNDERLAY, **device}],
        workload_cidrs=["10.77.1.0/24", "fd77:0:0:1::/64"],
    )


def cluster(**changes: Any) -> Document:
    limits = {"addresses": MOST_ADDRESSES}
    return fleet.document("cluster", "fleet", id=1, members=["h1"], limits=limits, **changes)


TAP_ENDPOINT = fleet.document(
    "endpoint", "vm", node="h1", identity="web", addresses=["10.77.1.9"], attach={"interface": TAP}
)
BASE = [
    cluster(),
    node(),
    fleet.identity("web"),
    fleet.identity("db"),
    fleet.endpoint("web-1", 1, 1, "web"),
    fleet.service("front", ["10.96.0.1:80"], [{"labels": {"app": "web"}}]),
]
CHANGE = [
    fleet.endpoint("db-1", 1, 2, "db"),
    TAP_ENDPOINT,
    fleet.policy("db", {"app": "db"}, ingress=[{"peers": [{"labels": {"app": "web"}}]}]),
]
OTHER_PORT = cluster(routing={"port": 4789})
"""A constant of every program, so that each is another one."""


class Watched:
    """A kernel that tells before which step it is; `happen` may do something to the host then."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.happen: Callable[[int, Step], None] = lambda number, step: None
        self.count = 0

    def do(self, step: Step) -> None:
        self.happen(self.count, step)
        self.count += 1
        self._kernel.do(step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


class Host:
    """A host on which BASE is confirmed."""

    def __init__(self, rig: RealRig, root: Path) -> None:
        self.rig = rig
        self.kernel = Watched(rig.kernel)
        self.agent = Agent(root, lambda: self.kernel, local=True, arm=lambda transaction: DeadWatchdog())  # type: ignore[arg-type, return-value]
        self.agent.session_started = 1 << 62  # whoever confirms has come after the change
        self.commit(*BASE)
        self.held = self.read()

    def commit(self, *puts: Document) -> None:
        transaction = self.stage(*puts)["transaction"]
        if transaction is not None:
            self.agent.apply(transaction)
            self.agent.confirm(transaction)

    def stage(self, *puts: Document, **params: Any) -> Any:
        return self.agent.stage({"node": "h1", "owner": OWNER, "puts": items(list(puts), OWNER), **params})  # type: ignore[typeddict-item]

    def want(self) -> NodeState:
        return self.agent.confirmed_state(self.agent.journal().confirmed)

    def read(self) -> NodeState:
        return self.rig.kernel.read(self.want())

    def steps(self, *puts: Document) -> list[Step]:
        """Of a change, which is not made."""
        transaction = self.stage(*puts)["transaction"]
        assert self.agent._staged is not None
        want = self.agent._staged.want
        found = plan(want, self.rig.kernel.read(want))
        self.agent.rollback(transaction)
        return found

    def fails(self, happen: Callable[[int, Step], None], *puts: Document) -> BpfleetError:
        """What a change fails with while `happen` goes on; what was confirmed is there again, and nothing else."""
        generation = self.agent.journal().confirmed.generation
        transaction = self.stage(*puts)["transaction"]
        self.kernel.happen, self.kernel.count = happen, 0
        try:
            with pytest.raises(BpfleetError) as told:
                self.agent.apply(transaction)
        finally:
            self.kernel.happen = lambda number, step: None
        journal = self.agent.journal()
        assert (journal.transaction, journal.confirmed.generation) == (None, generation)
        assert told.value.details["rolled_back"] is True
        assert told.value.details["doing"] and told.value.remedy
        assert plan(self.want(), self.read()) == []
        return told.value


@pytest.fixture(scope="module")
def host(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("faults")
    rig = real(objects, folder, "tcx")
    yield Host(rig, folder / "state")
    rig.close()


def once(at: int, what: Callable[[], None]) -> Callable[[int, Step], None]:
    """Happens before the step of that number, and never again."""

    def happen(number: int, step: Step) -> None:
        if number == at:
            what()

    return happen


def places(steps: list[Step], device: str) -> list[int]:
    """The first step of each kind that is about a device, but for the one that makes it."""
    found: dict[str, int] = {}
    for number, step in enumerate(steps):
        about = getattr(step, "device", None) or getattr(getattr(step, "route", None), "device", None)
        rows = getattr(step, "rows", None)
        if about == device or (rows is not None and device in repr(rows)):
            found.setdefault(step.kind, number)
    return sorted(found.values())


def test_a_veth_that_vanishes_is_named_and_the_change_put_back(host: Host) -> None:
    steps = host.steps(*CHANGE)
    (name,) = {step.device.name for step in steps if step.kind == "EnsureDevice"}  # type: ignore[attr-defined]
    at = places(steps, name)
    assert {"PutRows", "Attach", "SetUp", "PutRoute"} <= {steps[number].kind for number in at}
    for number in at:
        error = host.fails(once(number, lambda: host.rig.lose_device(name)), *CHANGE)
        assert isinstance(error, HostFailed) and name in error.what, error
        assert error.details["step"] >= number > 0
        assert host.read() == host.held


def test_a_tap_that_vanishes_is_named_and_the_change_put_back(host: Host) -> None:
    for kind in ("PutRows", "Attach", "PutRoute"):
        steps = host.steps(*CHANGE)
        number = next(at for at in places(steps, TAP) if steps[at].kind == kind)
        error = host.fails(once(number, lambda: host.rig.lose_device(TAP)), *CHANGE)
        assert isinstance(error, HostFailed) and TAP in error.what, error
        assert host.read() == host.held
        host.rig.sandbox.command("ip", "link", "add", TAP, "type", "veth", "peer", "name", f"{TAP}p")
        host.rig.sandbox.command("ip", "link", "set", TAP, "up")


def test_a_namespace_that_vanishes_is_named_and_the_change_put_back(host: Host) -> None:
    error = host.fails(once(0, lambda: void(host.rig.sandbox.command("ip", "netns", "delete", "w2"))), *CHANGE)
    assert "w2 is not there" in error.what
    assert host.read() == host.held
    host.rig.sandbox.command("ip", "netns", "add", "w2")


def test_the_veth_of_a_confirmed_endpoint_that_vanishes_is_made_again(host: Host) -> None:
    """What is confirmed needs it: it is put back with all that hangs on it, programs before traffic."""
    (name,) = {name for name in host.held.devices if name.startswith("bpf-")}
    steps = host.steps(OTHER_PORT)
    number = next(at for at, step in enumerate(steps) if step.kind == "Attach" and step.device == name)  # type: ignore[attr-defined]
    error = host.fails(once(number, lambda: host.rig.lose_device(name)), OTHER_PORT)
    assert name in error.what
    assert host.read() == host.held


def void(_: object) -> None:
    pass


def stuffed() -> None:
    """Fill the map of addresses to its last entry with rows of somebody's own."""
    fd = syscall.get(str(Pins().map("addresses")))
    info = syscall.map_info(fd)
    assert info.max_entries == MOST_ADDRESSES
    number = 0
    try:
        while True:
            number += 1
            syscall.map_update(fd, (b"\xfd\xee" + number.to_bytes(info.key_size - 2, "big")), bytes(info.value_size))
    except OSError:
        assert number > MOST_ADDRESSES // 2


def test_a_map_that_is_full_in_the_middle_is_named_and_the_change_put_back(host: Host) -> None:
    """There was room when the change was staged; others have taken it since."""
    steps = host.steps(*CHANGE)
    number = next(at for at, step in enumerate(steps) if step.kind == "PutRows" and step.table == "addresses")  # type: ignore[attr-defined]
    assert number > 0, "devices are made before"
    error = host.fails(once(number, lambda: host.rig.sandbox.run(stuffed)), *CHANGE)
    assert isinstance(error, HostFailed) and error.details["step"] == number
    assert f"map addresses is full: it holds {MOST_ADDRESSES} entries" in error.what
    assert host.read() == host.held, "with the rows of others gone"


def test_an_object_that_the_verifier_refuses_after_others_were_loaded(host: Host) -> None:
    """All are loaded before anything is changed; those that were loaded before it are let go."""
    objects = sorted(host.want().programs)
    name = "to_endpoint"
    assert 0 < objects.index(name) < len(objects) - 1
    path = host.rig.objects / f"{name}.bpf.o"
    right, programs, journal = path.read_bytes(), program_ids(host), host.agent.journal()
    path.write_bytes(corrupted(path))
    try:
        with pytest.raises(ObjectRejected, match=name) as told:
            host.stage(OTHER_PORT)
    finally:
        path.write_bytes(right)
    assert any("!read_ok" in line for line in told.value.details["log"])
    assert host.agent.journal() == journal
    assert host.read() == host.held
    assert program_ids(host) == programs, "the very programs that ran before, and no other"


def program_ids(host: Host) -> dict[str, int]:
    def ids() -> dict[str, int]:
        return {path.name: syscall.program_info(syscall.get(str(path))).id for path in Pins().programs.iterdir()}

    return host.rig.sandbox.run(ids)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_an_xdp_program_of_somebody_else_is_refused_before_anything(host: Host, mode: str) -> None:
    writes = host.rig.kernel.writes
    link = foreign_xdp(host.rig)
    try:
        (refusal,) = host.stage(node(xdp=mode))["refused"]
    finally:
        host.rig.sandbox.run(syscall.link_detach, link)
    assert refusal["document"] == "node/h1"
    assert refusal["error"]["where"] == {"resource": "node/h1", "field": "devices[0].xdp"}
    assert f"device {UNDERLAY} runs an XDP program of somebody else: somebody_else" in refusal["error"]["what"]
    assert "xdp: off" in refusal["error"]["remedy"]
    assert host.rig.kernel.writes == writes
    staged = host.stage(node(xdp=mode))  # it is gone: nothing stands in the way
    assert host.agent.rollback(staged["transaction"])["rolled_back"]
