"""Logging in with a public key: which keys there are, in which order they are tried, and what to say if none is taken.

Order: with `private_key_file`, that key alone (from the ssh agent if it holds it, else from the file). Without, the
ssh agent's keys, then ~/.ssh/id_ed25519, id_ecdsa, id_rsa. At most `_MOST_KEYS` keys: sshd ends the connection after
six attempts (MaxAuthTries). Passwords are never asked for.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import field as made
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH

from bpfleet.errors import AuthenticationFailed, BpfleetError
from bpfleet.transport.channel import Deadline, DialFailed
from bpfleet.transport.hostkeys import PublicKey, parse_key
from bpfleet.transport.target import Target

DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_MOST_KEYS = 5
_OPENSSH_MAGIC = b"openssh-key-v1\0"


class _SshAgent(AgentSSH):
    """The ssh agent at SSH_AUTH_SOCK. Unlike paramiko's own Agent class it does not wait for ever for an answer."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # missing from its stubs, as is _close
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


@dataclass
class _Attempt:
    """What there was to try, for the error text. field: where the private key is named."""

    field: str
    tried: list[str] = made(default_factory=list)
    unusable: list[str] = made(default_factory=list)
    remedies: list[str] = made(default_factory=list)


def log_in(target: Target, transport: paramiko.Transport, until: Deadline) -> None:
    """Authenticate as target.user, or raise AuthenticationFailed naming what was tried and what to do."""
    attempt = _Attempt(f"{target.at}.private_key_file")
    with _agent(attempt, until) as agent:
        for label, key in _candidates(target, agent, attempt):
            if len(attempt.tried) == _MOST_KEYS:
                attempt.unusable.append(f"more than {_MOST_KEYS} keys: the rest was not tried")
                attempt.remedies.append(f"name the right key as {attempt.field}")
                break
            if _offer(target, transport, label, key, attempt, until):
                return
    raise _refused(target, attempt)


def _offer(
    target: Target, transport: paramiko.Transport, label: str, key: paramiko.PKey, attempt: _Attempt, until: Deadline
) -> bool:
    """Offer one key. False: the host does not take it, the next may go."""
    transport.auth_timeout = max(0.1, until.left)
    try:
        more = transport.auth_publickey(target.user, key)
    except paramiko.BadAuthenticationType as refused:
        attempt.tried.append(label)
        attempt.remedies.append(
            f"allow public keys for {target.user} (host allows: {', '.join(refused.allowed_types)})"
        )
        return False
    except (paramiko.SSHException, OSError, EOFError) as failed:
        if transport.is_active() and not until.passed:
            attempt.tried.append(label)
            return False
        if attempt.tried and not until.passed:
            attempt.tried.append(f"{label} (then the host ended the connection)")
            raise _refused(target, attempt) from failed
        raise DialFailed(f"{target} did not finish the login ({failed})", again=True) from failed
    if more:
        attempt.tried.append(label)
        attempt.unusable.append(f"the host takes the key, but asks for {', '.join(more)} as well")
        attempt.remedies.append("allow a public key alone for this user (AuthenticationMethods in sshd_config)")
        raise _refused(target, attempt)
    return True


@contextmanager
def _agent(attempt: _Attempt, until: Deadline) -> Iterator[_SshAgent | None]:
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        yield None
        return
    try:
        agent = _SshAgent(path, max(0.1, until.left))
    except (OSError, paramiko.SSHException) as failed:
        attempt.unusable.append(f"the ssh agent at {path} does not answer ({failed})")
        yield None
        return
    try:
        yield agent
    finally:
        agent.close()


def _candidates(target: Target, agent: _SshAgent | None, attempt: _Attempt) -> Iterator[tuple[str, paramiko.PKey]]:
    held = [(f"ssh agent's {_label(key)}", key) for key in agent.get_keys()] if agent else []
    if target.private_key_file:
        path = Path(target.private_key_file).expanduser()
        public = _public_part(path)
        mine = [(label, key) for label, key in held if public and key.asbytes() == public.blob]
        yield from mine[:1] or _from_file(path, attempt)
        return
    yield from held
    offered = {key.asbytes() for _, key in held}
    for name in DEFAULT_KEYS:
        path = Path(name).expanduser()
        public = _public_part(path)
        if path.exists() and not (public and public.blob in offered):
            yield from _from_file(path, attempt)


def _label(key: paramiko.PKey) -> str:
    return f"{getattr(key, 'comment', '') or 'key'} ({PublicKey(key.get_name(), key.asbytes())})"


def _from_file(path: Path, attempt: _Attempt) -> Iterator[tuple[str, paramiko.PKey]]:
    """The key in a file, if it can be used as it is; else a note why not."""
    try:
        key = paramiko.PKey.from_path(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as missing:
        attempt.unusable.append(f"{path}: {missing.strerror}")
        attempt.remedies.append(f"set {attempt.field} to a readable private key")
    except (TypeError, paramiko.PasswordRequiredException):
        # cryptography says TypeError for "encrypted, but no passphrase given".
        attempt.unusable.append(f"{path} is protected by a passphrase and the ssh agent does not hold it")
        attempt.remedies.append(f"run: ssh-add {path} (with an ssh agent in SSH_AUTH_SOCK)")
    except (ValueError, UnsupportedAlgorithm, OSError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as broken:
        attempt.unusable.append(f"{path} holds no private key that can be read ({broken})")
        attempt.remedies.append("use an ed25519, ecdsa or rsa key in OpenSSH or PEM form")
    else:
        yield f"{path} ({PublicKey(key.get_name(), key.asbytes())})", key


def _public_part(path: Path) -> PublicKey | None:
    """The public key of a private key file, without its passphrase: from the .pub beside it or, in OpenSSH's own form,
    from the file itself (PROTOCOL.key of OpenSSH). None if neither tells."""
    with suppress(OSError, ValueError):
        return parse_key(Path(f"{path}.pub").read_text())
    try:
        body = b"".join(line for line in path.read_bytes().splitlines() if not line.startswith(b"-----"))
        return _public_of_openssh(base64.b64decode(body, validate=True))
    except (OSError, ValueError):
        return None


def _public_of_openssh(data: bytes) -> PublicKey:
    """The (unencrypted) public part of an OpenSSH private key; ValueError if this is none."""
    if not data.startswith(_OPENSSH_MAGIC):
        raise ValueError("not in OpenSSH's form")
    message = paramiko.Message(data[len(_OPENSSH_MAGIC) :])
    for _ in ("cipher", "key derivation", "its options"):
        message.get_binary()
    message.get_int()  # how many keys: always one
    blob = message.get_binary()
    kind = paramiko.Message(blob).get_binary().decode(errors="replace")
    return parse_key(f"{kind} {base64.b64encode(blob).decode()}")


def _refused(target: Target, attempt: _Attempt) -> BpfleetError:
    tried = "; ".join(attempt.tried) or "no key at all"
    unusable = f" Not usable: {'; '.join(attempt.unusable)}." if attempt.unusable else ""
    remedies = list(dict.fromkeys(attempt.remedies))
    if attempt.tried:
        home = "/root" if target.user == "root" else f"~{target.user}"
        remedies.append(f"add the public key to {home}/.ssh/authorized_keys on {target.host}")
        if target.user == "root":
            remedies.append("see that sshd_config has PermitRootLogin prohibit-password (or yes)")
    elif not remedies:
        remedies.append(f"set {attempt.field}, or ssh-add a key into an ssh agent (SSH_AUTH_SOCK)")
    text = "; ".join(remedies)
    return AuthenticationFailed(
        f"{target.host} does not let {target.user} in. Tried: {tried}.{unusable}".rstrip("."),
        remedy=text[:1].upper() + text[1:],
        node=target.name,
        field=attempt.field if target.private_key_file else None,
        details={"user": target.user, "tried": attempt.tried, "unusable": attempt.unusable},
    )
