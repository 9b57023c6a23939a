"""The interpreters that the agent is tested under: this one, and a real Python 3.9, the oldest it runs on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python39() -> str:
    """Path of a Python 3.9; skips the test, by name, where there is none and none can be made."""
    tool = ROOT / "tools" / "python39"
    done = subprocess.run([str(tool), "--path"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no Python 3.9: {done.stderr.strip()}")
    return done.stdout.strip()


def interpreter(name: str) -> str:
    """The interpreter of a test's parameter: "this" or "3.9"."""
    return sys.executable if name == "this" else python39()


INTERPRETERS: List[str] = ["this", "3.9"]


def old_pythons() -> List[str]:
    """Interpreters that are too old for the agent, as far as this machine has some."""
    versions = Path.home() / ".pyenv" / "versions"
    return [str(path) for minor in (6, 7, 8) for path in versions.glob(f"3.{minor}.*/bin/python3")]
