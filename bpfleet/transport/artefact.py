"""Which artefact is delivered: the one that belongs to this very code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpfleet.agent.artefact import BUILT, CHECKOUT, HOST_PACKAGES, OBJECTS, TEMPLATES, Artefact, build
from bpfleet.agent.install import digest_of

__all__ = ["Artefact", "current", "of_bytes"]


def of_bytes(data: bytes) -> Artefact:
    """Any artefact, under its digest."""
    return Artefact(digest_of(data), data)


def current() -> Artefact:
    """The artefact of this checkout: the built one, unless something that goes into it is newer.

    Then it is made anew, in memory (half a second): a controller must never deliver an agent of other code than its
    own. Raises HostFailed where the objects are missing.
    """
    try:
        built = BUILT.stat().st_mtime_ns
        fresh = all(path.stat().st_mtime_ns <= built for path in _inputs())
        return of_bytes(BUILT.read_bytes()) if fresh else build()
    except FileNotFoundError:
        return build()


def _inputs() -> Iterator[Path]:
    package = CHECKOUT / "bpfleet"
    yield from (package / "__init__.py", package / "errors.py")
    for name in HOST_PACKAGES:
        yield package / name  # a removed file shows in its folder
        yield from (path for path in (package / name).rglob("*") if path.suffix == ".py" or path.is_dir())
    yield from OBJECTS.glob("*.bpf.o")
    yield from (TEMPLATES, *TEMPLATES.glob("*.j2"))
