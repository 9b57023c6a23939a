"""Host certificates: made by ssh-keygen, judged alone and shown by a real sshd."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfleet.errors import HostKeyMismatch
from bpfleet.transport.dial import Schedule
from bpfleet.transport.fleet import Fleet
from bpfleet.transport.hostcerts import Certificate
from tests.unit.transport_support import Hosts, Sshd, make_key, make_sshd, public_line, running

SHORT = Schedule(attempts=3, seconds=20.0, first_pause=0.05)


def sign(authority: Path, key: Path, *options: str) -> Path:
    """A certificate for `key`; host certificate unless the options say otherwise."""
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *(options or ("-h", "-n", "web"))]
    subprocess.run([*command, f"{key}.pub"], check=True)
    return Path(f"{key}-cert.pub")


def read(path: Path) -> Certificate:
    kind, blob = path.read_text().split()[:2]
    return Certificate(kind, base64.b64decode(blob))


def blob(path: Path) -> bytes:
    return base64.b64decode(public_line(path).split()[1])


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_good_certificate_has_no_problem(tmp_path: Path, kind: str) -> None:
    authority, key = make_key(tmp_path / "ca", kind), make_key(tmp_path / "host", kind)
    certificate = read(sign(authority, key, "-h", "-n", "db,WEB"))
    assert certificate.authority() == blob(authority)
    assert certificate.problem("web", {blob(authority)}) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-h", "-n", "db,mail"), "for db, mail, not for web"),
        (("-h",), "for no host by name"),
        (("-h", "-n", "*"), "not for web"),
        (("-n", "web"), "a user's certificate"),
        (("-h", "-n", "web", "-V", "20200101:20200201"), "valid from 2020-01-01"),
        (("-h", "-n", "web", "-V", "20990101:20990201"), "valid from 2099-01-01"),
        (("-h", "-n", "web", "-O", "critical:novel=1"), "critical options that nobody knows (novel)"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    authority = make_key(tmp_path / "ca")
    certificate = read(sign(authority, make_key(tmp_path / "host"), *options))
    assert said in certificate.problem("web", {blob(authority)})


def test_who_signed_it_counts(tmp_path: Path) -> None:
    authority, other = make_key(tmp_path / "ca"), make_key(tmp_path / "other")
    certificate = read(sign(authority, make_key(tmp_path / "host")))
    assert "an authority that known_hosts does not name" in certificate.problem("web", {blob(other)})
    # The same with another authority's name in it, and the old signature.
    forged = Certificate(certificate.kind, certificate.blob.replace(blob(authority), blob(other)))
    assert forged.problem("web", {blob(other)}) == "its signature is wrong"


def test_sha1_does_not_count(tmp_path: Path) -> None:
    authority = make_key(tmp_path / "ca", "rsa")
    certificate = read(sign(authority, make_key(tmp_path / "host"), "-t", "ssh-rsa", "-h", "-n", "web"))
    assert "SHA-1" in certificate.problem("web", {blob(authority)})


def test_garbage_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    authority = make_key(tmp_path / "ca")
    certificate = read(sign(authority, make_key(tmp_path / "host")))
    for length in range(0, len(certificate.blob), 7):
        assert Certificate(certificate.kind, certificate.blob[:length]).problem("web", {blob(authority)})


def test_the_time_is_the_controllers(tmp_path: Path) -> None:
    authority = make_key(tmp_path / "ca")
    certificate = read(sign(authority, make_key(tmp_path / "host"), "-h", "-n", "web", "-V", "-1h:+1h"))
    now = time.time()
    assert certificate.problem("web", {blob(authority)}, now) == ""
    assert "valid from" in certificate.problem("web", {blob(authority)}, now + 7200)
    assert "valid from" in certificate.problem("web", {blob(authority)}, now - 7200)


@pytest.mark.root
class TestAgainstSshd:
    @pytest.fixture
    def hosts(self, tmp_path: Path) -> Iterator[Hosts]:
        made = Hosts("ssh", tmp_path / "hosts")
        yield made
        made.stop()

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Path:
        return make_key(tmp_path / "ca")

    @pytest.fixture
    def fleet(self, hosts: Hosts) -> Iterator[Fleet]:
        with hosts.fleet(schedule=SHORT) as made:
            yield made

    def server(self, folder: Path, authority: Path, kind: str = "ed25519", name: str = "127.0.0.1") -> Sshd:
        server = make_sshd(folder, host_keys=(kind,))
        server.options = f"HostCertificate {sign(authority, server.host_key, '-h', '-n', name)}"
        return server

    def known(self, folder: Path, *lines: str) -> str:
        path = folder / "known_hosts"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_the_authority_alone_is_enough(
        self, tmp_path: Path, fleet: Fleet, hosts: Hosts, authority: Path, kind: str
    ) -> None:
        server = self.server(tmp_path / "server", authority, kind)
        server.start()
        try:
            line = f"@cert-authority [127.0.0.*]:{server.port} {public_line(authority)}"
            target = server.target(host_key=None, known_hosts_file=self.known(tmp_path, line))
            assert fleet.install(target)["artefact"]
            # Not so if the authority's own key is revoked.
            revoked = f"@revoked * {public_line(authority)}"
            target = server.target(host_key=None, known_hosts_file=self.known(tmp_path, line, revoked))
            with (
                hosts.fleet(schedule=SHORT) as other,
                pytest.raises(HostKeyMismatch, match="does not count, see line 1"),
            ):
                other.install(target)
        finally:
            server.stop()

    def test_a_certificate_for_another_host_is_refused(self, tmp_path: Path, fleet: Fleet, authority: Path) -> None:
        server = self.server(tmp_path / "server", authority, name="web")
        server.start()
        try:
            line = f"@cert-authority * {public_line(authority)}"
            target = server.target(host_key=None, known_hosts_file=self.known(tmp_path, line))
            with pytest.raises(HostKeyMismatch, match="it is for web, not for 127") as caught:
                fleet.install(target)
            assert public_line(server.host_key) in caught.value.remedy
            # Whose key is known all the same is let in, as ssh does it.
            own = f"[127.0.0.1]:{server.port} {public_line(server.host_key)}"
            target = server.target(host_key=None, known_hosts_file=self.known(tmp_path, line, own))
            assert fleet.install(target)["artefact"]
        finally:
            server.stop()

    def test_a_host_without_certificate_is_refused_where_only_an_authority_is_known(
        self, tmp_path: Path, fleet: Fleet, authority: Path
    ) -> None:
        with running(tmp_path / "server") as server:
            line = f"@cert-authority * {public_line(authority)}"
            target = server.target(host_key=None, known_hosts_file=self.known(tmp_path, line))
            with pytest.raises(HostKeyMismatch, match="no host certificate of the authority in line 1"):
                fleet.install(target)

    def test_a_host_that_shows_only_its_certificate(self, tmp_path: Path, fleet: Fleet, authority: Path) -> None:
        server = self.server(tmp_path / "server", authority)
        server.first = "HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com"
        server.start()
        try:
            nobody = self.known(tmp_path, "# nobody")
            with pytest.raises(HostKeyMismatch, match="is not known"):
                fleet.install(server.target(host_key=None, known_hosts_file=nobody))
            # The key inside is the one that is expected: the host proved that it holds it.
            assert fleet.install(server.target())["artefact"]
        finally:
            server.stop()
