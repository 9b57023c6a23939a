"""What only SSH has: host keys, logins, connections that break, hosts that do not answer. Against a real sshd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from bpfleet.errors import HostUnfit, Unreachable
from bpfleet.transport.channel import Deadline, DialFailed
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.node import Timeouts
from bpfleet.transport.ssh import SshConnector, SshTimeouts
from bpfleet.transport.target import Target
from bpfleet.transport.tcp import connect
from tests.unit.transport_support import (
    Hosts,
    Sshd,
    eventually,
    free_port,
    make_sshd,
    running,
    small_agent,
)

pytestmark = pytest.mark.root

SHORT = Schedule(attempts=3, seconds=20.0, first_pause=0.05)
HASTY = SshConnector(SshTimeouts(tcp=0.5, banner=0.5, authentication=10))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts("ssh", tmp_path_factory.mktemp("hosts"))
    yield made
    made.stop()


@pytest.fixture
def server(hosts: Hosts) -> Sshd:
    return hosts.sshd()


@pytest.fixture
def fleet(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with hosts.fleet(schedule=SHORT) as made:
        yield made


class TestUnfitHosts:
    def path_with(self, folder: Path, **programs: str) -> str:
        folder.mkdir()
        (folder / "sh").symlink_to("/bin/sh")
        for name, script in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return f"SetEnv PATH={folder}"

    def test_no_python(self, tmp_path: Path, fleet: Fleet) -> None:
        with running(tmp_path / "server", options=self.path_with(tmp_path / "bin")) as server:
            with pytest.raises(HostUnfit, match="no python3") as caught:
                fleet.install(server.target())
        assert caught.value.where["node"] == "h1"

    def test_an_old_python(self, tmp_path: Path, fleet: Fleet) -> None:
        # The bootstrap says so itself; here something else in its place says it in its words.
        answer = '{"id": null, "error": {"code": "HostUnfit", "what": "Python 3.7.3 is too old", "where": {}}}'
        options = self.path_with(tmp_path / "bin", python3=f"echo '{answer}'; exit 92")
        with running(tmp_path / "server", options=options) as server:
            with pytest.raises(HostUnfit, match=r"Python 3\.7\.3 is too old") as caught:
                fleet.install(server.target())
        assert caught.value.where["node"] == "h1"


def silent_socket() -> socket.socket:
    """Accepts TCP connections (the kernel does) and never says a word."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    return listener


@contextlib.contextmanager
def full_socket() -> Iterator[int]:
    """A port that does not even answer a SYN: its backlog is full. As a host that is off."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


class TestDeadHosts:
    def dead(self, port: int, server: Sshd) -> Target:
        return server.target("dead", port=port)

    def test_nobody_listens(self, hosts: Hosts, server: Sshd) -> None:
        with hosts.fleet(schedule=SHORT) as fleet, pytest.raises(Unreachable, match=r"3 attempts.*refused") as caught:
            fleet.install(self.dead(free_port(), server))
        assert caught.value.where == {"node": "dead"}
        assert type(caught.value) is Unreachable

    def test_nobody_answers(self, hosts: Hosts, server: Sshd) -> None:
        with full_socket() as port, hosts.fleet(schedule=SHORT, connector=HASTY) as fleet:
            with pytest.raises(Unreachable, match="did not answer"):
                fleet.install(self.dead(port, server))

    def test_somebody_listens_and_says_nothing(self, hosts: Hosts, server: Sshd) -> None:
        with silent_socket() as listener, hosts.fleet(schedule=SHORT, connector=HASTY) as fleet:
            with pytest.raises(Unreachable):
                fleet.install(self.dead(listener.getsockname()[1], server))

    def test_somebody_speaks_another_protocol(self, hosts: Hosts, server: Sshd) -> None:
        def greet(listener: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.sendall(b"220 mail.example.org ESMTP\r\n" * 200)

        listener = silent_socket()
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        try:
            with (
                hosts.fleet(schedule=SHORT, connector=HASTY) as fleet,
                pytest.raises(Unreachable, match="before login"),
            ):
                fleet.install(self.dead(listener.getsockname()[1], server))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()

    def test_a_name_that_does_not_resolve(self, hosts: Hosts, server: Sshd) -> None:
        with hosts.fleet(schedule=SHORT) as fleet, pytest.raises(Unreachable, match="does not resolve"):
            fleet.install(server.target("dead", host="no-such-host.invalid"))

    def test_a_host_that_comes_up_late_is_reached(self, tmp_path: Path, hosts: Hosts) -> None:
        server = make_sshd(tmp_path / "server")
        tries: list[str] = []

        def progress(node: str, phase: str, detail: str) -> None:
            if phase == "dial" and "trying again" in detail:
                tries.append(detail)

        schedule = Schedule(attempts=12, seconds=60, first_pause=0.05)
        try:
            with hosts.fleet(schedule=schedule, progress=progress) as fleet, ThreadPoolExecutor(1) as pool:
                answer = pool.submit(fleet.install, server.target())
                assert eventually(lambda: len(tries) >= 2)
                server.start()
                assert answer.result(60)["pid"]
        finally:
            server.stop()

    def takes_the_place(self, port: int, held: list[socket.socket]) -> bool:
        client = socket.create_connection(("127.0.0.1", port))
        if client.recv(4) == b"SSH-":
            held.append(client)
            return True
        client.close()
        return False

    def test_sshd_that_throttles_is_waited_for(self, tmp_path: Path, hosts: Hosts) -> None:
        tries: list[str] = []
        held: list[socket.socket] = []

        def progress(node: str, phase: str, detail: str) -> None:
            if "trying again" in detail:
                tries.append(detail)
                while len(tries) == 2 and held:
                    held.pop().close()

        schedule = Schedule(attempts=12, seconds=60, first_pause=0.05)
        with running(tmp_path / "server", options="MaxStartups 1:100:1") as server:
            # The one place is free once sshd has noticed that whoever asked whether it is up has gone.
            assert eventually(lambda: self.takes_the_place(server.port, held))
            with hosts.fleet(schedule=schedule, progress=progress) as fleet:
                assert fleet.install(server.target())["pid"]
        assert len(tries) >= 2

    def test_the_others_go_on(self, hosts: Hosts) -> None:
        living = [hosts.target(name) for name in ("h1", "h2", "h3")]
        with full_socket() as port, hosts.fleet(schedule=SHORT, connector=HASTY) as fleet:
            dead = [self.dead(port, hosts.sshd()), replace(self.dead(free_port(), hosts.sshd()), name="off")]
            answers = fleet.each([*dead, *living], fleet.install)
        assert [isinstance(answer, Unreachable) for answer in answers.values()] == [True, True, False, False, False]

    def test_a_frozen_host_is_unreachable_not_a_hang(self, hosts: Hosts, server: Sshd) -> None:
        target = server.target()
        schedule, timeouts = replace(SHORT, rest=0.0), Timeouts(by_method={"echo": 0.5})
        with hosts.fleet(schedule=schedule, connector=HASTY, timeouts=timeouts) as fleet:
            fleet.install(target)
            frozen = server.connections()
            assert server.process is not None
            for pid in [server.process.pid, *frozen]:
                os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(Unreachable, match="no answer to echo"):
                    fleet.call(target, "echo")
                with pytest.raises(Unreachable, match="not reachable"):
                    fleet.call(target, "echo")
            finally:
                for pid in [server.process.pid, *frozen]:
                    os.kill(pid, signal.SIGCONT)
            assert eventually(lambda: not set(frozen) & set(server.connections()))
            assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}


class _NeverStarts(paramiko.ServerInterface):
    """Lets everybody in, opens channels, and never answers the request to start a command."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL  # type: ignore[attr-defined,no-any-return]

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined,no-any-return]

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.released.wait(120)
        return False


def test_a_host_that_opens_a_channel_and_starts_nothing(hosts: Hosts, server: Sshd) -> None:
    interface = _NeverStarts()
    with silent_socket() as listener, ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        accepted = pool.submit(listener.accept)
        with hosts.fleet(timeouts=Timeouts(launch=0.5), schedule=SHORT) as fleet:
            answer = other.submit(fleet.install, server.target(port=listener.getsockname()[1]))
            transport = paramiko.Transport(accepted.result(60)[0])
            transport.add_server_key(paramiko.PKey.from_path(server.host_key))
            try:
                transport.start_server(server=interface)
                with pytest.raises(Unreachable, match="no answer to hello"):
                    answer.result(60)
            finally:
                interface.released.set()
                transport.close()
                transport.join()


class TestDials:
    def test_a_dead_host_is_left_alone_for_a_while(self, hosts: Hosts, server: Sshd) -> None:
        dials: list[str] = []

        def progress(node: str, phase: str, detail: str) -> None:
            dials.append(phase)

        target = server.target("dead", port=free_port())
        with hosts.fleet(schedule=SHORT, progress=progress) as fleet:
            errors = []
            for _ in range(3):
                with pytest.raises(Unreachable) as caught:
                    fleet.install(target)
                errors.append(str(caught.value))
            once = len(dials)
            assert len(set(errors)) == 1
        dials.clear()
        with hosts.fleet(schedule=replace(SHORT, rest=0.0), progress=progress) as fleet:
            for _ in range(3):
                with pytest.raises(Unreachable):
                    fleet.install(target)
        assert len(dials) == 3 * once

    def test_no_more_at_once_than_allowed(self, hosts: Hosts, server: Sshd) -> None:
        running_now, most = 0, 0
        lock = threading.Lock()
        real = SshConnector()

        class Watching:
            local = False

            def __call__(self, target: Target, until: object) -> object:
                nonlocal running_now, most
                with lock:
                    running_now += 1
                    most = max(most, running_now)
                try:
                    time.sleep(0.05)
                    return real(target, until)  # type: ignore[arg-type]
                finally:
                    with lock:
                        running_now -= 1

            def close(self) -> None:
                """Nothing is kept."""

        with hosts.fleet(connector=Watching(), dials=2) as fleet:
            answers = fleet.each([server.target(f"n{number}") for number in range(6)], fleet.install)
        assert all("pid" in answer for answer in answers.values())  # type: ignore[operator]
        assert most == 2


class TestBrokenConnections:
    def cut(self, hosts: Hosts) -> None:
        for pid in hosts.sshd().connections():
            os.kill(pid, signal.SIGKILL)

    def test_between_requests_it_is_dialled_anew(self, hosts: Hosts, fleet: Fleet) -> None:
        target = hosts.target()
        fleet.install(target)
        self.cut(hosts)
        assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}
        assert fleet.counters(target).connections == 2
        assert fleet.counters(target).deliveries == 1

    def test_a_request_that_changes_nothing_is_sent_again(self, hosts: Hosts, fleet: Fleet) -> None:
        target = hosts.target()
        fleet.install(target)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(fleet.call, target, "silence", {"seconds": 2})
            assert eventually(lambda: fleet.counters(target).requests == 2)
            self.cut(hosts)
            assert slow.result(60) == "late"
        assert fleet.counters(target).connections == 2

    def test_a_request_that_may_have_worked_is_not(self, hosts: Hosts, fleet: Fleet) -> None:
        target = hosts.target()
        fleet.install(target)
        # The server's files, seen from here.
        state = Path(f"/proc/{hosts.sshd().process.pid}/root{fleet.root}/state.json")  # type: ignore[union-attr]
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(fleet.call, target, "wipe", {"seconds": 600})
            assert eventually(state.exists)
            self.cut(hosts)
            with pytest.raises(Unreachable, match="no answer to wipe"):
                slow.result(60)
        assert fleet.call(target, "state")["wipes"] == 1

    def test_streams_and_requests_share_one_up_to_sshds_limit(self, tmp_path: Path, fleet: Fleet) -> None:
        with running(tmp_path / "server", options="MaxSessions 3") as server:
            target = server.target()
            fleet.install(target)
            streams = [fleet.stream(target, "events", {"count": 1, "follow": True}) for _ in range(2)]
            assert [next(stream) for stream in streams] == [{"count": 0}] * 2
            with pytest.raises(Unreachable, match="no channel"):
                next(fleet.stream(target, "events", {"count": 1, "follow": True}))
            assert fleet.call(target, "echo", {"n": 1}) == {"n": 1}
            assert fleet.counters(target).connections == 1
            for stream in streams:
                stream.close()  # type: ignore[attr-defined]


def test_two_fleets_deliver_at_the_same_time(hosts: Hosts) -> None:
    target, artefact = hosts.target(), small_agent("contended")
    with hosts.fleet(artefact=artefact) as one, hosts.fleet(artefact=artefact, root=one.root) as two:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda fleet: fleet.install(target), [one, two]))
    assert [answer["artefact"] for answer in answers] == [artefact.digest] * 2


def test_how_long_a_host_had_to_answer_is_said_also_below_a_second() -> None:
    """The last of several attempts has what is left of the time for all."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        # One waits to be accepted: the kernel has no room for more, and says nothing.
        for seconds in (0.25, 1):
            with pytest.raises(DialFailed, match=f"127.0.0.1 did not answer within {seconds} s"):
                connect(Target("h", *full.getsockname()), Deadline(seconds))
