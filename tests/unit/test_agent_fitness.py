"""Hosts that cannot run bpfleet, as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpfleet.agent.fitness import HostFacts, measure, problems, require
from bpfleet.errors import HostUnfit

FIT = HostFacts("6.1.0-18-amd64", (3, 9, 2), ("ext4", "bpf", "tmpfs"), True, True)


@pytest.mark.parametrize("kernel", ["6.1.0-18-amd64", "6.18.44-fc", "7.0", "10.2.1"])
def test_a_fit_host(kernel: str) -> None:
    assert problems(replace(FIT, kernel=kernel)) == []
    require(replace(FIT, kernel=kernel))


@pytest.mark.parametrize(
    ("lack", "says"),
    [
        ({"kernel": "5.10.0-28-amd64"}, "kernel 5.10.0-28-amd64 is too old: 6.1"),
        ({"kernel": "6.0.19"}, "kernel 6.0.19 is too old"),
        ({"kernel": "strange"}, "kernel strange is too old"),
        ({"python": (3, 8, 18)}, "Python 3.8.18 is too old: 3.9"),
        ({"btf": False}, "no BTF (/sys/kernel/btf/vmlinux is missing)"),
        ({"filesystems": ("ext4",)}, "no bpf file system"),
        ({"root": False}, "does not run as root"),
    ],
)
def test_each_lack_is_named(lack: Any, says: str) -> None:
    with pytest.raises(HostUnfit) as raised:
        require(replace(FIT, **lack))
    assert says in raised.value.what
    assert raised.value.remedy


def test_all_lacks_are_told_at_once() -> None:
    with pytest.raises(HostUnfit) as raised:
        require(replace(FIT, kernel="4.19", btf=False, filesystems=()))
    assert len(raised.value.details["problems"]) == 3
    for words in ("kernel 4.19", "BTF", "bpf file system"):
        assert words in raised.value.what


def test_this_host_is_measured() -> None:
    facts = measure()
    assert "proc" in facts.filesystems
    assert facts.python >= (3, 9)
