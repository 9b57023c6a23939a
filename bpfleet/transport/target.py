"""How one node is reached: data only, kept beside the node's document and outside its content and hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpfleet.errors import InvalidInput

SSH_PORT = 22


@dataclass(frozen=True)
class Target:
    """One node and how to reach it.

    `host_key` is a public key line ("ssh-ed25519 AAAA…"); with it, that key and no other is accepted. Without it,
    `known_hosts_file` (default ~/.ssh/known_hosts) decides. `private_key_file` names the one key to log in with;
    without it, the ssh agent's keys and then ~/.ssh's own are tried.
    """

    name: str
    host: str
    port: int = SSH_PORT
    user: str = "root"
    private_key_file: str | None = None
    host_key: str | None = None
    known_hosts_file: str | None = None

    def to_metadata(self) -> dict[str, Any]:
        """The "ssh" part of a node's metadata; what is not set is left out."""
        values = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "private_key_file": self.private_key_file,
            "host_key": self.host_key,
            "known_hosts_file": self.known_hosts_file,
        }
        return {key: value for key, value in values.items() if value is not None}

    @staticmethod
    def from_metadata(name: str, ssh: Mapping[str, Any], address: str = "") -> Target:
        """The inverse of `to_metadata`. `address` (the node's underlay address) is dialled where no host is given."""
        host = str(ssh.get("host") or address)
        if not host:
            raise InvalidInput(
                "nothing says how to reach this node",
                node=name,
                resource=f"node/{name}",
                field="ssh.host",
                remedy="Set ssh.host, or the node's address",
            )
        return Target(
            name=name,
            host=host,
            port=int(ssh.get("port") or SSH_PORT),
            user=str(ssh.get("user") or "root"),
            private_key_file=_text(ssh, "private_key_file"),
            host_key=_text(ssh, "host_key"),
            known_hosts_file=_text(ssh, "known_hosts_file"),
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


def _text(ssh: Mapping[str, Any], key: str) -> str | None:
    value = ssh.get(key)
    return str(value) if value else None
