"""Host keys: which key a host must show, and what to say when it shows another. A key is never accepted unseen.

The known_hosts format is that of sshd(8), section SSH_KNOWN_HOSTS FILE FORMAT. Lines are read one by one, so a line
that means nothing here (a key type of the future, garbage) never hides the others. `@revoked` keys are refused even
where the resource itself names the key. A certificate of a `@cert-authority` is as good as a line with the key itself
(hostcerts.py); where it is not accepted, the key in it is judged like any other.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfleet.errors import HostKeyMismatch, InvalidInput
from bpfleet.transport.hostcerts import SUFFIX, Certificate
from bpfleet.transport.target import Target

DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"
_HASHED = "|1|"
_CERTIFIED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


@dataclass(frozen=True)
class PublicKey:
    """A public key as it stands in a file: its type and its wire form."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: SHA-256, base64 without padding."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """ "ssh-ed25519 AAAA…" """
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"

    def __str__(self) -> str:
        return f"{self.kind} {self.fingerprint}"


def parse_key(text: str) -> PublicKey:
    """The key in "type base64 [comment]"; ValueError says what is wrong."""
    words = text.split()
    if len(words) < 2:
        raise ValueError("not of the form 'type base64'")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError) as broken:
        raise ValueError("its second word is not base64") from broken
    # The wire form begins with the type again (RFC 4253, section 6.6): a line put together wrongly shows here.
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != words[0].encode() or len(blob) <= 4 + length:
        raise ValueError(f"the key is not a complete {words[0]} key")
    return PublicKey(words[0], blob)


@dataclass(frozen=True)
class KnownHost:
    """One usable line of a known_hosts file. `marker` is "", "@revoked" or "@cert-authority"."""

    file: str
    number: int
    marker: str
    patterns: str
    key: PublicKey

    def covers(self, name: str) -> bool:
        """Whether the line speaks of the host listed as `name` (see Target.known_hosts_name)."""
        if self.patterns.startswith(_HASHED):
            return _hash_matches(self.patterns, name)
        found = False
        for pattern in self.patterns.lower().split(","):
            if fnmatch.fnmatchcase(name, _glob(pattern.removeprefix("!"))):
                if pattern.startswith("!"):
                    return False
                found = True
        return found


def _glob(pattern: str) -> str:
    """known_hosts knows * and ? only: a [ is the bracket of "[host]:port"."""
    return pattern.replace("[", "[[]")


def _hash_matches(patterns: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in patterns[len(_HASHED) :].split("|"))
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


@dataclass(frozen=True)
class KnownHosts:
    """A known_hosts file as read: its usable lines, and the numbers of those that could not be read."""

    file: str
    lines: tuple[KnownHost, ...]
    unreadable: tuple[int, ...]

    def about(self, name: str, marker: str = "") -> list[KnownHost]:
        """The lines with this marker that speak of `name`, in file order."""
        return [line for line in self.lines if line.marker == marker and line.covers(name)]


def read_known_hosts(target: Target) -> KnownHosts:
    """The file that decides for `target`. The default file may be missing; one that was named may not."""
    path = Path(target.known_hosts_file or DEFAULT_KNOWN_HOSTS).expanduser()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as missing:
        if target.known_hosts_file is None:
            return KnownHosts(str(path), (), ())
        raise _unusable(target, path, missing) from missing
    except OSError as broken:
        raise _unusable(target, path, broken) from broken
    lines, unreadable = [], []
    for number, content in enumerate(text.splitlines(), 1):
        content = content.strip()
        if not content or content.startswith("#"):
            continue
        try:
            lines.append(_parse_line(str(path), number, content))
        except ValueError:
            # Not ours to judge: it may be about another host. An unknown host's error names these lines.
            unreadable.append(number)
    return KnownHosts(str(path), tuple(lines), tuple(unreadable))


def _unusable(target: Target, path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"the known_hosts file cannot be read: {error.strerror}",
        node=target.name,
        resource=f"node/{target.name}",
        field=f"{target.at}.known_hosts_file",
        file=str(path),
        remedy=f"Name a readable file, or give the host's key as {target.at}.host_key",
    )


def _parse_line(file: str, number: int, content: str) -> KnownHost:
    marker = ""
    if content.startswith("@"):
        marker, _, content = content.partition(" ")
        if marker not in ("@revoked", "@cert-authority"):
            raise ValueError(f"unknown marker {marker}")
    patterns, _, key = content.strip().partition(" ")
    return KnownHost(file, number, marker, patterns, parse_key(key))


class HostKeyPolicy:
    """Which keys `target` may show. Made before dialling, so that a wrong resource is found without a packet."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._field = f"{target.at}.host_key"
        self._known = read_known_hosts(target)
        self._given = self._key_given()

    def _key_given(self) -> PublicKey | None:
        if self._target.host_key is None:
            return None
        try:
            return parse_key(self._target.host_key)
        except ValueError as broken:
            raise InvalidInput(
                f"this is no public key line: {broken}",
                node=self._target.name,
                resource=f"node/{self._target.name}",
                field=self._field,
                remedy="Copy the host's /etc/ssh/ssh_host_ed25519_key.pub",
            ) from broken

    def _expected(self) -> list[KnownHost]:
        return self._known.about(self._target.known_hosts_name)

    def _authorities(self) -> list[KnownHost]:
        """The authorities whose certificates count for this host; as with keys, also those for its port 22."""
        if self._given:
            return []
        found = self._known.about(self._target.known_hosts_name, "@cert-authority")
        return found or self._known.about(self._target.host.lower(), "@cert-authority")

    def kinds(self) -> list[str]:
        """The key types that are known for this host: ask the host for these, or it may show one nobody knows.
        Certificates come first where an authority is known."""
        keys = [self._given] if self._given else [line.key for line in self._expected()]
        kinds = list(dict.fromkeys(key.kind for key in keys))
        return [*(f"{kind}{SUFFIX}" for kind in _CERTIFIED if self._authorities()), *kinds]

    def check(self, seen: PublicKey, certificate: Certificate | None = None) -> None:
        """Return if the host may show this key; otherwise raise HostKeyMismatch saying why and what to do.

        certificate: the one that it came in, if any.
        """
        for line in self._known.about(self._target.known_hosts_name, "@revoked"):
            if line.key == seen:
                raise self._revoked(seen, line)
        problem = ""
        if self._authorities():
            problem = self._certificate_problem(certificate)
            if not problem:
                return
        if self._given:
            if seen != self._given:
                raise self._not_the_given(seen, self._given)
            return
        expected = self._expected()
        if any(line.key == seen for line in expected):
            return
        if expected:
            raise self._changed(seen, expected, problem)
        # As ssh does: a key known for the host's port 22 is good for its other ports too.
        if any(line.key == seen for line in self._known.about(self._target.host.lower())):
            return
        raise self._unknown(seen, problem)

    def _certificate_problem(self, certificate: Certificate | None) -> str:
        """Why no certificate of a known authority shows who the host is, as words for an error; "" if one does."""
        authorities = self._authorities()
        lines = f"line {', '.join(str(line.number) for line in authorities)}"
        if certificate is None:
            return f" (it has no host certificate of the authority in {lines})"
        revoked = {line.key.blob for line in self._known.about(self._target.known_hosts_name, "@revoked")}
        good = {line.key.blob for line in authorities} - revoked
        problem = certificate.problem(self._target.host, good)
        return f" (its host certificate does not count, see {lines}: {problem})" if problem else ""

    def _mismatch(
        self, what: str, seen: PublicKey, expected: Sequence[PublicKey], remedy: str, **where: str
    ) -> Exception:
        return HostKeyMismatch(
            what,
            remedy=remedy,
            node=self._target.name,
            details={
                "seen": seen.fingerprint,
                "seen_key": seen.line,
                "expected": [key.fingerprint for key in expected],
                "host": self._target.known_hosts_name,
            },
            **where,
        )

    def _revoked(self, seen: PublicKey, line: KnownHost) -> Exception:
        return self._mismatch(
            f"{self._target.host} shows the key {seen}, which line {line.number} marks as @revoked",
            seen,
            (),
            "A revoked key proves nothing. Give the host new ones: rm /etc/ssh/ssh_host_*; ssh-keygen -A; restart sshd",
            file=f"{line.file}:{line.number}",
        )

    def _not_the_given(self, seen: PublicKey, given: PublicKey) -> Exception:
        return self._mismatch(
            f"{self._target.host} shows the key {seen}, but the resource expects {given}",
            seen,
            [given],
            f"Either this is not the host you mean, or it was reinstalled: then compare the fingerprint with what "
            f"{_on_the_console(seen)} prints on its console, and set {self._field} to '{seen.line}'",
            field=self._field,
        )

    def _changed(self, seen: PublicKey, expected: Sequence[KnownHost], problem: str) -> Exception:
        name = self._target.known_hosts_name
        wanted = ", ".join(f"{line.key} (line {line.number})" for line in expected)
        return self._mismatch(
            f"{self._target.host} shows the key {seen}, but known_hosts expects {wanted}{problem}",
            seen,
            [line.key for line in expected],
            f"Either this is not the host you mean, or it was reinstalled: then compare the fingerprint with what "
            f"{_on_the_console(seen)} prints on its console, run: ssh-keygen -f '{self._known.file}' -R '{name}', and "
            f"add the line '{name} {seen.line}'",
            file=f"{self._known.file}:{expected[0].number}",
        )

    def _unknown(self, seen: PublicKey, problem: str) -> Exception:
        name = self._target.known_hosts_name
        return self._mismatch(
            f"the key of {self._target.host} is not known; it shows {seen}{problem}{self._not_understood()}",
            seen,
            (),
            f"Compare the fingerprint with what {_on_the_console(seen)} prints on the host's console. If it is "
            f"the same, set {self._field} to '{seen.line}', or add to {self._known.file} the line "
            f"'{name} {seen.line}'",
            file=self._known.file,
        )

    def _not_understood(self) -> str:
        if not self._known.unreadable:
            return ""
        return f" (not understood: line {', '.join(str(number) for number in self._known.unreadable)})"


def _on_the_console(seen: PublicKey) -> str:
    name = {"ssh-rsa": "rsa", "ssh-ed25519": "ed25519"}.get(seen.kind, "ecdsa")
    return f"ssh-keygen -lf /etc/ssh/ssh_host_{name}_key.pub"
