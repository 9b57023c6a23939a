"""Host keys and logins, against a real sshd."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfleet.errors import AuthenticationFailed, HostKeyMismatch
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from tests.unit.transport_support import (
    USER,
    Hosts,
    Sshd,
    eventually,
    make_key,
    make_sshd,
    public_line,
    running,
)

pytestmark = pytest.mark.root

SHORT = Schedule(attempts=3, seconds=20.0, first_pause=0.05)


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


class TestHostKeys:
    def test_an_unknown_host_is_refused_until_the_remedy_is_followed(
        self, server: Sshd, fleet: Fleet, tmp_path: Path
    ) -> None:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.touch()
        target = server.target(host_key=None, known_hosts_file=str(known_hosts))
        with pytest.raises(HostKeyMismatch, match="is not known") as caught:
            fleet.install(target)
        printed = subprocess.run(
            ["ssh-keygen", "-lf", str(server.host_key)], check=True, capture_output=True, text=True
        )
        assert caught.value.details["seen"] == printed.stdout.split()[1]
        assert caught.value.where["node"] == "h1"
        assert fleet.counters(target).connections == 0
        known_hosts.write_text(f"{caught.value.details['host']} {caught.value.details['seen_key']}\n")
        assert fleet.install(target)["pid"]

    def test_nobody_logs_in_to_a_host_with_another_key(self, hosts: Hosts, server: Sshd, fleet: Fleet) -> None:
        fleet.install(server.target())
        log = server.folder / "log"
        logins = log.read_text().count("Accepted publickey")
        assert logins
        with pytest.raises(HostKeyMismatch) as caught:
            fleet.install(server.target("other", host_key=public_line(hosts.sshd("h2").host_key)))
        assert caught.value.field == "ssh.host_key"
        assert eventually(lambda: len(server.connections()) == 1)
        assert log.read_text().count("Accepted publickey") == logins

    def test_a_changed_key_in_known_hosts_is_refused(
        self, hosts: Hosts, server: Sshd, fleet: Fleet, tmp_path: Path
    ) -> None:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{server.port} {public_line(hosts.sshd('h2').host_key)}\n")
        with pytest.raises(HostKeyMismatch, match="expects") as caught:
            fleet.install(server.target(host_key=None, known_hosts_file=str(known_hosts)))
        assert caught.value.where["file"] == f"{known_hosts}:1"

    def test_hashed_known_hosts_between_authorities_and_revoked(
        self, hosts: Hosts, server: Sshd, fleet: Fleet, tmp_path: Path
    ) -> None:
        known_hosts = tmp_path / "known_hosts"
        name = f"[127.0.0.1]:{server.port}"
        known_hosts.write_text(f"{name} {public_line(server.host_key)}\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known_hosts)], check=True, capture_output=True)
        other = public_line(hosts.sshd("h2").host_key)
        line = known_hosts.read_text()
        assert name not in line
        known_hosts.write_text(f"@cert-authority * {other}\n@revoked * {other}\n{line}")
        assert fleet.install(server.target(host_key=None, known_hosts_file=str(known_hosts)))["pid"]

    def test_a_revoked_key_is_refused(self, server: Sshd, fleet: Fleet, tmp_path: Path) -> None:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"@revoked * {public_line(server.host_key)}\n")
        with pytest.raises(HostKeyMismatch, match="revoked"):
            fleet.install(server.target(known_hosts_file=str(known_hosts)))

    @pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
    def test_the_host_is_asked_for_the_key_that_is_known(self, tmp_path: Path, fleet: Fleet, kind: str) -> None:
        with running(tmp_path / "server", host_keys=("ed25519", "ecdsa", "rsa")) as server:
            known = public_line(server.folder / f"host_{kind}")
            assert fleet.install(server.target(host_key=known))["pid"]


class TestLogin:
    def authorize(self, server: Sshd, key: Path) -> None:
        with (server.folder / "authorized_keys").open("a") as handle:
            handle.write(Path(f"{key}.pub").read_text())

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("rsa", ()), ("rsa", ("-m", "PEM")), ("ecdsa", ()), ("ecdsa", ("-m", "PEM")), ("ed25519", ())],
    )
    def test_key_files(self, server: Sshd, fleet: Fleet, tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
        key = make_key(tmp_path / "key", kind, "", *options)
        self.authorize(server, key)
        assert fleet.install(server.target(private_key_file=str(key)))["pid"]

    def test_a_wrong_key_says_who_tried_what(self, server: Sshd, fleet: Fleet, tmp_path: Path) -> None:
        key = make_key(tmp_path / "wrong")
        target = server.target(private_key_file=str(key))
        with pytest.raises(AuthenticationFailed) as caught:
            fleet.install(target)
        error = caught.value
        assert f"does not let {USER} in" in error.what
        assert str(key) in error.what
        assert "authorized_keys" in error.remedy
        assert error.where == {"node": "h1", "field": "ssh.private_key_file"}
        assert fleet.counters(target).connections == 0

    @pytest.mark.parametrize(("content", "word"), [(None, "No such file"), ("no key", "no private key")])
    def test_an_unusable_key_file_is_named(
        self, server: Sshd, fleet: Fleet, tmp_path: Path, content: str | None, word: str
    ) -> None:
        path = tmp_path / "key"
        if content is not None:
            path.write_text(content)
        with pytest.raises(AuthenticationFailed, match=word) as caught:
            fleet.install(server.target(private_key_file=str(path)))
        assert str(path) in caught.value.what
        assert "Tried: no key at all" in caught.value.what

    @pytest.mark.parametrize("options", [(), ("-m", "PEM")])
    def test_a_passphrase_is_refused_clearly_unless_the_agent_holds_the_key(
        self, server: Sshd, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
    ) -> None:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        key = make_key(tmp_path / "guarded", "rsa" if options else "ed25519", "a secret", *options)
        self.authorize(server, key)
        target = server.target(private_key_file=str(key))
        with hosts.fleet() as fleet, pytest.raises(AuthenticationFailed, match="passphrase") as caught:
            fleet.install(target)
        assert f"ssh-add {key}" in caught.value.remedy
        # What ssh-add would do once it has asked for the passphrase.
        plain = tmp_path / "plain"
        plain.write_bytes(key.read_bytes())
        plain.chmod(0o600)
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "a secret", "-N", "", "-f", str(plain)], check=True)
        if not options:
            Path(f"{key}.pub").unlink()  # OpenSSH's form tells its public half by itself
        with self.agent(tmp_path, plain) as path:
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            with hosts.fleet() as fleet:
                assert fleet.install(target)["pid"]

    @contextlib.contextmanager
    def agent(self, tmp_path: Path, *keys: Path) -> Iterator[str]:
        # A short path: sockets' are limited to 108 bytes.
        path = f"/tmp/bpfleet-test-agent-{os.getpid()}"
        process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
        try:
            assert eventually(lambda: Path(path).exists())
            for key in keys:
                environment = {**os.environ, "SSH_AUTH_SOCK": path}
                subprocess.run(["ssh-add", "-q", str(key)], check=True, env=environment)
            yield path
        finally:
            process.terminate()
            process.wait()
            Path(path).unlink(missing_ok=True)

    def test_the_agents_keys_are_tried_where_none_is_named(
        self, server: Sshd, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        target = server.target(private_key_file=None)
        with self.agent(tmp_path, make_key(tmp_path / "wrong"), server.user_key) as path:
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            with hosts.fleet() as fleet:
                assert fleet.install(target)["pid"]

    def test_ones_own_keys_are_tried_where_none_is_named(
        self, server: Sshd, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        target = server.target(private_key_file=None)
        with pytest.raises(AuthenticationFailed, match="no key at all") as caught:
            fleet.install(target)
        assert "SSH_AUTH_SOCK" in caught.value.remedy
        (tmp_path / ".ssh").mkdir()
        self.authorize(server, make_key(tmp_path / ".ssh" / "id_ecdsa", "ecdsa"))
        make_key(tmp_path / ".ssh" / "id_ed25519")
        assert fleet.install(target)["pid"]

    def test_a_dead_ssh_agent_is_mentioned_not_waited_for(
        self, server: Sshd, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nothing"))
        with hosts.fleet() as fleet, pytest.raises(AuthenticationFailed, match=r"ssh agent at .* does not answer"):
            fleet.install(server.target(private_key_file=None))

    def test_a_second_factor_is_named(self, tmp_path: Path, fleet: Fleet) -> None:
        options = "AuthenticationMethods publickey,password\nPasswordAuthentication yes"
        # sshd takes the first value of an option: put ours before the defaults.
        server = make_sshd(tmp_path / "server", first=options)
        server.start()
        try:
            with pytest.raises(AuthenticationFailed, match="asks for password as well"):
                fleet.install(server.target())
        finally:
            server.stop()

    def test_too_many_keys_end_the_login_clearly(
        self, tmp_path: Path, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running(tmp_path / "server", options="MaxAuthTries 2") as server:
            keys = [make_key(tmp_path / f"key{number}") for number in range(4)]
            with self.agent(tmp_path, *keys) as path:
                monkeypatch.setenv("SSH_AUTH_SOCK", path)
                with hosts.fleet() as fleet, pytest.raises(AuthenticationFailed, match="ended the connection"):
                    fleet.install(server.target(private_key_file=None))
