"""How one node is reached: data only, kept beside the node's document and outside its content and hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bpfleet.errors import InvalidInput

SSH_PORT = 22
ROOT = "root"


@dataclass(frozen=True)
class Jump:
    """A host on the way: everything as in `Target`. It is logged in to, but nothing is run there."""

    host: str
    port: int = SSH_PORT
    user: str = ROOT
    private_key_file: str | None = None
    host_key: str | None = None
    known_hosts_file: str | None = None


@dataclass(frozen=True)
class Target:
    """One node and how to reach it.

    `host_key` is a public key line ("ssh-ed25519 AAAA…"); with it, that key and no other is accepted. Without it,
    `known_hosts_file` (default ~/.ssh/known_hosts) decides. `private_key_file` names the one key to log in with;
    without it, the ssh agent's keys and then ~/.ssh's own are tried. `sudo`: become root by it after logging in as
    another user. `jump`: the host from which this one is dialled. `at`: where in a node's document these settings
    stand, for errors.
    """

    name: str
    host: str
    port: int = SSH_PORT
    user: str = ROOT
    private_key_file: str | None = None
    host_key: str | None = None
    known_hosts_file: str | None = None
    sudo: bool = False
    jump: Jump | None = None
    at: str = "ssh"

    def to_metadata(self) -> dict[str, Any]:
        """The "ssh" part of a node's metadata; what is not set is left out."""
        values: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "sudo": self.sudo or None,
            "private_key_file": self.private_key_file,
            "host_key": self.host_key,
            "known_hosts_file": self.known_hosts_file,
            "jump": _given(asdict(self.jump)) if self.jump else None,
        }
        return _given(values)

    @staticmethod
    def from_metadata(name: str, ssh: Mapping[str, Any], address: str = "") -> Target:
        """The inverse of `to_metadata`. `address` (the node's underlay address) is dialled where no host is given."""
        host = str(ssh.get("host") or address)
        if not host:
            raise _nowhere(
                name, "ssh.host", "nothing says how to reach this node", "Set ssh.host, or the node's address"
            )
        jump: Jump | None = None
        if ssh.get("jump"):
            if not ssh["jump"].get("host"):
                raise _nowhere(name, "ssh.jump.host", "the jump host has no address", "Set ssh.jump.host")
            jump = Jump(str(ssh["jump"]["host"]), **_login(ssh["jump"]))
        return Target(name, host, **_login(ssh), sudo=bool(ssh.get("sudo")), jump=jump)

    def on_the_way(self) -> Target | None:
        """The jump host as a target of its own, under this node's name, if there is one."""
        if self.jump is None:
            return None
        jump = self.jump
        return Target(
            name=self.name,
            host=jump.host,
            port=jump.port,
            user=jump.user,
            private_key_file=jump.private_key_file,
            host_key=jump.host_key,
            known_hosts_file=jump.known_hosts_file,
            at=f"{self.at}.jump",
        )

    @property
    def known_hosts_name(self) -> str:
        """The name under which known_hosts lists this host: with the port unless it is 22 (sshd(8))."""
        host = self.host.lower()
        return host if self.port == SSH_PORT else f"[{host}]:{self.port}"

    def __str__(self) -> str:
        if self.port == SSH_PORT:
            return f"{self.user}@{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


def _login(ssh: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "port": int(ssh.get("port") or SSH_PORT),
        "user": str(ssh.get("user") or ROOT),
        "private_key_file": _text(ssh, "private_key_file"),
        "host_key": _text(ssh, "host_key"),
        "known_hosts_file": _text(ssh, "known_hosts_file"),
    }


def _text(ssh: Mapping[str, Any], key: str) -> str | None:
    value = ssh.get(key)
    return str(value) if value else None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _nowhere(name: str, field: str, what: str, remedy: str) -> InvalidInput:
    return InvalidInput(what, node=name, resource=f"node/{name}", field=field, remedy=remedy)
