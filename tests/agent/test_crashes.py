"""An agent killed anywhere leaves, after the next start, the old node or the new one, whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterator, Tuple

import pytest

from bpfleet.errors import DiskFull, TransactionFailed
from tests import fleet
from tests.agent.conftest import Connection, Host, items, quickstart

CHANGE = {
    "node": "h1",
    "owner": "pulumi:p/s",
    "puts": items([fleet.endpoint("web-2", 1, 3, "web"), fleet.policy("web", {"app": "web"}, ingress=[])]),
    "deletes": ["endpoint/api-1"],
}


class Case:
    """A host on which generation 1 is confirmed, and what its kernel holds before and after the change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = Host(folder)
        host.commit(**quickstart())
        self.old = host.digests()[0]
        host.close()
        after = self.copy(folder.with_name("after"))
        connection = after.connect()
        self.steps = sum(connection.call("stage", **CHANGE)["steps"].values())
        connection.close()
        after.commit(**CHANGE)
        self.new = after.digests()[0]
        after.close()
        assert self.old != self.new

    def copy(self, to: Path) -> Host:
        shutil.copytree(self.folder, to)
        return Host(to)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case") / "before"
    folder.mkdir()
    return Case(folder)


@pytest.fixture
def killed(case: Case, tmp_path: Path) -> Iterator[Host]:
    host = case.copy(tmp_path / "host")
    yield host
    host.close()


def applied_until_killed(host: Host, place: str) -> str:
    """Stage and apply on an agent that dies at `place`; the transaction's name."""
    connection = host.connect("--kill", place)
    transaction: str = connection.call("stage", **CHANGE)["transaction"]
    connection.send("apply", {"transaction": transaction})
    with pytest.raises(EOFError):
        connection.receive()
    assert connection.process.wait() == -9
    return transaction


def applied(host: Host) -> str:
    """Stage and apply; the transaction's name."""
    connection = host.connect()
    transaction: str = connection.call("stage", **CHANGE)["transaction"]
    connection.call("apply", transaction=transaction)
    return transaction


def dies_of(host: Host, place: str, method: str, **params: Any) -> None:
    """Ask an agent that dies at `place`."""
    dying = host.connect("--kill", place)
    dying.send(method, params)
    with pytest.raises(EOFError):
        dying.receive()


def resolved(host: Host) -> Tuple[Connection, str]:
    connection = host.connect()
    return connection, str(connection.call("hello")["resolved"])


def assert_old(host: Host, case: Case, connection: Connection) -> None:
    hello = connection.call("hello")
    assert (hello["generation"], hello["pending"]) == (1, None)
    assert host.digests()[0] == case.old
    assert connection.call("status")["drift"] == []
    assert connection.call("stage", **quickstart())["unchanged"]


# The files written in an apply, in order: the generation, the journal "applying", the journal "applied".
BEFORE_APPLYING = ["write:0", "written:0", "write:1"]
WHILE_APPLYING = ["written:1", "step:0", "done:0", "step:3", "done:5", "write:2"]


@pytest.mark.parametrize("place", BEFORE_APPLYING)
def test_killed_before_the_journal_says_so_nothing_happened(killed: Host, case: Case, place: str) -> None:
    applied_until_killed(killed, place)
    connection, words = resolved(killed)
    assert words == "None"
    assert_old(killed, case, connection)


@pytest.mark.parametrize("place", [*WHILE_APPLYING, "last step"])
def test_killed_while_applying_the_old_one_is_put_back(killed: Host, case: Case, place: str) -> None:
    transaction = applied_until_killed(killed, f"done:{case.steps - 1}" if place == "last step" else place)
    connection, words = resolved(killed)
    assert words.startswith(f"transaction {transaction} was rolled back: process ")
    assert_old(killed, case, connection)
    entry = connection.call("journal", limit=1)[0]
    assert (entry["event"], entry["transaction"]) == ("rolled back", transaction)


def test_killed_at_every_step_the_old_one_is_put_back_and_the_next_change_works(case: Case, tmp_path: Path) -> None:
    """Before and after each single step, the watchdog dead as well; the same host goes on from one to the next."""
    host = case.copy(tmp_path / "host")
    try:
        for step in range(case.steps):
            for place in (f"step:{step}", f"done:{step}"):
                applied_until_killed(host, place)
                connection, words = resolved(host)
                assert "was rolled back" in words, place
                assert host.digests()[0] == case.old, place
                connection.close()
        host.commit(**CHANGE)
        assert host.digests()[0] == case.new
    finally:
        host.close()


def test_killed_after_it_is_applied_it_can_still_be_confirmed(killed: Host, case: Case) -> None:
    transaction = applied_until_killed(killed, "written:2")
    connection, words = resolved(killed)
    assert words == "None"
    assert connection.call("hello")["pending"]["state"] == "applied"
    assert killed.digests()[0] == case.new
    assert connection.call("confirm", transaction=transaction)["generation"] == 2
    assert connection.call("status")["drift"] == []


def test_killed_while_putting_back_it_is_put_back_all_the_same(killed: Host, case: Case) -> None:
    applied_until_killed(killed, "done:4")
    for place in ("step:0", "done:1", "removal:0", "write:0"):
        dies_of(killed, place, "hello")
    connection, words = resolved(killed)
    assert "was rolled back" in words
    assert_old(killed, case, connection)


@pytest.mark.parametrize("place", ["step:0", "done:1", "done:4", "removal:0"])
def test_what_is_half_put_back_is_confirmed_by_nobody(killed: Host, case: Case, place: str) -> None:
    """A confirmation that is under way when somebody asks for the old one, and waits for who puts it back."""
    transaction = applied(killed)
    dies_of(killed, place, "rollback", transaction=transaction)
    connection = killed.connect()
    with pytest.raises(TransactionFailed, match=r"was rolled back \(asked\)"):
        connection.call("confirm", transaction=transaction)
    assert_old(killed, case, connection)


@pytest.mark.parametrize("place", ["", "done:1", "done:4", "removal:1"])
def test_what_a_full_disk_did_not_let_be_noted_is_confirmed_by_nobody(killed: Host, case: Case, place: str) -> None:
    """Put back whole or in part, where the journal could not be told."""
    transaction = applied(killed)
    connection = killed.connect("--full", "0", "--kill", place)
    connection.send("rollback", {"transaction": transaction})
    if place:
        with pytest.raises(EOFError):
            connection.receive()
    else:
        assert connection.receive()["error"]["code"] == "DiskFull"
        assert killed.digests()[0] == case.old
    connection = killed.connect()
    with pytest.raises(TransactionFailed, match="is being put back"):
        connection.call("confirm", transaction=transaction)
    assert connection.call("rollback", transaction=transaction)["rolled_back"] == transaction
    assert_old(killed, case, connection)


@pytest.mark.parametrize(("place", "generation"), [("write:0", 1), ("written:0", 2)])
def test_killed_while_confirming(killed: Host, case: Case, place: str, generation: int) -> None:
    transaction = applied(killed)
    dies_of(killed, place, "confirm", transaction=transaction)
    connection = killed.connect()
    assert connection.call("hello")["generation"] == generation
    assert killed.digests()[0] == case.new
    assert connection.call("confirm", transaction=transaction)["generation"] == 2


def test_a_kernel_that_cannot_be_put_back_is_told_and_tried_again(killed: Host, case: Case) -> None:
    applied_until_killed(killed, "done:4")
    killed.change_kernel(fail_at=killed.kernel.steps_done)
    connection = killed.connect()
    hello = connection.call("hello")
    assert "could not be put back" in hello["resolved"]
    assert hello["pending"]["state"] == "applying"
    assert "was made to fail" in (killed.root / "agent.log").read_text()
    assert "was rolled back" in resolved(killed)[1]
    assert_old(killed, case, killed.connect())


def test_a_wipe_that_was_killed_is_finished_by_the_next(killed: Host) -> None:
    dies_of(killed, "removal:0", "wipe", node="h1")
    connection = killed.connect()
    assert connection.call("hello")["generation"] == 1
    assert connection.call("wipe", node="h1")["wiped"]
    assert killed.kernel.links == {}
    assert [path.name for path in killed.root.iterdir()] == ["lock"]


@pytest.mark.parametrize("place", ["draft:0", "draft:1"])
def test_what_was_half_written_when_it_was_killed_is_gone_after_a_wipe(killed: Host, place: str) -> None:
    applied_until_killed(killed, place)
    assert list(killed.root.rglob(".*.json.*"))
    connection = killed.connect()
    assert connection.call("wipe", node="h1")["wiped"]
    assert [path.name for path in killed.root.rglob("*")] == ["lock"]


def test_what_was_half_written_when_it_was_killed_goes_with_the_next_change(killed: Host) -> None:
    for place in ("draft:0", "draft:1"):
        applied_until_killed(killed, place)
    killed.commit(**CHANGE)
    assert not list(killed.root.rglob(".*.json.*"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_disk_that_fills_up_in_an_apply_leaves_the_old_one(killed: Host, case: Case, number: int) -> None:
    connection = killed.connect("--full", str(number))
    transaction = connection.call("stage", **CHANGE)["transaction"]
    with pytest.raises(DiskFull) as raised:
        connection.call("apply", transaction=transaction)
    assert str(killed.root) in raised.value.where["file"]
    assert killed.digests()[0] == case.old
    connection.close()
    # The last write would have said so; where not even that could be written, the next start says it.
    connection, words = resolved(killed)
    assert (words != "None") == (number == 2)
    assert_old(killed, case, connection)
