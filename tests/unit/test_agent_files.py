"""The agent's files: atomic, counted, locked by one, and honest about a full disk."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bpfleet.agent.files import Files
from bpfleet.agent.journal import APPLIED, Head, Journal, JournalFile, Transaction, empty_digest
from bpfleet.agent.lock import NodeLock
from bpfleet.errors import DiskFull, HostFailed, TransactionFailed
from bpfleet.model.document import DocumentSet


def test_a_write_replaces_whole_files_and_counts(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write(tmp_path / "a" / "b", b"one")
    files.write(tmp_path / "a" / "b", b"two")
    assert (tmp_path / "a" / "b").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert files.writes == 2
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o600


def test_removing_what_is_not_there_is_no_write(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.remove(tmp_path / "a")
    assert files.writes == 0


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as raised:
        Files(tmp_path).require(tmp_path / "new" / "file", 1 << 60)
    assert raised.value.where["file"] == str(tmp_path / "new" / "file")
    assert raised.value.details["needed"] > 1 << 60
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        files = Files(tmp_path)
        files.write(tmp_path / "file", b"old")
        with pytest.raises(DiskFull) as raised:
            files.write(tmp_path / "file", b"x" * 100_000)
        assert raised.value.details["needed"] == 100_000
        assert (tmp_path / "file").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostFailed) as raised:
        Files(tmp_path).write(tmp_path / "file" / "below", b"")
    assert raised.value.details["errno"] in (errno.ENOTDIR, errno.EEXIST)


def test_the_empty_digest_is_that_of_no_documents() -> None:
    assert empty_digest() == DocumentSet().digest


def test_the_journal_comes_back_as_it_was_written(tmp_path: Path) -> None:
    head = Head(3, "abc", "h1", "fleet", "d" * 64, "e" * 64)
    transaction = Transaction(APPLIED, head, "pulumi:p/s", 1, "boot", 60.0, 12, 3.5)
    journal = Journal(Head(2, None, "h1"), transaction, writes=5).noting("applied", head, owner="pulumi:p/s")
    written = JournalFile(Files(tmp_path)).write(journal)
    found = JournalFile(Files(tmp_path)).read()
    assert found == written
    assert found.revision == journal.revision + 1


def test_another_process_replacement_is_seen(tmp_path: Path) -> None:
    ours, theirs = JournalFile(Files(tmp_path)), JournalFile(Files(tmp_path))
    assert ours.read().revision == 0
    theirs.write(Journal(Head(1)))
    assert ours.read().confirmed.generation == 1
    theirs.write(Journal(Head(2)))
    assert ours.read().confirmed.generation == 2


def test_the_journal_keeps_a_bounded_number_of_entries() -> None:
    journal = Journal(Head())
    for number in range(150):
        journal = journal.noting("committed", Head(number))
    assert len(journal.entries) == 100
    assert journal.entries[-1]["generation"] == 149


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "[]"])
def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal.json").write_text(text)
    with pytest.raises(HostFailed, match=r"journal\.json cannot be understood"):
        JournalFile(Files(tmp_path)).read()


HOLDER = """
    import sys
    from pathlib import Path
    from bpfleet.agent.lock import NodeLock
    with NodeLock(Path(sys.argv[1])).exclusive("apply of transaction abc", 0):
        print("held", flush=True)
        sys.stdin.readline()
"""


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(TransactionFailed) as raised, NodeLock(path).exclusive("another", 0.05):
            pass
        assert f"process {holder.pid} (apply of transaction abc)" in raised.value.what
        assert raised.value.details["holder"]["pid"] == holder.pid
        with pytest.raises(TransactionFailed), NodeLock(path).shared(0.05):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with NodeLock(path).exclusive("afterwards", 0):
        pass


def test_readers_share_the_lock_and_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with NodeLock(path).exclusive("first", 0):
        pass
    before = (path.stat().st_mtime_ns, path.read_bytes())
    lock = NodeLock(path)
    with lock.shared(0), NodeLock(path).shared(0):
        pass
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert lock.writes == 0


def test_who_reads_is_not_taken_for_who_changed_the_node_before(tmp_path: Path) -> None:
    with NodeLock(tmp_path / "lock").exclusive("apply of transaction abc", 0):
        pass
    with NodeLock(tmp_path / "lock").shared(0), pytest.raises(TransactionFailed, match="locked by another process"):
        NodeLock(tmp_path / "lock").exclusive("another", 0.05).__enter__()


def test_who_reads_is_not_taken_for_who_died_while_changing_the_node(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with NodeLock(path).shared(0), pytest.raises(TransactionFailed, match="locked by another process") as raised:
        NodeLock(path).exclusive("another", 0.05).__enter__()
    assert raised.value.details["holder"] == {}
