"""Connections to this machine itself: commands as child processes, without SSH. For tests, and for a controller that
runs on the node."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bpfleet.transport.channel import CHUNK, COMPLAINT_BYTES, Broken, Connection, Deadline, Stream
from bpfleet.transport.target import Target

# A command whose stdin ended may finish what it does; after this it is killed.
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class LocalConnector:
    """Runs commands here, whatever the target's host. `prefix`: what to run the shell under (nsenter and the like)."""

    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    local: bool = True

    def __call__(self, target: Target, until: Deadline) -> Connection:
        return LocalConnection([*self.prefix, "sh", "-c"], {**os.environ, **self.environment})

    def close(self) -> None:
        """Nothing is kept."""


class LocalConnection:
    """A `Connection` whose commands are child processes, each in a session of its own."""

    def __init__(self, shell: Sequence[str], environment: Mapping[str, str]) -> None:
        self._shell = list(shell)
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._streams: set[_LocalStream] = set()
        self._closed = False

    def open(self, command: str, until: Deadline) -> Stream:
        with self._lock:
            if self._closed:
                raise Broken("the connection was closed")
            try:
                process = subprocess.Popen(
                    [*self._shell, command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as failed:
                raise Broken(f"{self._shell[0]} cannot be started: {failed.strerror}") from failed
            stream = _LocalStream(process, self._forget)
            self._streams.add(stream)
            return stream

    def _forget(self, stream: _LocalStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    @property
    def alive(self) -> bool:
        return not self._closed

    def close(self) -> None:
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.close()


class _LocalStream:
    def __init__(self, process: subprocess.Popen[bytes], forget: Callable[[_LocalStream], None]) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._forget = forget
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        os.set_blocking(self._in.fileno(), False)
        self._complaint = b""
        self._err_open = True
        self._close_lock = threading.Lock()
        self._closed = False

    def _wait(self, until: Deadline, *, read: bool) -> None:
        """Until stdout can be read (or stdin written). Takes stderr meanwhile: full, it would stall the command."""
        while True:
            if self._closed:
                raise Broken("the connection was closed")
            wanted = [self._out] if read else []
            reading = [*wanted, self._err] if self._err_open else wanted
            try:
                ready, writable, _ = select.select(reading, [] if read else [self._in], [], until.look)
            except (OSError, ValueError) as closed:
                if self._closed:
                    continue
                raise EOFError("the command reads no more") from closed
            if self._err in ready:
                self._listen()
            if self._out in ready or writable:
                return
            until.check("answer")

    def _listen(self) -> None:
        data = os.read(self._err.fileno(), CHUNK)
        self._err_open = bool(data)
        self._complaint = (self._complaint + data)[-COMPLAINT_BYTES:]

    def send(self, data: bytes, until: Deadline) -> None:
        view = memoryview(data)
        while view:
            try:
                self._wait(until, read=False)
                view = view[os.write(self._in.fileno(), view[:CHUNK]) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ValueError) as closed:
                raise EOFError("the command reads no more") from closed

    def end_input(self) -> None:
        self._in.close()

    def receive(self, until: Deadline) -> bytes:
        try:
            self._wait(until, read=True)
            data = os.read(self._out.fileno(), CHUNK)
        except (OSError, ValueError) as closed:
            raise Broken("the connection was closed") from closed
        if not data and self._closed:
            # Another thread closed the channel: the command did not end by itself.
            raise Broken("the connection was closed")
        return data

    def complaint(self) -> str:
        while self._err_open and select.select([self._err], [], [], 0)[0]:
            self._listen()
        return self._complaint.decode(errors="replace").strip()

    def exit_status(self, until: Deadline) -> int | None:
        try:
            status = self._process.wait(until.left)
        except subprocess.TimeoutExpired:
            return None
        return status if status >= 0 else None

    def leave(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            for pipe in (self._in, self._out, self._err):
                pipe.close()
        self._forget(self)
        # Nobody else would reap it.
        threading.Thread(target=self._process.wait, name="bpfleet-left", daemon=True).start()

    def close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._in.close()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                # Its own session: nobody else is in that process group.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._out.close()
            self._err.close()
        self._forget(self)
