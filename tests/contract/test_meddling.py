"""What somebody altered or took away in the real kernel is read as a difference and put back; what is others' stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfleet.loader import syscall
from bpfleet.loader.pins import Pins
from bpfleet.model.state import CGROUP_ROOT
from tests.contract.conftest import real
from tests.contract.rigs import UNDERLAY, RealRig
from tests.contract.states import SOCKETS, WEB, state, veth
from tests.contract.test_kernel import bring

pytestmark = pytest.mark.root

TWO = state({1: 65900, 2: 66000}, {65900: WEB, 66000: [(0xFFFFFFFF, 1, 0, 0)]}, services={80: [1, 2]})
"""Two endpoints, a policy for each, and a service with both for backends."""


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def host(request: pytest.FixtureRequest, objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRig]:
    """A host that holds TWO, and things of others at the same hook, in bpffs and among the routes."""
    made = real(objects, tmp_path_factory.mktemp("host"), request.param)
    made.add_foreign()
    bring(made.kernel, TWO)
    yield made
    made.close()


def elements(fd: int) -> Iterator[tuple[bytes, bytes]]:
    info = syscall.map_info(fd)
    key = syscall.map_next_key(fd, None, info.key_size)
    while key is not None:
        value = syscall.map_lookup(fd, key, info.value_size)
        assert value is not None
        yield key, value
        key = syscall.map_next_key(fd, key, info.key_size)


def altered(fd: int) -> None:
    """Every bit of the first value that holds anything is turned over."""
    key, value = next(one for one in elements(fd) if any(one[1]))
    syscall.map_update(fd, key, bytes(byte ^ 0xFF for byte in value))


def blinded(fd: int) -> None:
    """A header that has packets look for nothing; in other entries those bytes are the programs'."""
    key, value = next(one for one in elements(fd) if one[0].startswith(b"\xff" * 4))
    syscall.map_update(fd, key, value[:-3] + bytes(byte ^ 0xFF for byte in value[-3:]))


def removed(fd: int) -> None:
    key, _ = next(elements(fd))
    assert syscall.map_delete(fd, key)


def added(fd: int) -> None:
    """A row of somebody's own, copied from one that is there."""
    key, value = next(elements(fd))
    syscall.map_update(fd, bytes(byte ^ 0xFF for byte in key), value)


def doubled(fd: int) -> None:
    """A row whose key is that of another one but for bytes that no program reads."""
    key, value = next(elements(fd))
    syscall.map_update(fd, key[:-1] + bytes([key[-1] ^ 0xFF]), value)


def of_map(name: str, harm: Callable[[int], None], inner: bool = False) -> Callable[[], None]:
    """Does harm to a pinned map, or to the first inner map in it that holds something."""

    def do() -> None:
        fd = syscall.get(str(Pins().map(name)))
        try:
            if not inner:
                harm(fd)
                return
            for _, number in list(elements(fd)):
                policy = syscall.map_by_id(int.from_bytes(number, "little"))
                try:
                    if any(elements(policy)):
                        harm(policy)
                        return
                finally:
                    os.close(policy)
            raise AssertionError(f"{name} holds nothing")
        finally:
            os.close(fd)

    return do


HARM: dict[str, Callable[[], None]] = {
    "an address means another identity": of_map("addresses", altered),
    "an address is forgotten": of_map("addresses", removed),
    "an address is made up": of_map("addresses", added),
    "an endpoint is another": of_map("endpoints", altered),
    "an endpoint is forgotten": of_map("endpoints", removed),
    "the node's record is another": of_map("node", altered),
    "a rule says something else": of_map("policies", altered, inner=True),
    "a direction has other rules": of_map("policies", blinded, inner=True),
    "a rule is gone": of_map("policies", removed, inner=True),
    "a policy is gone": of_map("policies", removed),
    "a frontend has other backends": of_map("services", altered),
    "a frontend is forgotten": of_map("services", removed),
    "a frontend has a double": of_map("services", doubled),
    "a frontend is made up": of_map("services", added),
    "a backend is another": of_map("backends", altered, inner=True),
    "a list of backends is gone": of_map("backends", removed),
}
PUT_BACK = {"PutRows", "DeleteRows", "SwapInner", "SwitchPolicies", "SettlePolicies"}


@pytest.mark.parametrize("what", HARM)
def test_a_map_that_was_changed_is_put_right(host: RealRig, what: str) -> None:
    foreign = host.foreign()
    host.sandbox.run(HARM[what])
    assert host.kernel.read(TWO) != TWO
    assert {step.kind for step in bring(host.kernel, TWO)} <= PUT_BACK
    assert host.kernel.read(TWO) == TWO
    assert bring(host.kernel, TWO) == []
    assert host.foreign() == foreign


@pytest.mark.parametrize("name", ["connections", "flows", "addresses", "policies"])
def test_a_map_whose_pin_was_removed_is_pinned_again(host: RealRig, name: str) -> None:
    """The very map: what it holds, connections for one, is not lost. No program is loaded again for it."""

    def number() -> int:
        fd = syscall.get(str(Pins().map(name)))
        try:
            return syscall.map_info(fd).id
        finally:
            os.close(fd)

    before = host.sandbox.run(number)
    host.sandbox.run(Pins().map(name).unlink)
    assert host.kernel.read(TWO) != TWO
    bring(host.kernel, TWO)
    assert host.sandbox.run(number) == before
    assert host.kernel.read(TWO) == TWO
    assert bring(host.kernel, TWO) == []


@pytest.mark.parametrize(
    ("device", "hook"), [(UNDERLAY, "ingress"), (veth(1).name, "ingress"), *((CGROUP_ROOT, hook) for hook in SOCKETS)]
)
@pytest.mark.parametrize("pinned", [True, False])
def test_a_detached_program_is_attached_again(host: RealRig, device: str, hook: str, pinned: bool) -> None:
    """Detached by the system call, its pin left or not; where there is no link, the filter is deleted."""
    foreign = host.foreign()
    before = host.kernel.read(TWO).attachments

    def detach() -> None:
        path = Pins().link(device, hook)
        link = syscall.get(str(path))
        try:
            syscall.link_detach(link)
        finally:
            os.close(link)
        if not pinned:
            path.unlink()

    if host.use_tcx or device == CGROUP_ROOT:
        host.sandbox.run(detach)
    else:
        host.sandbox.command("tc", "filter", "del", "dev", device, "ingress", "pref", "1")
    assert host.kernel.read(TWO).attachments != before
    steps = bring(host.kernel, TWO)
    assert [(step.kind, getattr(step, "device", "")) for step in steps] == [("Attach", device)]
    assert getattr(steps[0], "hook", "") == hook
    assert host.kernel.read(TWO) == TWO
    assert host.foreign() == foreign
