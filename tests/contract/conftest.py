"""Rigs: every test here runs over the kernel in memory and over the real one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from tests.contract.rigs import FakeRig, RealRig, Rig
from tests.contract.sandbox import missing

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled objects, as they were when the tests began."""
    built = ROOT / "build/bpf"
    if len(list(built.glob("*.bpf.o"))) < 5:
        subprocess.run([sys.executable, str(ROOT / "tools/build_objects.py"), "--check"], check=True)
    copy = tmp_path_factory.mktemp("objects") / "bpf"
    shutil.copytree(built, copy)
    return copy


KERNELS = ["fake", *(pytest.param(name, marks=pytest.mark.root) for name in ("tcx", "clsact"))]
"""The kernel in memory, and the real one in either way of attaching programs."""


@pytest.fixture(params=KERNELS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A fresh host."""
    if request.param == "fake":
        made: Rig = FakeRig()
    else:
        made = real(request.getfixturevalue("objects"), tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def real_rig(objects: Path, tmp_path: Path) -> Iterator[RealRig]:
    """A fresh host with this machine's kernel and tcx, for what memory cannot show."""
    made = real(objects, tmp_path, "tcx")
    yield made
    made.close()


def real(objects: Path, scratch: Path, mechanism: str) -> RealRig:
    """The real kernel, or a skip that proves what is missing."""
    why = missing()
    if why:
        pytest.skip(f"the real kernel cannot be tested here: {why}")
    return RealRig(objects, scratch, use_tcx=mechanism == "tcx")
