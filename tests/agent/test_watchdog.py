"""The watchdog puts the old generation back with nobody there to do it, and is gone when the transaction is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from bpfleet.agent import guard
from bpfleet.agent.watchdog import leave_cgroup
from bpfleet.errors import HostFailed, TransactionFailed
from tests import fleet
from tests.agent.conftest import Connection, Host, items, quickstart
from tests.agent.pythons import INTERPRETERS, interpreter

CHANGE = {
    "node": "h1",
    "owner": "pulumi:p/s",
    "puts": items([fleet.endpoint("web-2", 1, 3, "web"), fleet.policy("web", {"app": "web"}, ingress=[])]),
    "deletes": ["endpoint/api-1"],
}
LONGEST_SECONDS = 60.0
"""Until a test gives up waiting."""


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


def watchdogs(transaction: str) -> List[int]:
    """Processes that watch over this transaction, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"watchdog" in words and b"--detach" in words and transaction.encode() in words:
                found.append(int(path.parent.name))
    return found


class Watched(Host):
    """A host on which generation 1 is confirmed, and whose agents start watchdogs."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        super().__init__(folder, python)
        self.commit(**quickstart())
        self.old = self.digests()[0]
        self.transactions: List[str] = []

    def stage(self, *options: str, **change: Any) -> Tuple[Connection, str]:
        connection = self.connect("--watchdog", *options)
        transaction: str = connection.call("stage", **(change or CHANGE))["transaction"]
        self.transactions.append(transaction)
        return connection, transaction

    def applied_until_killed(self, place: str, *options: str) -> str:
        connection, transaction = self.stage("--kill", place, *options)
        connection.send("apply", {"transaction": transaction, "deadline_seconds": 3600})
        with pytest.raises(EOFError):
            connection.receive()
        return transaction

    def journal(self) -> Dict[str, Any]:
        """The journal, read past any agent."""
        found: Dict[str, Any] = json.loads((self.root / "journal.json").read_text())
        return found

    def assert_put_back(self, transaction: str, why: str) -> None:
        """By the watchdog: no agent was started since."""
        until(lambda: self.journal()["transaction"] is None, "the transaction is over")
        journal = self.journal()
        entry = journal["entries"][-1]
        assert (entry["event"], entry["transaction"]) == ("rolled back", transaction)
        assert why in entry["reason"]
        assert journal["confirmed"]["generation"] == 1
        assert self.digests()[0] == self.old
        until(lambda: not watchdogs(transaction), "the watchdog is gone")
        assert f"watchdog of transaction {transaction}" in (self.root / "agent.log").read_text()
        connection = self.connect()
        assert connection.call("hello")["resolved"] is None
        assert connection.call("status")["drift"] == []
        assert connection.call("stage", **quickstart())["unchanged"]

    def close(self) -> None:
        super().close()
        for transaction in self.transactions:
            for pid in watchdogs(transaction):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", INTERPRETERS)
def test_at_the_deadline_the_old_one_is_put_back_with_no_agent_there(tmp_path: Path, name: str) -> None:
    host = Watched(tmp_path, interpreter(name))
    try:
        connection, transaction = host.stage()
        connection.call("apply", transaction=transaction, deadline_seconds=1)
        assert host.digests()[0] != host.old
        connection.close()
        host.assert_put_back(transaction, "not confirmed within 1 s")
    finally:
        host.close()


# The files written in an apply, in order: the generation, the journal "applying", the journal "applied".
@pytest.mark.parametrize("place", ["written:1", "step:0", "done:0", "done:5", "write:2"])
def test_when_the_applying_process_dies_the_old_one_is_put_back(watched: Watched, place: str) -> None:
    transaction = watched.applied_until_killed(place)
    watched.assert_put_back(transaction, "ended before it was done")


@pytest.mark.parametrize("place", ["write:0", "written:0", "write:1"])
def test_where_nothing_began_there_is_nothing_to_put_back(watched: Watched, place: str) -> None:
    transaction = watched.applied_until_killed(place)
    until(lambda: not watchdogs(transaction), "the watchdog is gone")
    assert watched.journal()["confirmed"]["generation"] == 1
    assert len(watched.journal()["entries"]) == 2
    assert watched.digests()[0] == watched.old


def test_an_applied_change_outlives_its_process_until_the_deadline(watched: Watched) -> None:
    transaction = watched.applied_until_killed("written:2")
    assert watched.journal()["transaction"]["state"] == "applied"
    assert watchdogs(transaction)
    assert watched.connect().call("confirm", transaction=transaction)["generation"] == 2
    until(lambda: not watchdogs(transaction), "the watchdog is gone")


def rules_kept(host: Host) -> List[str]:
    """Policies of the rules that are gone and still told of."""
    data = json.loads((host.root / "rules.json").read_text()) if (host.root / "rules.json").exists() else {"past": []}
    return sorted({row["policy"] for kind, _, _, row in data["past"] if kind == "rule"})


def test_what_events_name_is_known_after_the_watchdog_put_back(watched: Watched) -> None:
    connection = watched.connect("--watchdog", "--events")
    gone = connection.call("stage", node="h1", owner="pulumi:p/s", deletes=["policy/db"])["transaction"]
    connection.call("apply", transaction=gone, deadline_seconds=3600)
    watched.connect().call("confirm", transaction=gone)
    assert rules_kept(watched) == ["db"]
    _, transaction = watched.stage("--events")
    watched._connections[-1].call("apply", transaction=transaction, deadline_seconds=1)
    until(lambda: watched.journal()["transaction"] is None, "it is put back")
    kept = rules_kept(watched)
    assert "db" in kept, "of before"
    assert "web" in kept, "it was in force until now"
    until(lambda: not watchdogs(gone) and not watchdogs(transaction), "the watchdogs are gone")


def test_a_confirmed_change_stays_and_leaves_nothing(watched: Watched, tmp_path: Path) -> None:
    connection, transaction = watched.stage()
    connection.call("apply", transaction=transaction, deadline_seconds=3600)
    assert len(watchdogs(transaction)) == 1
    assert watched.connect().call("confirm", transaction=transaction)["generation"] == 2
    until(lambda: not watchdogs(transaction), "the watchdog is gone")
    # The same with no watchdog writes as much and leaves as much.
    folder = tmp_path / "unwatched"
    folder.mkdir()
    other = Host(folder)
    other.commit(**quickstart())
    other.commit(**CHANGE)
    other.close()
    assert files(watched.root) == files(other.root)
    writes = json.loads((other.root / "journal.json").read_text())["writes"]
    assert watched.journal()["writes"] == writes


def files(root: Path) -> List[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_two_transactions_one_after_the_other(watched: Watched) -> None:
    first, one = watched.stage()
    first.call("apply", transaction=one, deadline_seconds=3600)
    second = watched.connect("--watchdog")
    assert second.call("confirm", transaction=one)["generation"] == 2
    watched.old = watched.digests()[0]
    other: Dict[str, Any] = {"node": "h1", "owner": "pulumi:p/s", "deletes": ["endpoint/web-2"]}
    two = second.call("stage", **other)["transaction"]
    watched.transactions.append(two)
    second.call("apply", transaction=two, deadline_seconds=1)
    until(lambda: watched.journal()["transaction"] is None, "the second is over")
    assert watched.digests()[0] == watched.old
    assert watched.journal()["confirmed"]["generation"] == 2
    until(lambda: not watchdogs(one) and not watchdogs(two), "both watchdogs are gone")


def test_a_watchdog_that_was_killed_is_made_up_for_at_the_next_start(watched: Watched) -> None:
    connection, transaction = watched.stage()
    connection.call("apply", transaction=transaction, deadline_seconds=1)
    for pid in watchdogs(transaction):
        os.kill(pid, signal.SIGKILL)
    connection.close()
    until(lambda: not watchdogs(transaction), "it is dead")

    def resolved() -> bool:
        return "was rolled back: it was not confirmed" in str(watched.connect().call("hello")["resolved"])

    until(resolved, "a start comes after the deadline")
    assert watched.digests()[0] == watched.old


@pytest.mark.parametrize("dies", ["step:0", "done:1", "removal:0", "write:0"])
def test_both_killed_the_next_start_puts_back(watched: Watched, dies: str) -> None:
    transaction = watched.applied_until_killed("done:4", "--kill-watchdog", dies)
    until(lambda: not watchdogs(transaction), "the watchdog has died putting back")
    assert watched.journal()["transaction"]["state"] == "applying"
    connection = watched.connect()
    assert connection.call("hello")["resolved"].startswith(f"transaction {transaction} was rolled back")
    assert watched.digests()[0] == watched.old
    assert connection.call("status")["drift"] == []


def test_no_change_begins_without_its_watchdog(watched: Watched) -> None:
    connection, transaction = watched.stage()
    until(lambda: len(watchdogs(transaction)) == 1, "it is there")
    os.kill(watchdogs(transaction)[0], signal.SIGKILL)
    with pytest.raises(TransactionFailed, match="watchdog that would put this change back is gone") as raised:
        connection.call("apply", transaction=transaction)
    assert raised.value.details["retry"] == "stage"
    assert watched.digests()[0] == watched.old
    # Staged again, there is another.
    again = connection.call("stage", **CHANGE)["transaction"]
    watched.transactions.append(again)
    connection.call("apply", transaction=again)
    assert watched.connect().call("confirm", transaction=again)["generation"] == 2


def test_nothing_watches_over_what_is_not_applied(watched: Watched) -> None:
    connection = watched.connect("--watchdog")
    assert connection.call("stage", **quickstart())["unchanged"]
    connection, transaction = watched.stage()
    assert len(watchdogs(transaction)) == 1
    connection.call("rollback")
    until(lambda: not watchdogs(transaction), "it went with what was staged")
    connection, transaction = watched.stage()
    connection.close()
    until(lambda: not watchdogs(transaction), "it went with the process")


def test_a_process_that_hangs_while_applying_is_ended(watched: Watched) -> None:
    connection, transaction = watched.stage("--patience", "1")
    kernel = watched.kernel_file
    # The kernel's file as a pipe that nobody writes to: reading it never ends.
    aside = kernel.with_suffix(".aside")
    kernel.rename(aside)
    os.mkfifo(kernel)
    connection.send("apply", {"transaction": transaction})
    with pytest.raises(EOFError):
        connection.receive()
    assert connection.process.wait() == -signal.SIGKILL
    aside.replace(kernel)
    until(lambda: (watched.root / "agent.log").exists(), "it is said")
    watched.assert_put_back(transaction, "ended before it was done")


def test_a_kernel_that_fails_once_is_put_back_in_the_end(watched: Watched) -> None:
    kernel = watched.kernel
    connection, transaction = watched.stage()
    connection.call("apply", transaction=transaction, deadline_seconds=1)
    watched.change_kernel(fail_at=watched.kernel.steps_done)
    assert kernel.steps_done != watched.kernel.steps_done
    connection.close()
    watched.assert_put_back(transaction, "not confirmed within 1 s")
    assert "could not be put back, which is tried again" in (watched.root / "agent.log").read_text()


def test_a_watchdog_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostFailed, match=r"cannot be started: /nonexistent: No such file"):
        guard.Guard(["/nonexistent"], "t1")
    silent = guard.Guard(["/bin/false"], "t2")
    with pytest.raises(HostFailed, match="/bin/false: wait status 256"):
        silent.ready()
    monkeypatch.setattr(guard, "READY_SECONDS", 0.1)
    hanging = guard.Guard(["/bin/sh", "-c", "sleep 600"], "t3")
    with pytest.raises(HostFailed, match=r"/bin/sh: no answer within 0\.1 s"):
        hanging.ready()


def test_systemd_is_asked_first_where_it_is_the_init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "systemd-run"
    tool.write_text("#!/bin/sh\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(guard, "SYSTEMD", tmp_path)
    monkeypatch.setattr(guard, "_SEARCHED", (str(tmp_path),))
    service, detached = guard.forms(["python3", "watchdog"], "t4")
    assert service[0] == str(tool)
    assert "--unit=bpfleet-watchdog-t4" in service
    assert service[-3:] == ["--", "python3", "watchdog"]
    assert detached == ["python3", "watchdog", "--detach"]
    # Where systemd does not take it, the other form is started.
    with pytest.raises(HostFailed, match=r"systemd-run: wait status 256; /bin/false: wait status 256"):
        guard.Guard(["/bin/false"], "t5").ready()


def test_it_imports_little_before_it_is_ready() -> None:
    script = (
        "import sys; sys.argv = ['x']; import bpfleet.agent.main, bpfleet.agent.watchdog\n"
        "heavy = {'ctypes', 'logging', 'subprocess', 'shutil', 'json', 'dataclasses', 'inspect'}\n"
        "print(sorted(name for name in sys.modules if name in heavy or name.startswith('bpfleet.')))"
    )
    root = Path(guard.__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=root, capture_output=True, text=True, check=True)
    agent = ("guard", "main", "watchdog")
    assert done.stdout.strip() == str(
        sorted(["bpfleet.agent", "bpfleet.errors", *(f"bpfleet.agent.{n}" for n in agent)])
    )


def test_it_leaves_the_callers_session_and_cgroup(watched: Watched) -> None:
    connection, transaction = watched.stage()
    (pid,) = watchdogs(transaction)
    assert os.getsid(pid) != os.getsid(connection.process.pid)
    assert os.getpgid(pid) != os.getpgid(connection.process.pid)
    assert (Path("/proc") / str(pid) / "cwd").resolve() == Path("/")
    assert {(Path("/proc") / str(pid) / "fd" / n).resolve() for n in "012"} == {Path(os.devnull)}


@pytest.mark.root
def test_it_moves_to_the_root_of_cgroup2() -> None:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if not mounts or os.geteuid() != 0:
        pytest.skip("no cgroup2 that this process may change")
    group = Path(mounts[0][4]) / f"bpfleet-test-{os.getpid()}"
    group.mkdir()
    try:
        child = os.fork()
        if child == 0:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            before = _cgroup2()
            moved = leave_cgroup()
            os._exit(0 if moved and before.endswith(group.name) and _cgroup2() == "/" else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        group.rmdir()


def _cgroup2() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))
