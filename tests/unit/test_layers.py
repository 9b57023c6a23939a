"""Imports point down only; pure layers do no I/O; hosts need the standard library alone."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bpfleet"

# What each layer may import of bpfleet (itself and errors besides). ARCHITECTURE.md shows the same as a picture.
MAY_IMPORT: Dict[str, FrozenSet[str]] = {
    "errors": frozenset(),
    "model": frozenset(),
    "compile": frozenset({"model"}),
    "loader": frozenset({"model"}),
    "observe": frozenset({"model", "compile", "loader"}),
    "agent": frozenset({"model", "compile", "loader", "observe"}),
    "transport": frozenset({"model", "agent"}),
    "emit": frozenset({"model"}),
    "lab": frozenset(),
}
EDGES = {"cli", "provider"}

HOST_LAYERS = ("errors", "model", "compile", "loader", "observe", "agent")
PURE_LAYERS = ("model", "compile")
PURE_FILES = ("loader/plan.py", "loader/steps.py")
IMPURE = {
    "asyncio", "ctypes", "datetime", "fcntl", "mmap", "os", "pathlib", "random", "secrets", "select", "shutil",
    "socket", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
}  # fmt: skip


def _modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        path = PACKAGE / folder
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _imports(path: Path) -> List[Tuple[str, int]]:
    """(dotted name, line) of everything a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_down(layer: str) -> None:
    allowed = MAY_IMPORT[layer] | {layer, "errors", "__version__"}
    wrong = []
    for path in _modules(layer):
        for name, line in _imports(path):
            parts = name.split(".")
            if parts[0] in EDGES or (parts[0] == "bpfleet" and len(parts) > 1 and parts[1] not in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, wrong


def test_every_layer_is_listed() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MAY_IMPORT) - {"errors"} | {"cli"}


def test_pure_layers_do_no_io() -> None:
    wrong = []
    for path in [*_modules(*PURE_LAYERS), *(PACKAGE / name for name in PURE_FILES)]:
        for name, line in _imports(path):
            if name.split(".")[0] in IMPURE:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
    assert not wrong, wrong


def test_hosts_need_nothing_but_what_the_agent_carries() -> None:
    import sys

    from bpfleet.agent.artefact import CONTROLLER_ONLY

    known: Set[str] = set(sys.stdlib_module_names) | {"bpfleet"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules(*HOST_LAYERS)
        for name, line in _imports(path)
        if name.split(".")[0] not in known and path.relative_to(ROOT).as_posix() not in CONTROLLER_ONLY
    ]
    assert not wrong, wrong
