"""Times programs by bench/harness/verdict_bench.c: variants side by side, packets that differ, net of an empty program.

What is timed by BPF_PROG_TEST_RUN is everything up to the tunnel key and the redirect, not what the kernel does with
the packet afterwards.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from bpfleet.loader.generated.layouts import MAPS
from tests.packet import kernel

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/bench"

TUNNEL_MEMBER, TUNNEL_IDENTITY = "192.0.2.2", 80_000
"""As in bench/harness/bench.bpf.c: who sent what bench_tunnel passes on."""

_PROG_LOAD, _SCHED_CLS = 5, 3
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)


@dataclass(frozen=True)
class Variant:
    """A program, a frame, and what is different in each packet: all differences are as long, and lie at `at`."""

    program: int
    frame: bytes
    at: int
    differences: Sequence[bytes]


@dataclass(frozen=True)
class Timed:
    """Nanoseconds net of the empty program, by variant: the median of the rounds, and each round."""

    empty_ns: float
    ns: Mapping[str, float]
    rounds: Mapping[str, List[float]]

    def less(self, name: str, baseline: str) -> float:
        """The median of what a variant took longer than another in the same round."""
        return statistics.median([one - other for one, other in zip(self.rounds[name], self.rounds[baseline])])

    def over(self, name: str, baseline: str) -> float:
        """The median of a variant's time over another's in the same round: what others do to the machine for a while
        then slows both, if they were given one after the other."""
        ratios = [one / other for one, other in zip(self.rounds[name], self.rounds[baseline])]
        return round(statistics.median(ratios), 3)


def build() -> None:
    """Compile the harness and the programs beside it."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "bench/harness")], check=True)


def run(variants: Mapping[str, Variant], rounds: int, calls: int, warm: int) -> Timed:
    """Time them, one after the other in each round, each after `warm` calls that do not count. Needs root."""
    build()
    empty = empty_program()
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = []
            for name, variant in variants.items():
                path = Path(folder) / name
                _write_packets(path, variant)
                arguments.append(f"{name}:{variant.program}:{path}")
            inherited = [empty, *(variant.program for variant in variants.values())]
            for descriptor in inherited:
                os.set_inheritable(descriptor, True)
            cpu = max(os.sched_getaffinity(0))
            command = [str(BUILD / "verdict_bench"), str(cpu), str(rounds), str(warm), str(calls), str(empty)]
            command += arguments
            done = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=inherited)
    finally:
        os.close(empty)
    found = json.loads(done.stdout)
    times = found["variants"]
    return Timed(
        found["empty_ns"],
        {name: one["ns"] for name, one in times.items()},
        {name: one["rounds"] for name, one in times.items()},
    )


def empty_program() -> int:
    """A program that returns 0; its descriptor."""
    instructions, licence = kernel.buffer(_RETURN_0), kernel.buffer(b"GPL\0")
    attributes = struct.pack("<IIQQ", _SCHED_CLS, 2, kernel.pointer(instructions), kernel.pointer(licence))
    return kernel.bpf(_PROG_LOAD, attributes, (instructions, licence))[0]


class Programs:
    """The programs of bench/harness/bench.bpf.c, on a datapath's maps. Close it to unload them."""

    def __init__(self, datapath: kernel.Datapath) -> None:
        build()
        self._lib = kernel.libbpf()
        self._object = self._lib.bpf_object__open_file(str(BUILD / "bench.bpf.o").encode(), None)
        if not self._object:
            raise OSError(f"cannot open {BUILD / 'bench.bpf.o'}")
        target = 0
        one = self._lib.bpf_object__next_map(self._object, None)
        while one:
            name = self._lib.bpf_map__name(one).decode()
            if name in MAPS:
                kernel.check(self._lib.bpf_map__reuse_fd(one, datapath.maps[name].fd))
            elif name == "target":
                target = one
            one = self._lib.bpf_object__next_map(self._object, one)
        kernel.check(self._lib.bpf_object__load(self._object))
        self.descriptors: Dict[str, int] = {
            name: self._lib.bpf_program__fd(self._lib.bpf_object__find_program_by_name(self._object, name.encode()))
            for name in ("bench_lookup", "bench_tunnel", "bench_empty")
        }
        self._target = self._lib.bpf_map__fd(target)

    def close(self) -> None:
        """Unload."""
        self._lib.bpf_object__close(self._object)

    def go_on_in(self, program: int) -> None:
        """What bench_tunnel calls."""
        key, value = kernel.buffer(bytes(4)), kernel.buffer(struct.pack("=I", program))
        attributes = struct.pack("<IIQQQ", self._target, 0, kernel.pointer(key), kernel.pointer(value), 0)
        kernel.bpf(kernel.MAP_UPDATE, attributes, (key, value))


def _write_packets(path: Path, variant: Variant) -> None:
    size = len(variant.differences[0])
    shape = struct.pack("=III", len(variant.frame), variant.at, size)
    path.write_bytes(shape + variant.frame + b"".join(variant.differences))
