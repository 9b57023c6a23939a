"""The agent's artefact as the controller holds it: bytes under their digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bpfleet.agent.install import digest_of
from bpfleet.errors import HostFailed

BUILT = Path(__file__).resolve().parents[2] / "build" / "agent.pyz"


@dataclass(frozen=True)
class Artefact:
    """What is delivered to hosts. `digest` is hex SHA-256 of `data`."""

    digest: str
    data: bytes

    @staticmethod
    def of(data: bytes) -> Artefact:
        return Artefact(digest_of(data), data)

    @staticmethod
    def read(path: Path) -> Artefact:
        """The artefact in a file that `make` built."""
        try:
            return Artefact.of(path.read_bytes())
        except OSError as missing:
            raise HostFailed(
                f"the agent's artefact cannot be read: {missing.strerror}",
                file=str(path),
                remedy="Build it: make agent",
            ) from missing

    @staticmethod
    def built() -> Artefact:
        """The artefact that belongs to this checkout or installation."""
        return Artefact.read(BUILT)
