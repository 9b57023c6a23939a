"""The plugin as a process: how it starts, what it answers, and that it never outlives who started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf import empty_pb2
from pulumi.runtime import proto
from pulumi.runtime.proto import provider_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "provider" / "pulumi-resource-bpfleet"
START_SECONDS = 60.0


def ask(port: str, method: str, request: Any) -> Any:
    async def scenario() -> Any:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await getattr(provider_pb2_grpc.ResourceProviderStub(channel), method)(request)

    return asyncio.run(scenario())


def gone(pid: int) -> bool:
    """Whether the process ends within a time that only a broken plugin would need."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_it_serves_its_schema_from_any_folder_and_ends_on_sigterm(tmp_path: Path) -> None:
    link = tmp_path / "pulumi-resource-bpfleet"
    link.symlink_to(LAUNCHER)
    (tmp_path / "provider.py").write_text("raise SystemExit('imported from the working folder')")
    plugin = subprocess.Popen([link, "127.0.0.1:1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert plugin.stdout is not None
        port = plugin.stdout.readline().strip()
        schema = json.loads(ask(port, "GetSchema", proto.GetSchemaRequest()).schema)
        assert schema["name"] == "bpfleet"
        assert ask(port, "GetPluginInfo", empty_pb2.Empty()).version
        plugin.send_signal(signal.SIGTERM)
        assert plugin.wait(START_SECONDS) == 0
    finally:
        plugin.kill()
        plugin.communicate()


def test_it_ends_when_its_parent_is_killed() -> None:
    # The shell stands for an engine that is killed: it has no chance to tell the plugin.
    script = f"{LAUNCHER} 127.0.0.1:1 & echo $!; wait"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    plugin = int(shell.stdout.readline())
    try:
        assert shell.stdout.readline().strip().isdigit(), "the port"
        shell.kill()
        shell.wait()
        assert gone(plugin)
    finally:
        shell.kill()
        shell.wait()
        shell.stdout.close()
        if not gone(plugin):
            os.kill(plugin, signal.SIGKILL)


def test_a_checkout_without_an_environment_says_what_to_do(tmp_path: Path) -> None:
    environment = {**os.environ, "BPFLEET_PYTHON": str(tmp_path / "none")}
    done = subprocess.run([LAUNCHER], env=environment, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 1
    assert "make setup" in done.stderr and "BPFLEET_PYTHON" in done.stderr


def test_it_tells_its_version() -> None:
    done = subprocess.run([LAUNCHER, "--version"], capture_output=True, text=True, timeout=START_SECONDS)
    assert done.stdout.strip().count(".") == 2
