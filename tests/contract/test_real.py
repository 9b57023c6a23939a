"""What only this machine's kernel can show: libbpf, verifier, pins, links, namespaces."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfleet.errors import HostFailed, HostUnfit, InvalidInput, ObjectRejected
from bpfleet.loader import libbpf, links, syscall
from bpfleet.loader.apply import apply
from bpfleet.loader.libbpf import Libbpf
from bpfleet.loader.maps import Maps
from bpfleet.loader.objects import Objects
from bpfleet.loader.pins import Pins
from bpfleet.loader.plan import plan
from bpfleet.loader.requests import Requests
from bpfleet.loader.rows import STRAY
from bpfleet.loader.steps import Attach, Detach, EnsureDevice, LoadProgram
from bpfleet.model.state import NodeState, Program, Table, Vxlan
from tests.agent.pythons import python39
from tests.contract.rigs import UNDERLAY, RealRig, with_constants
from tests.contract.states import EMPTY, ONE, TWO, entries, veth
from tests.contract.test_kernel import bring

pytestmark = pytest.mark.root

HOOK = (veth(1).name, "ingress")
PIN = Path(f"/sys/fs/bpf/bpfleet/links/{HOOK[0]}-{HOOK[1]}")


def ours(device: str, hook: str = "ingress") -> list[tuple[int, int]]:
    return syscall.tcx_query(links.device_index(device) or 0, syscall.ATTACH_TYPES[hook])


# -- libbpf ------------------------------------------------------------------------------------------------------------


def test_a_missing_symbol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(libbpf.SYMBOLS, "bpf_object__levitate", ([], None))
    with pytest.raises(HostUnfit, match=r"version 1\.\d+.* has no bpf_object__levitate"):
        Libbpf()


def test_a_missing_library_is_named() -> None:
    with pytest.raises(HostUnfit, match=r"libbpf\.so\.99 cannot be loaded"):
        Libbpf("libbpf.so.99")


def test_a_library_that_is_not_libbpf() -> None:
    with pytest.raises(HostUnfit, match="older than"):
        Libbpf("libc.so.6")


def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "MINIMUM", (99, 0))
    with pytest.raises(HostUnfit, match=r"libbpf is 1\.\d+"):
        Libbpf()


# -- objects -----------------------------------------------------------------------------------------------------------


def test_facts_have_what_the_stack_takes_in_besides_its_addresses(real_rig: RealRig) -> None:
    real_rig.sandbox.command("ip", "address", "add", "2001:db8::1/64", "dev", UNDERLAY)
    real_rig.sandbox.command("ip", "address", "add", "198.51.100.4/31", "dev", UNDERLAY)
    assert set(real_rig.kernel.facts("h1").shared) - {"127.255.255.255"} == {"192.0.2.255", "2001:db8::"}


def test_the_verifiers_log_is_kept(real_rig: RealRig, tmp_path: Path) -> None:
    real_rig.reject("from_tunnel")
    with pytest.raises(ObjectRejected) as caught:
        real_rig.kernel.prepare(TWO.programs)
    details = caught.value.details
    assert details["errno"] == 13
    assert any("!read_ok" in line for line in details["log"])
    assert "!read_ok" in Path(details["log_path"]).read_text()
    assert Path(details["log_path"]).parent == tmp_path / "logs"
    assert json.loads(json.dumps(caught.value.to_wire())) == caught.value.to_wire()


def test_a_log_that_cannot_be_kept_does_not_hide_the_error(real_rig: RealRig, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the directory would be")
    real_rig.reject("from_tunnel")
    with pytest.raises(ObjectRejected) as caught:
        real_rig.kernel.prepare(TWO.programs)
    assert caught.value.details["log_path"] == ""
    assert any("!read_ok" in line for line in caught.value.details["log"])


def test_maps_that_the_host_has_no_memory_for_are_told_from_a_program_that_is_refused(
    real_rig: RealRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(opened: libbpf.Object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "bpf_object__load")

    monkeypatch.setattr(libbpf.Object, "load", load)
    with pytest.raises(HostFailed, match="the host has no memory for the maps of object") as caught:
        real_rig.kernel.prepare(TWO.programs)
    assert not isinstance(caught.value, ObjectRejected)
    assert "Lower the limits of the cluster" in caught.value.remedy
    assert real_rig.left() == set()


def test_an_unknown_constant_is_named(real_rig: RealRig) -> None:
    program = Program("from_tunnel", {"gravity": 1})
    with pytest.raises(InvalidInput, match="from_tunnel has no load-time constant gravity"):
        real_rig.kernel.prepare({"from_tunnel": program})
    assert real_rig.left() == set()


def test_an_object_of_another_build_is_refused(real_rig: RealRig) -> None:
    """Rename a field in the object's type information: the layouts that Python encodes by are then not its own."""
    path = real_rig.objects / "from_endpoint.bpf.o"
    data = path.read_bytes()
    assert data.count(b"policy_revision\0") == 1
    path.write_bytes(data.replace(b"policy_revision\0", b"policy_rewision\0"))
    with pytest.raises(HostFailed) as caught:
        real_rig.kernel.prepare(TWO.programs)
    assert "endpoints" in str(caught.value.field) or "connections" in str(caught.value.field)
    assert "policy_re" in str(caught.value.field)
    assert real_rig.left() == set()


def test_a_missing_object_is_named(real_rig: RealRig) -> None:
    (real_rig.objects / "to_tunnel.bpf.o").unlink()
    with pytest.raises(HostFailed, match="cannot read object to_tunnel"):
        real_rig.kernel.prepare(TWO.programs)
    assert real_rig.left() == set()


def test_constants_reach_the_program(real_rig: RealRig) -> None:
    program = Program("from_underlay", {"tunnel_port": 4789})
    real_rig.kernel.do(LoadProgram(program))

    def rodata() -> bytes:
        found = Objects(real_rig.objects, Pins(), Path())
        fd = syscall.get(str(found.pin(program)))
        for number in syscall.program_info(fd).map_ids:
            inner = syscall.map_by_id(number)
            info = syscall.map_info(inner)
            if info.name.endswith(".rodata"):
                return syscall.map_lookup(inner, bytes(4), info.value_size) or b""
        raise AssertionError("no .rodata")

    assert real_rig.sandbox.run(rodata)[:2] == (4789).to_bytes(2, "little")


def test_the_same_object_is_never_loaded_twice(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    before = real_rig.sandbox.run(_program_ids)
    bring(real_rig.kernel, ONE)
    bring(real_rig.kernel, TWO)
    assert real_rig.sandbox.run(_program_ids) == before


def _program_ids() -> dict[str, int]:
    return {
        path.name: syscall.program_info(syscall.get(str(path))).id
        for path in Path("/sys/fs/bpf/bpfleet/programs").iterdir()
    }


def test_maps_keep_their_contents_when_programs_change(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    before = real_rig.sandbox.run(_map_ids)
    bring(real_rig.kernel, with_constants(TWO, {"events_slots_mask": 127}))
    assert real_rig.sandbox.run(_map_ids) == before


def _map_ids() -> dict[str, int]:
    return {
        path.name: syscall.map_info(syscall.get(str(path))).id for path in Path("/sys/fs/bpf/bpfleet/maps").iterdir()
    }


def test_a_map_of_another_layout_goes(real_rig: RealRig) -> None:
    bring(real_rig.kernel, ONE)

    def leave_one() -> None:
        fd = syscall.map_create(syscall.MAP_HASH, 4, 4, 1)
        syscall.pin(fd, "/sys/fs/bpf/bpfleet/maps/addresses_v0123456789ab")
        os.close(fd)

    real_rig.sandbox.run(leave_one)
    assert [step.describe() for step in bring(real_rig.kernel, ONE)] == ["remove map addresses_v0123456789ab"]


# -- links -------------------------------------------------------------------------------------------------------------


def test_what_others_have_in_our_directory_is_left(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    theirs = Path("/sys/fs/bpf/bpfleet/theirs")
    real_rig.sandbox.run(theirs.mkdir)
    bring(real_rig.kernel, EMPTY)
    real_rig.kernel.release()
    assert real_rig.left() == {str(theirs), str(theirs.parent)}


def test_a_link_whose_pin_is_lost_is_adopted(real_rig: RealRig) -> None:
    """The link is held by somebody else, say a process; the program never stops judging."""
    bring(real_rig.kernel, TWO)
    link = real_rig.link_id(*HOOK)
    held = real_rig.sandbox.run(syscall.get, str(PIN))
    real_rig.sandbox.run(PIN.unlink)
    assert [step.kind for step in bring(real_rig.kernel, TWO)] == ["Attach"]
    assert real_rig.link_id(*HOOK) == link
    os.close(held)
    assert real_rig.kernel.read(TWO) == TWO


def test_a_link_that_is_being_made_meanwhile_is_passed_over(real_rig: RealRig) -> None:
    """The kernel lists a link before it can be opened; tcx waits for a grace period in between."""
    bring(real_rig.kernel, TWO)
    pin = Objects(real_rig.objects, Pins(), Path()).pin(TWO.programs["to_endpoint"])
    program = real_rig.sandbox.run(syscall.get, str(pin))
    enough = threading.Event()

    def make() -> int:
        made = 0
        while not enough.is_set():
            # At the loopback device. The one before is still there while the other thread holds it.
            with contextlib.suppress(FileExistsError):
                os.close(syscall.tcx_attach(program, 1, syscall.TCX_INGRESS))
                made += 1
        return made

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(real_rig.sandbox.run, make)
        try:
            for _ in range(300):
                for fd in syscall.links():
                    os.close(fd)
        finally:
            enough.set()
        assert made.result() > 0
    os.close(program)


def test_a_second_program_of_ours_is_taken_away(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)

    def attach_twice() -> int:
        fd = syscall.get(str(Objects(real_rig.objects, Pins(), Path()).pin(TWO.programs["to_endpoint"])))
        return syscall.tcx_attach(fd, links.device_index(HOOK[0]) or 0, syscall.TCX_INGRESS)

    second = real_rig.sandbox.run(attach_twice)
    assert len(real_rig.sandbox.run(ours, HOOK[0])) == 2
    assert [step.kind for step in bring(real_rig.kernel, TWO)] == ["Attach"]
    assert len(real_rig.sandbox.run(ours, HOOK[0])) == 1
    os.close(second)


def test_our_program_judges_before_those_of_others(real_rig: RealRig) -> None:
    """A program that lets a packet pass ends the hook, so behind it ours would judge nothing."""
    real_rig.add_foreign()
    bring(real_rig.kernel, ONE)
    attached = [link for _, link in real_rig.sandbox.run(ours, UNDERLAY)]
    assert len(attached) == 2
    assert attached[0] == real_rig.link_id(UNDERLAY, "ingress")


def test_a_renamed_device_keeps_its_link(real_rig: RealRig) -> None:
    bring(real_rig.kernel, ONE)
    link = real_rig.link_id(UNDERLAY, "ingress")
    real_rig.sandbox.command("ip", "link", "set", UNDERLAY, "down")
    real_rig.sandbox.command("ip", "link", "set", UNDERLAY, "name", "wan.0")
    attachments = {**ONE.attachments, ("wan.0", "ingress"): "from_underlay"}
    del attachments[(UNDERLAY, "ingress")]
    want = dataclasses.replace(ONE, attachments=attachments, sysctls={})
    bring(real_rig.kernel, want)
    assert real_rig.kernel.read(want) == want
    assert [link for _, link in real_rig.sandbox.run(ours, "wan.0")] == [link]


def test_a_hook_is_changed_without_a_look_at_all_the_others(real_rig: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(real_rig.kernel, TWO)
    asked: list[Path] = []
    really = links.pinned_link
    monkeypatch.setattr(links, "pinned_link", lambda path: asked.append(path) or really(path))
    for want in (with_constants(TWO, {"events_slots_mask": 127}), EMPTY):
        steps = plan(want, real_rig.kernel.read(want))
        at_devices = [step for step in steps if isinstance(step, (Attach, Detach))]
        assert len(at_devices) > 4
        asked.clear()
        real_rig.sandbox.run(apply, real_rig.real, steps)
        assert len(asked) <= 2 * len(at_devices)
    assert real_rig.left() == set()


def test_a_renamed_device_is_let_go(real_rig: RealRig) -> None:
    bring(real_rig.kernel, ONE)
    real_rig.sandbox.command("ip", "link", "set", UNDERLAY, "down")
    real_rig.sandbox.command("ip", "link", "set", UNDERLAY, "name", "wan.0")
    bring(real_rig.kernel, EMPTY)
    assert real_rig.sandbox.run(ours, "wan.0") == []
    assert real_rig.sandbox.run(Pins().list_links) == []


def test_a_device_that_went_to_another_namespace(real_rig: RealRig) -> None:
    """Its index may by chance be that of a device here."""
    bring(real_rig.kernel, ONE)
    index = real_rig.sandbox.run(links.device_index, UNDERLAY)
    real_rig.sandbox.command("ip", "link", "set", UNDERLAY, "netns", "w2")
    real_rig.sandbox.command(
        *("ip", "link", "add", "name", "twin0", "index", str(index), "type", "veth", "peer", "name", "twin1")
    )
    real_rig.sandbox.run(apply, real_rig.real, plan(EMPTY, real_rig.kernel.read(EMPTY)))
    assert real_rig.kernel.read(EMPTY) == EMPTY
    assert real_rig.sandbox.run(Pins().list_links) == []


# -- maps --------------------------------------------------------------------------------------------------------------


def test_a_stray_value_is_a_difference(real_rig: RealRig) -> None:
    """A field that no row names is zero; something there is seen, and put right."""
    bring(real_rig.kernel, TWO)
    table = Table(("ifindex",), ("identity",), {(veth(1).name,): (65900,)})
    pins = Pins()

    def read() -> object:
        return Maps(pins, lambda: None).read_table("endpoints", table)

    found = real_rig.sandbox.run(read)
    assert found.rows[(veth(1).name,)] == (65900, STRAY)  # type: ignore[attr-defined]


def test_a_row_of_a_lost_device_shows_its_number_and_goes(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    index = real_rig.sandbox.run(links.device_index, veth(2).name)
    real_rig.lose_device(veth(2).name)
    assert (index,) in real_rig.kernel.read(ONE).tables["endpoints"].rows
    bring(real_rig.kernel, ONE)
    assert real_rig.kernel.read(ONE) == ONE


def test_many_rows_in_few_writes(real_rig: RealRig) -> None:
    addresses = {(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}",): (66000 + n, 0, "192.0.2.2") for n in range(10_000)}
    policies = {70000 + n: entries([(n, 0, 6, port) for port in range(1, 9)]) for n in range(300)}
    want = NodeState(
        programs={"from_endpoint": Program("from_endpoint")},
        tables={"addresses": Table(("address",), ("identity", "ifindex", "tunnel_endpoint"), addresses)},
        nested={"policies": policies},
    )
    real_rig.kernel.prepare(want.programs)
    before = real_rig.kernel.writes
    apply(real_rig.kernel, plan(want, real_rig.kernel.read(want)))
    assert real_rig.kernel.writes - before < 2 + 2 * 300 + 2 + 2, "rows go in batches, inner maps in two"
    assert real_rig.kernel.read(want) == want
    fewer = dataclasses.replace(want, nested={"policies": {}})
    bring(real_rig.kernel, fewer)
    assert real_rig.kernel.read(fewer) == fewer


def test_a_full_map_is_named(real_rig: RealRig) -> None:
    real_rig.kernel.prepare(ONE.programs)
    rows = {(n,): (1, 0, "", "") for n in range(1, 10_000)}
    table = Table(("ifindex",), ("identity", "flags", "workload_mac", "device_mac"), rows)
    with pytest.raises(HostFailed, match="map endpoints is full: it holds 8192 entries"):
        real_rig.sandbox.run(Maps(Pins(), lambda: None).put_rows, "endpoints", table)


def test_without_batches_one_by_one(real_rig: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a map type knows no batches the kernel says ENOTSUPP, EOPNOTSUPP or EINVAL."""

    def refuse(*_: object) -> None:
        raise OSError(524, "unknown error 524")

    for name in ("update_batch", "delete_batch", "lookup_batch"):
        monkeypatch.setattr(syscall, name, refuse)
    bring(real_rig.kernel, TWO)
    assert real_rig.kernel.read(TWO) == TWO
    bring(real_rig.kernel, ONE)
    assert real_rig.kernel.read(ONE) == ONE


def test_a_new_index_is_a_new_revision(real_rig: RealRig) -> None:
    """Connections remember indexes: the revision in the map changes although the wanted number is the same."""

    def revision() -> bytes | None:
        return syscall.map_lookup(syscall.get(str(Pins().map("node"))), bytes(4), 8)

    bring(real_rig.kernel, TWO)
    before = real_rig.sandbox.run(revision)
    real_rig.lose_device(veth(1).name)
    bring(real_rig.kernel, TWO)
    assert real_rig.sandbox.run(revision) != before


# -- devices and routes ------------------------------------------------------------------------------------------------


def test_the_inside_of_a_namespace(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    inside = ("ip", "-n", "w1")
    assert "mtu 1450" in real_rig.sandbox.command(*inside, "link", "show", "eth0")
    routes = real_rig.sandbox.command(*inside, "route")
    assert "default via 169.254.1.1 dev eth0 proto static onlink" in " ".join(routes.split())
    assert "default via fe80::1 dev eth0" in real_rig.sandbox.command(*inside, "-6", "route")
    neighbours = real_rig.sandbox.command(*inside, "neigh")
    assert neighbours.count(veth(1).mac) == 2 and neighbours.count("PERMANENT") == 2
    assert "tentative" not in real_rig.sandbox.command(*inside, "addr")
    assert "fe80" not in real_rig.sandbox.command(*inside, "addr", "show", "eth0")


@pytest.mark.parametrize(
    "damage",
    [
        "ip -n w1 link set eth0 down",
        "ip -n w1 addr flush dev eth0",
        "ip -n w1 route del default",
        "ip -n w1 neigh del 169.254.1.1 dev eth0",
        "ip -n w1 addr add 10.99.0.1/32 dev eth0",
        "ip neigh flush nud permanent",
        f"ip link set {veth(1).name} down",
        f"ip link set {veth(1).name} mtu 1300",
        "ip link set bpfleet_vxlan arp on",
        f"ip route flush dev {veth(1).name}",
    ],
)
def test_damage_is_seen_and_repaired(real_rig: RealRig, damage: str) -> None:
    bring(real_rig.kernel, TWO)
    real_rig.sandbox.command(*damage.split())
    assert real_rig.kernel.read(TWO) != TWO
    bring(real_rig.kernel, TWO)
    assert real_rig.kernel.read(TWO) == TWO


def test_a_tunnel_device_that_sends_from_other_ports_is_made_again(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    wanted = next(device for device in TWO.devices.values() if isinstance(device, Vxlan))
    real_rig.sandbox.command("ip", "link", "del", wanted.name)
    of_any_port = ["dstport", str(wanted.port), "external", "nolearning"]
    added = ["ip", "link", "add", wanted.name, "address", wanted.mac, "mtu", str(wanted.mtu), "type", "vxlan"]
    real_rig.sandbox.command(*added, *of_any_port)
    real_rig.sandbox.command("ip", "link", "set", wanted.name, "arp", "off", "up")
    found = real_rig.kernel.read(TWO).devices[wanted.name]
    assert found.rebuild and "sends from other UDP ports" in found.lacks
    bring(real_rig.kernel, TWO)
    assert real_rig.kernel.read(TWO) == TWO


def test_a_namespace_made_again(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    real_rig.sandbox.command("ip", "netns", "del", "w1")
    real_rig.sandbox.command("ip", "netns", "add", "w1")
    bring(real_rig.kernel, TWO)
    assert real_rig.kernel.read(TWO) == TWO


def test_a_new_veth_takes_few_sockets_and_sends(real_rig: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reboot makes a thousand of them anew."""
    bring(real_rig.kernel, ONE)
    real_rig.lose_device(veth(1).name)
    made: list[str] = []

    def counted(name: str, what: str) -> None:
        method = getattr(Requests, name)

        def call(*arguments: Any) -> Any:
            made.append(what)
            return method(*arguments)

        monkeypatch.setattr(Requests, name, call)

    counted("__init__", "socket")
    counted("exchange", "send")
    real_rig.kernel.do(EnsureDevice(veth(1)))
    assert (made.count("socket"), made.count("send")) == (2, 3)


def test_a_taken_name_inside_is_not_overwritten(real_rig: RealRig) -> None:
    real_rig.sandbox.command("ip", "-n", "w1", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    with pytest.raises(HostFailed, match="w1 has a device eth0 already"):
        bring(real_rig.kernel, ONE)


def test_a_route_of_others_is_not_overwritten(real_rig: RealRig) -> None:
    real_rig.sandbox.command(*f"ip route add 10.77.1.1/32 dev {UNDERLAY}".split())
    with pytest.raises(HostFailed, match=r"another route to 10\.77\.1\.1/32"):
        bring(real_rig.kernel, ONE)


# -- processes ---------------------------------------------------------------------------------------------------------

BRING = """
import sys, time
from pathlib import Path
from bpfleet.loader import syscall
from bpfleet.loader.apply import apply
from bpfleet.loader.plan import plan
from tests.contract.rigs import RealRig
from tests.contract.states import EMPTY, TWO

rig = RealRig(Path(sys.argv[1]), Path(sys.argv[2]))
for want in (TWO, EMPTY, TWO):
    rig.kernel.prepare(want.programs)
    rig.sandbox.run(apply, rig.real, plan(want, rig.kernel.read(want)))
    assert rig.kernel.read(want) == want
def ids():
    return [syscall.program_info(syscall.get(str(path))).id for path in Path("/sys/fs/bpf/bpfleet/programs").iterdir()]
print(*rig.sandbox.run(ids), flush=True)
if sys.argv[3] == "wait":
    time.sleep(600)
rig.close()
"""


def started(python: str, objects: Path, scratch: Path, then: str) -> subprocess.Popen[str]:
    """Another process that brings up a host of its own; it prints the ids of its programs."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [python, "-B", "-c", BRING, str(objects), str(scratch), then],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_under_the_oldest_python(real_rig: RealRig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    process = started(python39(), real_rig.objects, tmp_path / "other", "end")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and len(output.split()) == 5


def test_a_sandbox_ends_with_its_process(real_rig: RealRig, tmp_path: Path) -> None:
    """Killed, it leaves no program, and so no link, map or device either."""
    (tmp_path / "other").mkdir()
    process = started(sys.executable, real_rig.objects, tmp_path / "other", "wait")
    assert process.stdout is not None
    ids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(ids) == 5
    for _ in range(600):  # the kernel frees them a little later
        if not any(_alive(number) for number in ids):
            return
        time.sleep(0.1)
    pytest.fail(f"programs {ids} are still there")


def _alive(number: int) -> bool:
    try:
        os.close(syscall.program_by_id(number))
    except FileNotFoundError:
        return False
    return True


# -- cost --------------------------------------------------------------------------------------------------------------


def test_nothing_left_when_empty_again(real_rig: RealRig) -> None:
    bring(real_rig.kernel, TWO)
    bring(real_rig.kernel, EMPTY)
    assert real_rig.left() == set()
