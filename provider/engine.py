"""Messages to the user, through the engine that runs the plugin; none of them tells a secret of the program."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Optional, Set

import grpc.aio  # type: ignore[import-untyped]
from pulumi.runtime.proto import LogRequest, LogSeverity
from pulumi.runtime.proto.engine_pb2_grpc import EngineStub

from provider.values import without_secrets


class Engine:
    """The engine's log. `say` may be called from any thread; messages are sent in order, in the background."""

    def __init__(self, address: str) -> None:
        """`address` is host:port, as the engine gives it on the command line. To be made on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._channel: Optional[grpc.aio.Channel] = None
        self._sending: Set[asyncio.Task[None]] = set()
        self._order = asyncio.Lock()
        self._hidden: Set[str] = set()
        self.attach(address)

    def hide(self, secrets: Set[str]) -> None:
        """Let no message tell these from now on."""
        self._hidden |= secrets

    def fit_to_tell(self, text: str) -> str:
        """The text without what is hidden."""
        return without_secrets(self._hidden, text)

    def attach(self, address: str) -> None:
        """Talk to the engine at this address from now on."""
        self._channel = grpc.aio.insecure_channel(address) if address else None

    def warn(self, urn: str, text: str) -> None:
        """A warning about a resource, kept on the screen."""
        self._post(urn, text, LogSeverity.WARNING, False)

    def inform(self, urn: str, text: str) -> None:
        """Something the user should see once, kept on the screen."""
        self._post(urn, text, LogSeverity.INFO, False)

    def progress(self, urn: str, text: str) -> None:
        """What goes on just now, shown beside the resource until the next such line."""
        self._post(urn, text, LogSeverity.INFO, True)

    def _post(self, urn: str, text: str, severity: Any, ephemeral: bool) -> None:
        if self._loop.is_closed():
            return
        request = LogRequest(urn=urn, message=self.fit_to_tell(text), severity=severity, ephemeral=ephemeral)
        self._loop.call_soon_threadsafe(self._start, request)

    def _start(self, request: LogRequest) -> None:
        task = self._loop.create_task(self._send(request))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, request: LogRequest) -> None:
        async with self._order:
            if self._channel is None:
                return
            try:
                await EngineStub(self._channel).Log(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                # The engine keeps a plugin's stderr: the message is not lost with it.
                print(f"{request.message} (the engine took no message: {error.details()})", file=sys.stderr)

    async def flush(self) -> None:
        """Wait until all that was said has been sent."""
        await asyncio.sleep(0)
        while self._sending:
            await asyncio.gather(*list(self._sending))
