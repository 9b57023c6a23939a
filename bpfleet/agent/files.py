"""Files of the agent's state: written whole or not at all, counted, and refused in time when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from bpfleet.errors import DiskFull, HostFailed

_SPARE_BYTES = 64 * 1024
"""What must stay free beside the bytes themselves: journal and directory entries."""


class Files:
    """Writes below one root directory. `writes` counts every file written, renamed into place or removed.

    Whoever writes or removes holds the node's lock, so a draft that lies there is that of a process that was killed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writes = 0

    def require(self, path: Path, size: int) -> None:
        """Raise DiskFull, having changed nothing, unless `size` bytes and some spare fit beside `path`."""
        directory = path.parent
        while not directory.exists():
            directory = directory.parent
        room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize
        if free < size + _SPARE_BYTES:
            raise disk_full(path, size + _SPARE_BYTES, free)

    def write(self, path: Path, data: bytes) -> None:
        """Replace `path` atomically and durably: a temporary file, fsync, rename, fsync of the directory."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_drafts(path)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            temporary.replace(path)
            _sync_directory(path.parent)
        except OSError as problem:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                temporary.unlink()
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(path, len(data), None) from problem
            raise failed("written", path, problem) from problem
        self.writes += 1

    def remove(self, path: Path) -> None:
        """Remove a file; one that is not there is no error and no write."""
        try:
            _remove_drafts(path)
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as problem:
            raise failed("removed", path, problem) from problem
        self.writes += 1


def _remove_drafts(path: Path) -> None:
    for draft in path.parent.glob(f".{path.name}.*"):
        draft.unlink()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_full(path: Path, needed: int, free: int | None) -> DiskFull:
    """The error that names the path and the bytes needed."""
    have = "" if free is None else f", {free} free"
    return DiskFull(
        f"no space left to write {path}: {needed} bytes needed{have}",
        remedy=f"Free space on the file system of {path.parent}; the last confirmed state is untouched.",
        file=str(path),
        details={"needed": needed, "free": free},
    )


def failed(verb: str, path: Path, problem: OSError) -> HostFailed:
    """The error for a file that cannot be read, written or removed."""
    return HostFailed(
        f"{path} cannot be {verb}: {problem.strerror}",
        remedy="The agent must run as root and its directory must be on a writable, local file system.",
        file=str(path),
        details={"errno": problem.errno},
    )
