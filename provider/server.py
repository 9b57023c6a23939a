"""The plugin's process: `pulumi-resource-bpfleet ENGINE_ADDRESS`.

It prints the port it listens on and serves until the engine ends it, or until the process that started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import List

import grpc.aio  # type: ignore[import-untyped]
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import provider_pb2_grpc

import bpfleet
from provider.engine import Engine
from provider.provider import BpfleetProvider
from provider.sdk import Servicer

_PARENT_CHECK_SECONDS = 1.0


def main(arguments: List[str]) -> int:
    """Run the plugin; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pulumi-resource-bpfleet", description="Pulumi's plugin for bpfleet.")
    parser.add_argument("engine", nargs="?", default="", help="address of Pulumi's engine (host:port)")
    parser.add_argument("--version", action="version", version=bpfleet.__version__)
    options, _ = parser.parse_known_args(arguments)  # the engine may add options of its own, such as --logflow
    asyncio.run(_serve(arguments, options.engine))
    return 0


async def _serve(arguments: List[str], address: str) -> None:
    engine = Engine(address)
    provider = BpfleetProvider(engine)
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)

    def attached(new_address: str) -> None:
        engine.attach(new_address)
        provider.begin()

    servicer = Servicer(arguments, bpfleet.__version__, provider, address, attached)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    parent = os.getppid()  # before the port is told: from then on it may be killed at any moment
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch = asyncio.create_task(_end_with_parent(parent, stop))
    await stop.wait()
    watch.cancel()
    await provider.cancel()
    await server.stop(grace=None)


async def _end_with_parent(parent: int, stop: asyncio.Event) -> None:
    """Set `stop` when the starting process `parent` is gone: a killed engine tells its plugins nothing.

    (PR_SET_PDEATHSIG would fire when the starting *thread* ends, which in a Go program happens at any time.)
    """
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    stop.set()
