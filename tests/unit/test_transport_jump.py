"""Jump hosts and sshd's limits, with real sshds: one as the jump host, others behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpfleet.errors import AuthenticationFailed, HostKeyMismatch, HostUnfit, Unreachable
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.target import Jump, Target
from tests.unit.transport_support import (
    USER,
    Hosts,
    Sshd,
    eventually,
    free_port,
    make_key,
    make_sshd,
    public_line,
    running,
)

pytestmark = pytest.mark.root

SHORT = Schedule(attempts=3, seconds=20.0, first_pause=0.05)
NODES = 20


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts("ssh", tmp_path_factory.mktemp("hosts"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def bastion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """It lets forward, and nothing else: no command, few sessions, few logins at a time."""
    options = "LogLevel VERBOSE\nMaxSessions 10\nMaxStartups 10:30:60\nForceCommand /bin/false"
    with running(tmp_path_factory.mktemp("bastion") / "server", options=options) as server:
        yield server


@pytest.fixture
def fleet(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with hosts.fleet(schedule=SHORT) as made:
        yield made


def jump_of(bastion: Sshd, **changes: object) -> Jump:
    jump = Jump("127.0.0.1", bastion.port, USER, str(bastion.user_key), public_line(bastion.host_key))
    return replace(jump, **changes)  # type: ignore[arg-type]


def behind(bastion: Sshd, server: Sshd, name: str = "h1", **changes: object) -> Target:
    return server.target(name, jump=jump_of(bastion, **changes))


def logins(server: Sshd) -> int:
    return (server.folder / "log").read_text().count("Accepted publickey")


def test_many_nodes_share_one_connection_to_the_jump_host(
    hosts: Hosts, bastion: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    server, before = hosts.sshd(), logins(bastion)
    targets = [behind(bastion, server, f"n{number}") for number in range(NODES)]
    with hosts.fleet() as patient:  # so many logins at once take a busy machine long
        answers = patient.each(targets, patient.install)
        assert logins(bastion) == before + 1
        assert len(bastion.connections()) == 1
    assert not [answer for answer in answers.values() if isinstance(answer, Exception)]
    assert len({answer["pid"] for answer in answers.values()}) == NODES  # type: ignore[index,typeddict-item]


def test_the_connection_to_the_jump_host_ends_with_the_fleet(hosts: Hosts, bastion: Sshd) -> None:
    with hosts.fleet() as fleet:
        fleet.install(behind(bastion, hosts.sshd()))
        assert len(bastion.connections()) == 1
    assert eventually(lambda: not bastion.connections())


def test_a_lost_jump_host_is_dialled_anew(hosts: Hosts, bastion: Sshd, fleet: Fleet) -> None:
    target = behind(bastion, hosts.sshd())
    first = fleet.install(target)
    for pid in bastion.connections():
        os.kill(pid, signal.SIGKILL)
    second = fleet.call(target, "hello")
    assert second["pid"] != first["pid"]  # type: ignore[typeddict-item]
    assert fleet.counters(target).connections == 2


def test_both_host_keys_are_checked(hosts: Hosts, bastion: Sshd, fleet: Fleet, tmp_path: Path) -> None:
    server, wrong = hosts.sshd(), public_line(make_key(tmp_path / "other"))
    with pytest.raises(HostKeyMismatch) as caught:
        fleet.install(behind(bastion, server, host_key=wrong))
    assert caught.value.field == "ssh.jump.host_key"
    assert public_line(bastion.host_key) in caught.value.remedy
    with pytest.raises(HostKeyMismatch) as caught:
        fleet.install(replace(behind(bastion, server), host_key=wrong))
    assert caught.value.field == "ssh.host_key"
    # A host that is known behind one jump host is known by its own name, not by the jump host's.
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{bastion.port} {public_line(bastion.host_key)}\n")
    target = replace(behind(bastion, server, host_key=None, known_hosts_file=str(known)))
    assert fleet.install(target)["artefact"]


def test_both_logins_are_told_apart(hosts: Hosts, bastion: Sshd, fleet: Fleet, tmp_path: Path) -> None:
    key = str(make_key(tmp_path / "other"))
    with pytest.raises(AuthenticationFailed) as caught:
        fleet.install(behind(bastion, hosts.sshd(), private_key_file=key))
    assert caught.value.field == "ssh.jump.private_key_file"
    with pytest.raises(AuthenticationFailed) as caught:
        fleet.install(replace(behind(bastion, hosts.sshd()), private_key_file=key))
    assert caught.value.field == "ssh.private_key_file"


def test_a_node_that_is_off_is_told_from_a_jump_host_that_is_off(hosts: Hosts, bastion: Sshd, fleet: Fleet) -> None:
    off = replace(behind(bastion, hosts.sshd()), port=free_port())
    with pytest.raises(Unreachable, match=r"the jump host .* gets no connection to 127"):
        fleet.install(off)
    with pytest.raises(Unreachable, match="on the way there: no TCP connection") as caught:
        fleet.install(behind(bastion, hosts.sshd(), port=free_port()))
    assert "-J " in caught.value.remedy


def test_a_jump_host_that_is_off_is_not_dialled_for_every_node(hosts: Hosts, bastion: Sshd) -> None:
    port = free_port()
    attempts: list[str] = []

    def progress(node: str, phase: str, detail: str) -> None:
        if detail.startswith("attempt"):
            attempts.append(node)

    targets = [behind(bastion, hosts.sshd(), f"n{number}", port=port) for number in range(NODES)]
    with hosts.fleet(progress=progress, schedule=SHORT) as fleet:
        answers = fleet.each(targets, fleet.install)
    assert all(isinstance(answer, Unreachable) for answer in answers.values())
    assert len(attempts) <= NODES * (SHORT.attempts - 1)


def test_a_jump_host_that_forbids_forwarding_says_so(tmp_path: Path, hosts: Hosts, fleet: Fleet) -> None:
    with running(tmp_path / "strict", options="AllowTcpForwarding no") as strict:
        with pytest.raises(Unreachable, match=r"1 attempt: the jump host .* AllowTcpForwarding"):
            fleet.install(behind(strict, hosts.sshd()))


class TestSessions:
    """MaxSessions of a node: the agent takes one, and what runs beside it another."""

    def test_one_is_enough_for_all_but_streams(self, tmp_path: Path, fleet: Fleet) -> None:
        with running(tmp_path / "server", options="MaxSessions 1") as server:
            target = server.target()
            assert fleet.installed(target) is None
            assert fleet.install(target)["artefact"]
            assert fleet.counters(target).connections == 1
            with pytest.raises(Unreachable, match="MaxSessions"):
                next(fleet.stream(target, "events", {"count": 1, "follow": True}))
            assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}
            fleet.remove_agent(target)
            assert fleet.counters(target).connections == 1

    def test_two_are_enough_for_a_stream(self, tmp_path: Path, fleet: Fleet) -> None:
        with running(tmp_path / "server", options="MaxSessions 2") as server:
            target = server.target()
            fleet.install(target)
            stream = fleet.stream(target, "events", {"count": 1, "follow": True})
            assert next(stream) == {"count": 0}
            assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}
            stream.close()  # type: ignore[attr-defined]

    def test_none_is_said(self, tmp_path: Path, fleet: Fleet) -> None:
        with running(tmp_path / "server", options="MaxSessions 0") as server:
            with pytest.raises(Unreachable, match=r"no more sessions .* MaxSessions"):
                fleet.install(server.target())


def test_another_user_than_root_is_refused_before_dialling(hosts: Hosts, fleet: Fleet) -> None:
    target = hosts.sshd().target(user="operator")
    with pytest.raises(HostUnfit, match="operator is not root") as caught:
        fleet.install(target)
    assert caught.value.field == "ssh.user"
    assert "ssh.sudo" in caught.value.remedy
    assert fleet.counters(target).connections == 0


def test_keys_of_make_sshd_differ(tmp_path: Path) -> None:
    """What the tests above rest on: two servers are told apart by their keys."""
    one, two = make_sshd(tmp_path / "one"), make_sshd(tmp_path / "two")
    assert public_line(one.host_key) != public_line(two.host_key)
