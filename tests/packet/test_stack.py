"""What a program and all that it calls take of the stack, as kernel 6.1 counts it: frames in steps of 32 bytes, where
later ones count in 16. What this machine's kernel takes must not be refused there."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Dict, List, Set, Tuple

import pytest

from bpfleet.loader.generated.layouts import PROGRAMS
from tests.packet.kernel import BUILD

LIMIT, STEP = 512, 32
_CALL, _PSEUDO_CALL = 0x85, 1
_FUNCTION = re.compile(r"([0-9a-f]{16}) <([^>]+)>:")
_INSTRUCTION = re.compile(r"\s+(\d+):\t((?:[0-9a-f]{2}[ \t]){8})\s*(.*)")
_FRAME = re.compile(r"r10 - 0x([0-9a-f]+)|\+= -0x([0-9a-f]+)$")


def frames_and_calls(path: Path) -> Tuple[Dict[str, int], Dict[str, Set[str]]]:
    """Bytes of each function's frame, and whom it calls."""
    listed = subprocess.run(["llvm-objdump-19", "-dr", str(path)], capture_output=True, text=True, check=True).stdout
    sizes: Dict[str, int] = {}
    named: Dict[Tuple[str, int], str] = {}
    calls: List[Tuple[str, str, int]] = []  # who, and the section and offset of whom
    by_name: List[Tuple[str, str]] = []
    section = function = ""
    imm = 0
    for line in listed.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.split()[-1].rstrip(":")
        elif found := _FUNCTION.match(line):
            function = found[2]
            sizes[function] = 0
            named[section, int(found[1], 16)] = function
        elif "R_BPF_64_32" in line:  # of the call before it, which says nothing else or where in that section
            calls.pop()
            name = line.split()[-1]
            if name.startswith("."):
                calls.append((function, name, 8 * (imm + 1)))
            else:
                by_name.append((function, name))
        elif found := _INSTRUCTION.match(line):
            number, code, text = int(found[1]), bytes.fromhex(found[2]), found[3]
            if code[0] == _CALL and code[1] >> 4 == _PSEUDO_CALL:
                imm = int.from_bytes(code[4:], "little", signed=True)
                calls.append((function, section, 8 * (number + 1 + imm)))
            for one in _FRAME.finditer(text):
                size = int(one[1] or one[2], 16)
                sizes[function] = max(sizes[function], size if size <= LIMIT else 0)
    whom: Dict[str, Set[str]] = defaultdict(set)
    ours = [(caller, name) for caller, name in by_name if name in sizes]  # the kernel's have its stack
    for caller, callee in [*ours, *((caller, named[where, at]) for caller, where, at in calls)]:
        whom[caller].add(callee)
    return sizes, whom


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_frames_fit_as_old_kernels_count_them(name: str) -> None:
    sizes, calls = frames_and_calls(BUILD / f"{name}.bpf.o")

    @cache
    def deepest(function: str) -> Tuple[int, str]:
        most, way = max((deepest(one) for one in calls.get(function, ())), default=(0, ""))
        own = -(-max(sizes[function], 1) // STEP) * STEP
        return own + most, f"{function} {own}, {way}"

    depth, way = max(map(deepest, sizes))
    assert depth <= LIMIT, way


def test_calls_and_frames_are_found() -> None:
    sizes, calls = frames_and_calls(BUILD / "from_endpoint.bpf.o")
    assert "admit" in calls["bpfl_from_ep"] and "policy_judge" in calls["admit"]
    assert sizes["bpfl_from_ep"] > 100
