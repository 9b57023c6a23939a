"""The one lock of a node: flock on a file, so that a process that dies lets go of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Iterator

from bpfleet.agent.files import failed
from bpfleet.errors import TransactionFailed

_POLL_SECONDS = 0.01


class NodeLock:
    """Exclusive for what changes the node, shared for what reads its kernel side."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.writes = 0

    @contextlib.contextmanager
    def exclusive(self, purpose: str, wait_seconds: float) -> Iterator[None]:
        """Hold the node alone; `purpose` is what others are told that must wait too long (TransactionFailed)."""
        with self._held(fcntl.LOCK_EX, wait_seconds) as handle:
            note = json.dumps({"pid": os.getpid(), "purpose": purpose}).encode()
            with contextlib.suppress(OSError):  # a full disk must keep nobody from putting back
                os.ftruncate(handle, 0)
                os.pwrite(handle, note, 0)
            self.writes += 1
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)  # or readers that hold it next would be taken for this process

    @contextlib.contextmanager
    def shared(self, wait_seconds: float) -> Iterator[None]:
        """Hold the node beside other readers. Writes nothing."""
        with self._held(fcntl.LOCK_SH, wait_seconds):
            yield

    @contextlib.contextmanager
    def _held(self, mode: int, wait_seconds: float) -> Iterator[int]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise failed("opened", self._path, problem) from problem
        try:
            deadline = time.monotonic() + wait_seconds
            while not self._try(handle, mode):
                if time.monotonic() >= deadline:
                    raise self._busy(handle, wait_seconds)
                time.sleep(_POLL_SECONDS)
            yield handle
        finally:
            os.close(handle)

    @staticmethod
    def _try(handle: int, mode: int) -> bool:
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _busy(self, handle: int, waited: float) -> TransactionFailed:
        holder, who = {}, "another process"
        if not self._try(handle, fcntl.LOCK_SH):  # or those that hold it read, and the note is of one that died
            with contextlib.suppress(ValueError, KeyError, TypeError):
                noted = json.loads(os.pread(handle, 4096, 0))
                holder, who = noted, f"process {noted['pid']} ({noted['purpose']})"
        return TransactionFailed(
            f"the node is locked by {who}; waited {waited:g} s",
            remedy="Try again when it is done; if it hangs, end that process: what it began is put back then.",
            file=str(self._path),
            details={"holder": holder, "retry": "stage"},
        )
