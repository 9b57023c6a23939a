"""The collection's channel with the agent that it carries, run on this machine instead of a host."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection import module

channel = module("channel")
errors = module("vendored.bpfleet.errors")
HELLO = ("hello", {})


def execute(command: str, stdin: bytes) -> Any:
    done = subprocess.run(["sh", "-c", command], input=stdin, capture_output=True, timeout=60, check=False)
    return channel.Executed(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def host(tmp_path: Path) -> Any:
    return channel.Channel(execute, channel.Artefact.carried(), local=True, root=str(tmp_path / "state"))


def test_a_fresh_host_has_no_agent_and_asking_writes_nothing(host: Any, tmp_path: Path) -> None:
    for ask in (host.ask, host.ask_any):
        with pytest.raises(channel.NotInstalled):
            ask(HELLO)
    assert list(tmp_path.iterdir()) == []
    assert host.remove() is False


def test_install_once_ask_and_remove(host: Any, tmp_path: Path) -> None:
    assert host.install() is True
    assert host.install() is False
    hello, unknown, documents = host.ask(HELLO, ("nothing", {}), ("documents", {}))
    assert (hello["artefact"], hello["generation"]) == (host.artefact.digest, 0)
    assert isinstance(unknown, errors.ProtocolFailed), "one failed request leaves the others their answers"
    assert documents["items"] == []
    assert host.remove() is True
    assert list(tmp_path.iterdir()) == []


def test_an_older_agent_can_be_read_from(host: Any, tmp_path: Path) -> None:
    host.install()
    other = channel.Channel(execute, channel.Artefact("0" * 64, b""), local=True, root=str(tmp_path / "state"))
    with pytest.raises(channel.NotInstalled):
        other.ask(HELLO)
    (hello,) = other.ask_any(HELLO)
    assert hello["artefact"] == host.artefact.digest


def test_a_damaged_delivery_is_refused(host: Any) -> None:
    wrong = channel.Channel(
        execute, channel.Artefact(host.artefact.digest, host.artefact.data[:-1]), local=True, root=host._root
    )
    with pytest.raises(errors.ProtocolFailed, match="arrived damaged"):
        wrong.install()
    with pytest.raises(channel.NotInstalled):
        host.ask(HELLO)


def test_a_login_script_that_prints_does_not_matter(host: Any) -> None:
    def noisy(command: str, stdin: bytes) -> Any:
        done = execute(command, stdin)
        return done._replace(stdout=f"Welcome!\n{{not json\n{done.stdout}\nlogout\n")

    assert channel.Channel(noisy, host.artefact, local=True, root=host._root).install() is True


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        ("exit 91", "HostUnfit", "no python3"),
        ("exit 1", "ProtocolFailed", "exit status 1"),
        ("echo gone >&2; kill -9 $$", "ProtocolFailed", "without answering hello"),
    ],
)
def test_a_host_that_does_not_answer_says_why(host: Any, command: str, error: str, says: str) -> None:
    broken = channel.Channel(lambda _, stdin: execute(command, stdin), host.artefact, local=True, root=host._root)
    with pytest.raises(getattr(errors, error), match=says):
        broken.ask(HELLO)
