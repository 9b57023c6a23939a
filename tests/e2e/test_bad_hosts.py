"""Hosts that lack something.

Each is a clear error that names the node and a remedy, changes nothing on that host, stops nobody else, and is over as
soon as the host is mended.

What a host lacks is taken from it within its own namespaces: files are covered by mounts or moved in its own overlay.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from bpfleet.errors import BpfleetError, DiskFull, HostUnfit, ObjectRejected
from bpfleet.lab import Host, Lab
from bpfleet.transport.artefact import Artefact, current, of_bytes
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.outcome import Committed, Failed
from tests.e2e.traffic.ground import Ground

GOOD, BAD = "h1", "h2"
STATE = "/var/lib/bpfleet"
LOCAL = "/usr/local/bin"


class Lack(NamedTuple):
    """How to take something from a host and give it back (shell), and what the error must say."""

    take: str
    give_back: str
    what: str
    remedy: str


# A python3 that says it is older, in front of the real one on the PATH.
OLD_PYTHON = """\
#!/usr/bin/python3
import sys
code = sys.orig_argv.index("-c") + 1
sys.version_info = (3, 8, 10, "final", 0)
sys.argv[:] = ["-c", *sys.orig_argv[code + 1 :]]
exec(compile(sys.orig_argv[code], "<string>", "exec"), {"__name__": "__main__"})
"""


def library(name: str) -> str:
    """Shell: the file of a shared library."""
    return f"$(realpath $(ldconfig -p | sed -n 's/.*{name} .*=> //p' | head -1))"


BEFORE_INSTALL = {
    "no python3": Lack(
        "mv /usr/bin/python3 /usr/bin/python3.taken",
        "mv /usr/bin/python3.taken /usr/bin/python3",
        r"no python3",
        r"Install Python 3\.9 or later",
    ),
    "an older python3": Lack(
        f"mkdir -p {LOCAL}; cat > {LOCAL}/python3 <<'END'\n{OLD_PYTHON}END\nchmod +x {LOCAL}/python3",
        f"rm {LOCAL}/python3",
        r"Python 3\.8\.10 is too old",
        r"Install .*python3",
    ),
}
AFTER_INSTALL = {
    "no BTF": Lack(
        "mount -t tmpfs none /sys/kernel/btf",
        "umount /sys/kernel/btf",
        r"no BTF",
        r"CONFIG_DEBUG_INFO_BTF",
    ),
    "no bpffs in the kernel": Lack(
        "grep -v bpf /proc/filesystems > /run/filesystems; mount --bind /run/filesystems /proc/filesystems",
        "umount /proc/filesystems",
        r"no bpf file system",
        r"CONFIG_BPF_SYSCALL",
    ),
    "no libbpf": Lack(
        f"library={library('libbpf.so.1')}; mv $library $library.taken; echo $library > /run/library",
        "library=$(cat /run/library); mv $library.taken $library",
        r"libbpf\.so\.1 cannot be loaded",
        r"Install libbpf 1\.1 or later \(.*apt install libbpf1",
    ),
    "another library for libbpf": Lack(
        f"mount --bind {library('libz.so.1')} {library('libbpf.so.1')}",
        f"umount {library('libbpf.so.1')}",
        r"libbpf",
        r"Install libbpf 1\.1 or later",
    ),
}


def ground_of(lab: Lab, fleet: Fleet) -> Ground:
    """Two hosts of the lab: one stays good."""
    return Ground(lab, fleet, (GOOD, BAD))


@pytest.fixture(scope="module")
def cleared(lab: Lab) -> Iterator[None]:
    """No agent is left when the last test is done."""
    yield
    with Fleet() as last:
        for target in ground_of(lab, last).targets.values():
            last.remove_agent(target)


@pytest.fixture
def fleet(lab: Lab, cleared: None) -> Iterator[Fleet]:
    """A fleet whose hosts hold nothing but agents, before and after."""
    with Fleet() as made:
        yield made
    with Fleet() as last:  # a host keeps two agents, and the test may have brought more
        _wipe(lab, last)
    for name in (GOOD, BAD):
        lab.host(name).run(["rm", "-rf", f"{STATE}/logs"])


def _wipe(lab: Lab, fleet: Fleet) -> None:
    for name, target in ground_of(lab, fleet).targets.items():
        if fleet.install(target)["node"]:
            fleet.call(target, "wipe", {"node": name})


@contextmanager
def lacking(host: Host, lack: Lack) -> Iterator[None]:
    host.run(["sh", "-ec", lack.take])
    try:
        yield
    finally:
        host.run(["sh", "-ec", lack.give_back])


def traces(host: Host, but: str = "/agent") -> str:
    """Everything that a change of ours would change on a host; `but`: what of its state directory may come."""
    script = f"""
        find {STATE} ! -path '{STATE}{but}*' ! -name lock ! -name agent.log | sort
        find /sys/fs/bpf | sort
        ip -o link | sed 's/ qdisc.*//'; ip route; ip -6 route
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
    """
    return host.run(["sh", "-c", script]).stdout


def states(error: BpfleetError, lack: Lack) -> None:
    """The error says what, where and what to do."""
    assert error.where.get("node") == BAD, error
    assert re.search(lack.what, error.what), error
    assert re.search(lack.remedy, error.remedy), error


@pytest.mark.parametrize("name", BEFORE_INSTALL)
def test_a_host_that_cannot_run_the_agent(lab: Lab, name: str) -> None:
    lack, host = BEFORE_INSTALL[name], lab.host(BAD)
    before = traces(host, "/nothing")
    with Fleet() as fleet:
        target = ground_of(lab, fleet).targets[BAD]
        with lacking(host, lack):
            with pytest.raises(HostUnfit) as caught:
                fleet.install(target)
            states(caught.value, lack)
        assert traces(host, "/nothing") == before
        assert fleet.install(target)["node"] is None
        fleet.remove_agent(target)


@pytest.mark.parametrize("name", AFTER_INSTALL)
def test_an_unfit_host_is_refused_and_the_others_go_on(lab: Lab, fleet: Fleet, name: str) -> None:
    lack, host = AFTER_INSTALL[name], lab.host(BAD)
    fleet.install(ground_of(lab, fleet).targets[BAD])
    before = traces(host)
    # With agents of its own: a process that has once opened a library does not open it again.
    with lacking(host, lack), Fleet() as unlucky:
        ground = ground_of(lab, unlucky)
        outcomes = ground.transact(ground.base())
        bad = outcomes.pop(BAD)
        assert isinstance(bad, Failed) and isinstance(bad.error, HostUnfit), bad
        states(bad.error, lack)
        assert {type(outcome) for outcome in outcomes.values()} == {Committed}, outcomes
        (unfit,) = ground.status(BAD)["fitness"]
        states(BpfleetError.from_wire(unfit).at(node=BAD), lack)
    assert traces(host) == before
    mended = ground_of(lab, fleet)
    assert isinstance(mended.transact(mended.base())[BAD], Committed)


def spoiled(artefact: Artefact, name: str) -> Artefact:
    """The artefact with one object whose first instruction reads a register that was never written.

    The object's BTF and relocations stay as they are; only the kernel's verifier can see what is wrong.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(artefact.data)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == f"objects/{name}.bpf.o":
                data = _spoil(data)
            target.writestr(entry, data)
    return of_bytes(out.getvalue())


def _spoil(data: bytes) -> bytes:
    """r0 = r9 (bf 90) in place of the first instruction of section "tc" (ELF64, little endian)."""
    sections = int.from_bytes(data[40:48], "little")
    size, count, names = (int.from_bytes(data[at : at + 2], "little") for at in (58, 60, 62))

    def header(index: int) -> bytes:
        return data[sections + index * size : sections + (index + 1) * size]

    strings = int.from_bytes(header(names)[24:32], "little")
    for index in range(count):
        name = strings + int.from_bytes(header(index)[:4], "little")
        if data[name : name + 3] == b"tc\0":
            start = int.from_bytes(header(index)[24:32], "little")
            return data[:start] + bytes.fromhex("bf90000000000000") + data[start + 8 :]
    raise AssertionError("no section tc")


def test_an_object_that_the_kernel_rejects(lab: Lab, fleet: Fleet) -> None:
    """The verifier's last lines are in the error, its whole log on the host; no other program is attached either."""
    with Fleet(artefact=spoiled(current(), "from_tunnel")) as spoilt:
        ground, host = ground_of(lab, spoilt), lab.host(BAD)
        spoilt.install(ground.targets[BAD])
        before = traces(host, "/[al]*")
        outcomes = ground.transact(ground.base())
        assert {type(outcome) for outcome in outcomes.values()} == {Failed}, outcomes
        bad = outcomes[BAD]
        assert isinstance(bad, Failed) and isinstance(bad.error, ObjectRejected), bad
        assert bad.error.where["node"] == BAD and "from_tunnel" in bad.error.what
        assert any("R9 !read_ok" in line for line in bad.error.details["log"]), bad.error.details
        kept = bad.error.details["log_path"]
        assert kept in bad.error.remedy
        assert "R9 !read_ok" in host.run(["cat", kept]).stdout
        assert traces(host, "/[al]*") == before
    whole = ground_of(lab, fleet)
    assert isinstance(whole.transact(whole.base())[BAD], Committed)


def test_a_new_object_that_the_kernel_rejects_leaves_the_old_ones_at_work(lab: Lab, fleet: Fleet) -> None:
    """An update that fails verification changes nothing that is attached."""
    ground, host = ground_of(lab, fleet), lab.host(BAD)
    ground.declare(*ground.base())
    programs = ground.status(BAD)["programs"]
    before = traces(host, "/[al]*")
    with Fleet(artefact=spoiled(current(), "to_endpoint")) as worse:
        outcomes = ground_of(lab, worse).transact(ground.base())
    assert {type(outcome) for outcome in outcomes.values()} == {Failed}, outcomes
    assert traces(host, "/[al]*") == before
    with Fleet() as again:
        status = ground_of(lab, again).status(BAD)
    assert status["programs"] == programs and status["drift"] == []


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Callable[[str], Host]]:
    """A state directory of a given size on the bad host (size as of tmpfs, such as 100k)."""
    host = lab.host(BAD)

    def make(size: str) -> Host:
        host.run(["mkdir", "-p", STATE])
        host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", STATE])
        return host

    yield make
    host.run(["umount", "--lazy", STATE])


def test_no_room_for_the_agent(lab: Lab, small_disk: Callable[[str], Host]) -> None:
    host = small_disk("200k")
    with Fleet() as fleet:
        with pytest.raises(DiskFull) as caught:
            fleet.install(ground_of(lab, fleet).targets[BAD])
    assert caught.value.where["node"] == BAD
    assert "Free space" in caught.value.remedy and caught.value.where["file"].startswith(STATE)
    assert host.run(["find", STATE, "-type", "f"]).stdout == ""


def test_no_room_for_a_change(lab: Lab, small_disk: Callable[[str], Host]) -> None:
    """Nothing is written and nothing of the kernel changes; with room again, the same succeeds."""
    host = small_disk("64m")
    with Fleet() as fleet:
        ground = ground_of(lab, fleet)
        fleet.each(ground.targets.values(), fleet.install)
        host.run(["sh", "-c", f"head -c 100m /dev/zero > {STATE}/agent/fill 2>/dev/null || true"])
        before = traces(host)
        outcomes = ground.transact(ground.base())
        bad = outcomes.pop(BAD)
        assert isinstance(bad, Failed) and isinstance(bad.error, DiskFull), bad
        assert bad.error.where["node"] == BAD and "Free" in bad.error.remedy
        assert {type(outcome) for outcome in outcomes.values()} == {Committed}, outcomes
        assert traces(host) == before
        host.run(["rm", f"{STATE}/agent/fill"])
        assert isinstance(ground.transact(ground.base())[BAD], Committed)
        _wipe(lab, fleet)
