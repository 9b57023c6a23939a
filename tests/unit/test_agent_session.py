"""When a connection began, from process tables as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Tuple

import pytest

from bpfleet.agent.session import boot_ticks, read_process, session_started

Table = Dict[int, Tuple[int, str, int]]  # pid -> parent, name, started

SSH_ROOT: Table = {
    1: (0, "systemd", 5),
    50: (1, "sshd", 100),  # the listener
    700: (50, "sshd", 9000),  # of this connection
    701: (700, "sh", 9010),
    702: (701, "python3", 9020),
}
PRIVSEP: Table = {**SSH_ROOT, 699: (50, "sshd", 8990), 700: (699, "sshd", 9000)}
SESSION: Table = {**SSH_ROOT, 50: (1, "sshd", 100), 700: (50, "sshd-session", 9000)}
LOCAL: Table = {1: (0, "init", 1), 60: (1, "bash) (x", 40), 702: (60, "python3", 9020)}
CONTAINER: Table = {1: (0, "sshd", 3), 702: (0, "python3", 9020)}


def made(folder: Path, table: Table) -> Path:
    for pid, (parent, name, started) in table.items():
        (folder / str(pid)).mkdir()
        fields = ["S", str(parent), *["0"] * 17, str(started), *["0"] * 30]
        (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    return folder


@pytest.mark.parametrize(
    ("table", "local", "started"),
    [
        (SSH_ROOT, False, 9000),
        (PRIVSEP, False, 9000),
        (SESSION, False, 9000),
        (SSH_ROOT, True, 9020),
        (LOCAL, False, 9020),
        (CONTAINER, False, 9020),
    ],
    ids=["ssh as root", "ssh with privilege separation", "sshd-session", "local below ssh", "local", "entered"],
)
def test_the_connection_is_as_old_as_its_sshd(tmp_path: Path, table: Table, local: bool, started: int) -> None:
    assert session_started(local=local, proc=made(tmp_path, table), pid=702) == started


def test_a_name_may_hold_brackets_and_spaces(tmp_path: Path) -> None:
    process = read_process(60, made(tmp_path, LOCAL))
    assert process is not None
    assert (process.name, process.parent, process.started) == ("bash) (x", 1, 40)


def test_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    assert read_process(1, tmp_path) is None


def test_the_kernel_counts_as_we_do() -> None:
    own = read_process(os.getpid())
    assert own is not None
    assert 0 < own.started <= boot_ticks()
