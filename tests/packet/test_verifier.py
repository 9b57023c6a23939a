"""Every program, by every pair of its load-time constants, at the least and the most of each; and how much the kernel
had to look at. verifier.json has the figures, so that growth is seen in review; `--update` writes it again.

Kernels differ in how they count: the table is compared on the release it was written on, by TOLERANCE.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import platform
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import CONSTANTS, PROGRAMS
from bpfleet.loader.real import shows_contexts
from tests.packet import kernel

pytestmark = pytest.mark.root

TABLE = Path(__file__).with_name("verifier.json")
TOLERANCE = 0.05
LIMIT = 500_000  # half of what a kernel allows: older ones look at more

EXTREMES: Dict[str, Tuple[Any, Any]] = {
    "tunnel_port": (1, 65535),
    "node_address": ("", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    "gateway_v4": ("", "255.255.255.255"),
    "gateway_v6": ("", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    "host_policy": (0, 1),
    "blocked_at_tc": (0, 1),
    "direct_delivery": (0, 1),
    "services_at_tc": (0, 1),
    "jiffy_ns": (0, 10_000_000),
    "kernel_contexts": (0, int(shows_contexts())),
    "events_slots_mask": (0, 0xFFFFFFFF),
    "copies_mask": (0, 0xFFFFFFFF),
    "connections_move": (0, 1),
    "flows_passed": (0, 0xFFFFFFFF),
    "flows_dropped": (0, 0xFFFFFFFF),
}


def pairwise(options: Dict[str, Tuple[Any, Any]]) -> List[Dict[str, Any]]:
    """Few rows in which every two constants have every two values together, by greed. The first two: least, most."""
    names = list(options)
    rows = [dict.fromkeys(names, 0), dict.fromkeys(names, 1)]
    open_pairs = {
        (one, x, other, y)
        for one, other in itertools.combinations(names, 2)
        for x, y in itertools.product((0, 1), repeat=2)
    }

    def covered(row: Dict[str, int]) -> set[Tuple[str, int, str, int]]:
        return {(one, row[one], other, row[other]) for one, other in itertools.combinations(names, 2)}

    for row in rows:
        open_pairs -= covered(row)
    while open_pairs:
        candidates = (dict(zip(names, bits)) for bits in itertools.product((0, 1), repeat=len(names)))
        best = max(candidates, key=lambda row: len(covered(row) & open_pairs))
        rows.append(best)
        open_pairs -= covered(best)
    return [{name: options[name][row[name]] for name in names} for row in rows]


ROWS = pairwise(EXTREMES)


def load(name: str, constants: Dict[str, Any]) -> Tuple[int, str]:
    """The verifier's answer (0: it took the program) and its statistics."""
    lib = kernel.libbpf()
    lib.bpf_program__set_log_buf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.bpf_program__set_log_level.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    opened = lib.bpf_object__open_file(str(kernel.BUILD / f"{name}.bpf.o").encode(), None)
    assert opened, f"{name}: run make objects"
    try:
        one = lib.bpf_object__next_map(opened, None)
        while one:
            if lib.bpf_map__name(one).decode().endswith(".rodata"):
                size = ctypes.c_size_t()
                initial = lib.bpf_map__initial_value(one, ctypes.byref(size))
                data = layout.encode_constants(name, constants, ctypes.string_at(initial, size.value))
                kernel.check(lib.bpf_map__set_initial_value(one, data, len(data)))
            one = lib.bpf_object__next_map(opened, one)
        program = lib.bpf_object__find_program_by_name(opened, next(iter(PROGRAMS[name])).encode())
        log = ctypes.create_string_buffer(1 << 16)
        lib.bpf_program__set_log_buf(program, log, len(log))
        lib.bpf_program__set_log_level(program, 4)  # statistics only
        return lib.bpf_object__load(opened), log.value.decode(errors="replace")
    finally:
        lib.bpf_object__close(opened)


def figures(log: str) -> Dict[str, int]:
    """What the kernel says: instructions looked at, and the frame of the hook itself."""
    looked, frame = re.search(r"processed (\d+) insns", log), re.search(r"stack depth (\d+)", log)
    assert looked and frame, log
    return {"instructions": int(looked[1]), "frame": int(frame[1])}


def test_extremes_are_of_every_constant() -> None:
    for name, constants in CONSTANTS.items():
        assert set(constants) == set(EXTREMES), f"{name}: say the extremes of each constant"


def test_rows_hold_every_pair() -> None:
    for one, other in itertools.combinations(EXTREMES, 2):
        assert {(row[one], row[other]) for row in ROWS} == set(itertools.product(EXTREMES[one], EXTREMES[other]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_pair_of_constants_loads(devices: None, name: str, pytestconfig: pytest.Config) -> None:
    found: Dict[str, Dict[str, int]] = {}
    for number, row in enumerate(ROWS):
        result, log = load(name, row)
        assert not result, f"{row}\n{log[-4000:]}"
        seen = figures(log)
        assert seen["instructions"] < LIMIT, row
        if number < 2:
            found["least" if number == 0 else "most"] = seen
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    release = platform.release()
    if pytestconfig.getoption("--update"):
        known = table["programs"] if table.get("kernel") == release else {}
        table = {"kernel": release, "programs": dict(sorted({**known, name: found}.items()))}
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
        return
    if table["kernel"] != release:
        pytest.skip(f"verifier.json was written on kernel {table['kernel']}, this is {release}; every pair loaded")
    for kind, want in table["programs"][name].items():
        have = found[kind]
        assert abs(have["instructions"] - want["instructions"]) <= TOLERANCE * want["instructions"], (
            f"{kind}: {have['instructions']} instructions, {want['instructions']} in verifier.json. "
            "Write it again with --update if that is meant"
        )
        assert have["frame"] == want["frame"], (
            f"{kind}: the hook's frame. Write it again with --update if that is meant"
        )
