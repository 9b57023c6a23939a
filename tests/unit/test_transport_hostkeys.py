"""known_hosts and keys in the resource: who may show which key, and what the error says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
from pathlib import Path

import pytest

from bpfleet.errors import HostKeyMismatch, InvalidInput
from bpfleet.transport.hostkeys import HostKeyPolicy, PublicKey, parse_key
from bpfleet.transport.target import Target


def key(text: str, kind: str = "ssh-ed25519") -> PublicKey:
    """A well-formed key that nobody has the private half of."""
    material = hashlib.sha256(text.encode()).digest()
    blob = len(kind).to_bytes(4, "big") + kind.encode() + len(material).to_bytes(4, "big") + material
    return PublicKey(kind, blob)


RIGHT, OTHER, THIRD = key("right"), key("other"), key("third")
RSA = key("rsa", "ssh-rsa")


def hashed(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def policy(tmp_path: Path, *lines: str, host: str = "web.example.org", port: int = 22, **given: str) -> HostKeyPolicy:
    path = tmp_path / "known_hosts"
    path.write_text("\n".join(lines) + "\n")
    return HostKeyPolicy(Target("h1", host, port, known_hosts_file=str(path), **given))


@pytest.mark.parametrize(
    ("line", "host", "port"),
    [
        ("web.example.org", "web.example.org", 22),
        ("web.example.org", "WEB.example.org", 22),
        ("web.example.org,192.0.2.7", "192.0.2.7", 22),
        ("*.example.org", "web.example.org", 22),
        ("w?b.example.org", "web.example.org", 22),
        ("[web.example.org]:2222", "web.example.org", 2222),
        ("[*.example.org]:2222", "web.example.org", 2222),
        ("2001:db8::7", "2001:db8::7", 22),
        ("[2001:db8::7]:2222", "2001:db8::7", 2222),
        (hashed("web.example.org"), "web.example.org", 22),
        (hashed("[web.example.org]:2222"), "web.example.org", 2222),
        ("web.example.org", "web.example.org", 2222),  # as ssh: good for the other ports of the host too
    ],
)
def test_a_known_key_passes(tmp_path: Path, line: str, host: str, port: int) -> None:
    policy(tmp_path, f"{line} {RIGHT.line}", host=host, port=port).check(RIGHT)


@pytest.mark.parametrize(
    "line",
    [
        "web.example.com",
        "*.example.org,!web.example.org",
        "[web.example.org]:2222",
        "w[e]b.example.org",
        hashed("web.example.com"),
        "|1|nonsense",
        "|1|%%%|%%%",
    ],
)
def test_a_line_about_another_host_says_nothing(tmp_path: Path, line: str) -> None:
    with pytest.raises(HostKeyMismatch, match="is not known"):
        policy(tmp_path, f"{line} {RIGHT.line}").check(RIGHT)


def test_hashing_agrees_with_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "hashed"
    path.write_text(f"web.example.org {RIGHT.line}\n[db.example.org]:2222 {OTHER.line}\n")
    # ssh-keygen wants real points of the curve only when it uses them; hashing names it does not.
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    lines = path.read_text().splitlines()
    assert all(line.startswith("|1|") for line in lines)
    policy(tmp_path, *lines).check(RIGHT)
    policy(tmp_path, *lines, host="db.example.org", port=2222).check(OTHER)


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    printed = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True).stdout
    assert parse_key(path.with_suffix(".pub").read_text()).fingerprint == printed.split()[1]


def test_an_unknown_key_is_refused_with_the_exact_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch) as caught:
        policy(tmp_path, f"other.example.org {RIGHT.line}", port=2222).check(RIGHT)
    error = caught.value
    assert error.where == {"node": "h1", "file": str(tmp_path / "known_hosts")}
    assert RIGHT.fingerprint in error.what
    assert f"[web.example.org]:2222 {RIGHT.line}" in error.remedy
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in error.remedy
    assert f"ssh.host_key to '{RIGHT.line}'" in error.remedy
    assert error.details["seen"] == RIGHT.fingerprint


def test_following_the_remedy_helps(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch) as caught:
        policy(tmp_path, port=2222).check(RIGHT)
    line = f"{caught.value.details['host']} {caught.value.details['seen_key']}"
    policy(tmp_path, line, port=2222).check(RIGHT)
    policy(tmp_path, host_key=caught.value.details["seen_key"]).check(RIGHT)


def test_a_changed_key_names_both_fingerprints_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch) as caught:
        policy(tmp_path, "# comment", "", f"web.example.org {OTHER.line}").check(RIGHT)
    error = caught.value
    assert RIGHT.fingerprint in error.what
    assert OTHER.fingerprint in error.what
    assert error.where["file"] == f"{tmp_path / 'known_hosts'}:3"
    assert f"ssh-keygen -f '{tmp_path / 'known_hosts'}' -R 'web.example.org'" in error.remedy


def test_a_key_of_a_type_nobody_knows_is_a_changed_key(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch, match="expects"):
        policy(tmp_path, f"web.example.org {RSA.line}").check(RIGHT)


def test_any_of_several_known_keys_passes(tmp_path: Path) -> None:
    known = policy(tmp_path, f"web.example.org {OTHER.line}", f"web.example.org {RIGHT.line}")
    known.check(RIGHT)
    known.check(OTHER)


def test_the_key_in_the_resource_is_the_only_one_accepted(tmp_path: Path) -> None:
    given = policy(tmp_path, f"web.example.org {OTHER.line}", host_key=f"{RIGHT.line} root@web")
    given.check(RIGHT)
    with pytest.raises(HostKeyMismatch) as caught:
        given.check(OTHER)
    assert caught.value.field == "ssh.host_key"
    assert RIGHT.fingerprint in caught.value.what
    assert OTHER.fingerprint in caught.value.what


@pytest.mark.parametrize(
    "text", ["ssh-ed25519", "ssh-ed25519 ????", "ssh-rsa " + RIGHT.line.split()[1], "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"]
)
def test_a_broken_key_in_the_resource_is_bad_input(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        policy(tmp_path, host_key=text)
    assert caught.value.field == "ssh.host_key"
    assert caught.value.resource == "node/h1"


@pytest.mark.parametrize("given", [{}, {"host_key": RIGHT.line}])
def test_a_revoked_key_is_refused_whatever_else_says_so(tmp_path: Path, given: dict[str, str]) -> None:
    lines = [f"web.example.org {RIGHT.line}", f"@revoked * {RIGHT.line}"]
    with pytest.raises(HostKeyMismatch, match="@revoked") as caught:
        policy(tmp_path, *lines, **given).check(RIGHT)
    assert caught.value.where["file"].endswith(":2")


def test_revoking_one_key_leaves_the_others(tmp_path: Path) -> None:
    policy(tmp_path, f"web.example.org {RIGHT.line}", f"@revoked * {OTHER.line}").check(RIGHT)


def test_other_markers_and_garbage_hide_nothing(tmp_path: Path) -> None:
    policy(
        tmp_path,
        f"@cert-authority *.example.org {OTHER.line}",
        "@cert-authority",
        "@future web.example.org what",
        "web.example.org ssh-ed25519 not-base64",
        "web.example.org ssh-ed25519",
        "\x00\xff binary",
        f"web.example.org {RIGHT.line} a comment",
    ).check(RIGHT)


def test_an_authority_does_not_make_its_own_key_a_host_key(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch, match="no host certificate of the authority in line 1"):
        policy(tmp_path, f"@cert-authority *.example.org {RIGHT.line}").check(RIGHT)


def test_unreadable_lines_are_named_when_the_host_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMismatch, match="not understood: line 2"):
        policy(tmp_path, "# fine", "web.example.org ssh-ed25519 broken!").check(RIGHT)


def test_a_named_file_must_be_there_the_default_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput) as caught:
        HostKeyPolicy(Target("h1", "web", known_hosts_file=str(tmp_path / "none")))
    assert caught.value.field == "ssh.known_hosts_file"
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HostKeyMismatch, match="is not known"):
        HostKeyPolicy(Target("h1", "web")).check(RIGHT)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"web {RIGHT.line}\n")
    HostKeyPolicy(Target("h1", "web")).check(RIGHT)


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        HostKeyPolicy(Target("h1", "web", known_hosts_file=str(tmp_path)))


def test_the_known_types_are_asked_for_first(tmp_path: Path) -> None:
    assert policy(tmp_path, f"web.example.org {RSA.line}").kinds() == ["ssh-rsa"]
    assert policy(tmp_path, f"web.example.org {RSA.line}", host_key=RIGHT.line).kinds() == ["ssh-ed25519"]
    assert policy(tmp_path).kinds() == []
