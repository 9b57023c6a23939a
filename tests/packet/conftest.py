"""The loaded datapath: once for all packet tests, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, Mapping

import pytest

from bpfleet.loader.apply import apply
from bpfleet.loader.generated.layouts import ENUMS
from bpfleet.loader.plan import plan
from bpfleet.loader.real import RealKernel
from bpfleet.model.state import NodeState
from tests.packet import modelled, world
from tests.packet.kernel import BUILD, Datapath, namespace
from tests.packet.place import Place

UNDERLAY_QUEUES = 8
"""Of the underlay device, as network cards have them: a packet's hash chooses."""


@pytest.fixture(scope="package")  # not session: the process is in the namespace until then, and other tests must not be
def devices() -> Iterator[None]:
    """A namespace with the world's devices."""
    if os.geteuid():
        pytest.skip("loading programs needs root")
    if not (BUILD / "from_endpoint.bpf.o").exists():
        pytest.fail("the objects are not built: run `make objects`")
    with namespace():
        make_devices()
        yield


@pytest.fixture(scope="package")
def loaded(devices: None) -> Iterator[Datapath]:
    """All objects in the kernel, of a node that no policy selects."""
    yield from _load(world.CONSTANTS)


@pytest.fixture(scope="package")
def loaded_host(devices: None) -> Iterator[Datapath]:
    """All objects in the kernel, of a node that a policy selects."""
    yield from _load(world.HOST_CONSTANTS)


def _load(constants: Mapping[str, Any]) -> Iterator[Datapath]:
    datapath = Datapath(constants)
    try:
        yield datapath
    finally:
        datapath.close()


def make_devices() -> None:
    """The world's devices: a real tunnel over a veth, whose far end `wire` plays the network, veths for the endpoints a
    and t, whose far ends `workload` and `machine` play their workloads, and idle bridges for the rest."""
    real = ("a", "t", "eth0", "vxlan")
    commands = [
        f"link add name dev-{name} index {index} type bridge"
        for name, index in world.DEVICES.items()
        if name not in real
    ]
    commands += [
        f"link add name dev-a index {world.DEVICES['a']} type veth peer name workload",
        f"link add name dev-t index {world.DEVICES['t']} type veth peer name machine",
        f"link add name dev-eth0 index {world.DEVICES['eth0']} numtxqueues {UNDERLAY_QUEUES} type veth peer name wire "
        f"numrxqueues {UNDERLAY_QUEUES}",
        f"link add name dev-vxlan index {world.DEVICES['vxlan']} type vxlan external dstport {world.TUNNEL_PORT} "
        f"srcport {ENUMS['tunnel_source']['lowest']} {ENUMS['tunnel_source']['highest']}",
        "link set dev-vxlan arp off",
        "link set dev-t multicast off",  # the kernel itself has nothing to say there
    ]
    for name in ("dev-a", "workload", "dev-t", "machine", "dev-eth0", "wire", "dev-vxlan"):
        commands += [f"link set {name} addrgenmode none", f"link set {name} up"]
    commands += [
        f"link set dev-eth0 address {world.UNDERLAY_MAC}",
        f"addr add {world.UNDERLAY}/24 dev dev-eth0",
        "addr add 2001:db8::1/64 dev dev-eth0 nodad",
        f"addr add {modelled.LATE[4]}/24 dev dev-eth0",
        f"addr add {modelled.LATE[6]}/64 dev dev-eth0 nodad preferred_lft 0",
        f"neigh add {world.UNDERLAY_2} lladdr 02:00:00:00:00:99 dev dev-eth0",
        f"neigh add {world.UNDERLAY_6} lladdr 02:00:00:00:00:99 dev dev-eth0",
    ]
    commands += [
        f"route add 10.2.0.0/24 dev dev-vxlan src {world.UNDERLAY}",
        "-6 route add fd00:2::/64 dev dev-vxlan src 2001:db8::1",
    ]
    commands += [f"route add default via {world.UNDERLAY_2}", f"-6 route add default via {world.UNDERLAY_6}"]
    for family in world.ADDRESSES.values():
        commands += [
            f"neigh add {family['t']} lladdr {world.MACHINE_MAC} dev dev-t",
            f"route add {family['t']} dev dev-t",
        ]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
    # As the agent leaves a host.
    for sysctl in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (Path("/proc/sys/net") / sysctl).write_text("1")


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """All packets pass on one CPU: each has copies of connections of its own. Workers beside this one take others."""
    home = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    os.sched_setaffinity(0, {sorted(home)[worker % len(home)]})
    yield
    os.sched_setaffinity(0, home)


@pytest.fixture
def place(devices: None, tmp_path: Path) -> Iterator[Place]:
    """A kernel with pins of its own, for changes by the real plan and apply."""
    for left in Path("/sys/fs/bpf").glob("bpfleet-flips-*"):  # by tests that were killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left)
    pins = f"/sys/fs/bpf/bpfleet-flips-{os.getpid()}"
    output = subprocess.run(["ip", "-o", "link", "show", "dev-a"], capture_output=True, text=True, check=True).stdout
    kernel = RealKernel(BUILD, pins, tmp_path / "logs")
    yield Place(kernel, pins, int(output.partition(":")[0]))
    empty = NodeState()
    apply(kernel, plan(empty, kernel.read(empty)))
    kernel.release()


@pytest.fixture
def datapath(loaded: Datapath) -> Datapath:
    """The datapath with nothing in its maps but the world."""
    return _emptied(loaded)


@pytest.fixture
def host_datapath(loaded_host: Datapath) -> Datapath:
    """The same of a node that a policy selects."""
    return _emptied(loaded_host)


def _emptied(datapath: Datapath) -> Datapath:
    datapath.reset()
    world.build(datapath)
    return datapath
