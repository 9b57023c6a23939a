"""Loads precompiled objects: constants in, maps shared by their pins, the program pinned under its digest.

A program's digest covers the object file and the constants, so that what is loaded under a digest never needs to be
loaded again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Tuple

from bpfleet.errors import HostFailed, ObjectRejected
from bpfleet.loader import layout, syscall
from bpfleet.loader.cpus import new_copy_sets, new_event_slots, possible_cpus, slots_of_each
from bpfleet.loader.generated.layouts import ENUMS, MAPS
from bpfleet.loader.libbpf import Libbpf, Object
from bpfleet.loader.pins import Pins, open_pin
from bpfleet.model.document import canonical_json
from bpfleet.model.state import Program

PROGRAM_PREFIX = "bpfl_"
"""Every program of ours has such a name: that is how it is known at a hook."""

SHARED = {"connections_next": "connections"}
"""Names of maps that are another map, but while that is made anew (resize.py)."""

_LOG_BYTES = 16 << 20  # the verifier stops with ENOSPC at its limit; what it needs for a million instructions fits
_LAST_LINES = 20


class Objects:
    """The object files of one directory, and those of them that are loaded."""

    def __init__(self, directory: Path, pins: Pins, state: Path) -> None:
        """`state`: where full verifier logs are kept."""
        self._directory = directory
        self._pins = pins
        self._state = state
        self._libbpf: Optional[Libbpf] = None
        self._hashes: Dict[Tuple[str, int, int], bytes] = {}

    def libbpf(self) -> Libbpf:
        """The library; opened when it is first needed. Raises HostUnfit."""
        if self._libbpf is None:
            self._libbpf = Libbpf()
        return self._libbpf

    def digest(self, program: Program) -> str:
        """Sixteen hex digits over the object file and the constants."""
        return hashlib.sha256(self._file_hash(program.object) + canonical_json(program.constants).encode()).hexdigest()[
            :16
        ]

    def pin(self, program: Program) -> Path:
        """Where this very program is pinned once it is loaded."""
        return self._pins.program(program.object, self.digest(program))

    def load(self, program: Program) -> int:
        """Load and verify one program; a descriptor of it, which alone keeps it. The pin directories exist.

        Raises ObjectRejected (the end of the log and the path of all of it in details), HostFailed for an object that
        was not built together with this Python, InvalidInput for an unknown constant.
        """
        return self._load(program, lambda opened: self._configure(opened, program))

    def load_again(
        self, object_name: str, running: int, moved: Mapping[str, Path], changed: Mapping[str, int] = {}
    ) -> int:
        """A program as the one behind the descriptor `running`, with its very constants but for those in `changed`, and
        on its very maps but for those in `moved`, which are where it says. A descriptor, as of `load`.

        Raises HostFailed if the object's file holds another program by now.
        """
        info = syscall.program_info(running)
        again = Program(object_name, changed)
        loaded = self._load(again, lambda opened: self._configure_again(opened, again, info, moved))
        if syscall.program_info(loaded).tag != info.tag:
            os.close(loaded)
            raise HostFailed(
                f"the program {object_name} that is in force is of another version of the agent, so it cannot be made "
                "anew on larger maps",
                file=str(self._path(object_name)),
                remedy="Make two changes of this one: first raise the limits, then add what needs them.",
            )
        return loaded

    def _load(self, program: Program, configure: Callable[[Object], Tuple[str, int]]) -> int:
        path = self._path(program.object)
        layout.check(path)
        libbpf = self.libbpf()
        del libbpf.messages[:]
        try:
            with libbpf.open(str(path)) as opened:
                name, item = configure(opened)
                opened.load()
                loaded = os.dup(opened.program_fd(item))
        except OSError as error:
            raise self._rejected(program, path, error, list(libbpf.messages)) from error
        del libbpf.messages[:]
        if not name.startswith(PROGRAM_PREFIX):
            os.close(loaded)
            raise HostFailed(
                f"program {name} does not begin with {PROGRAM_PREFIX} and could not be recognised at a hook",
                file=str(path),
                remedy="Rename the function in the C source.",
            )
        return loaded

    def _configure(self, opened: Object, program: Program) -> Tuple[str, int]:
        maps = opened.maps()
        # One that is there keeps its contents, and so its size for now: what was declared since, resize.py sees to.
        declared = {**_event_entries(), **program.sizes}
        sizes = {name: _entries(self._pins.map(name)) or declared.get(name, 0) for name in maps}
        _size_by_cpus(sizes)
        sizes.update({name: _size_of(SHARED[name], sizes) for name in maps if name in SHARED})
        constants = {**program.constants, **history_shares(sizes.get("flows", 0))}
        if "events" in sizes:
            constants["events_slots_mask"] = slots_of_each(sizes["events"], sizes["event_cursor"]) - 1
        if "connection_copies" in sizes:
            constants["copies_mask"] = slots_of_each(sizes["connection_copies"], possible_cpus()) - 1
        if constants:
            opened.write_constants(layout.encode_constants(program.object, constants, opened.read_constants()))
        for name, item in maps.items():
            if sizes[name]:
                opened.resize(item, sizes[name])
            opened.pin_at(item, str(self._place(name)))
        return self._only_program(opened, program.object)

    def _configure_again(
        self, opened: Object, program: Program, info: syscall.ProgramInfo, moved: Mapping[str, Path]
    ) -> Tuple[str, int]:
        constants = _constants_of(info)
        if len(constants) == len(opened.read_constants()):  # else it is another program, as its tag will say
            opened.write_constants(layout.encode_constants(program.object, program.constants, constants))
        for name, item in opened.maps().items():
            path = moved.get(name) or moved.get(SHARED.get(name, "")) or self._place(name)
            if _entries(path):
                opened.resize(item, _entries(path))
            opened.pin_at(item, str(path))
        return self._only_program(opened, program.object)

    def _place(self, name: str) -> Path:
        return self._pins.map(SHARED.get(name, name))

    @staticmethod
    def _only_program(opened: Object, object_name: str) -> Tuple[str, int]:
        programs = opened.programs()
        if len(programs) != 1:
            raise HostFailed(
                f"{object_name} holds {len(programs)} programs, not one: {', '.join(programs)}",
                remedy="Put each hook into an object of its own.",
            )
        return next(iter(programs.items()))

    def _rejected(self, program: Program, path: Path, error: OSError, messages: List[str]) -> HostFailed:
        if error.errno == errno.ENOMEM:
            return HostFailed(
                f"the host has no memory for the maps of object {program.object}",
                file=str(path),
                remedy="Lower the limits of the cluster (connections, translations and flows take all their memory at "
                "once), or give the host more memory.",
                details={"object": program.object, "errno": error.errno, "log": "".join(messages).splitlines()},
            )
        brief = "".join(messages)
        kept = self._keep_log(program, brief + self._full_log(program, path))
        log = _verifier_lines(brief)
        return ObjectRejected(
            f"the kernel refused object {program.object}: {error.strerror or error}",
            file=str(path),
            remedy=f"See the full log in {kept}; report it with the kernel's version ({os.uname().release})."
            if kept
            else f"Report it with the kernel's version ({os.uname().release}).",
            details={"object": program.object, "errno": error.errno, "log": log[-_LAST_LINES:], "log_path": kept},
        )

    def _full_log(self, program: Program, path: Path) -> str:
        """The verifier's whole reasoning (its end, if it is very long), from one more attempt; empty without one."""
        libbpf = self.libbpf()
        del libbpf.messages[:]
        try:
            with libbpf.open(str(path)) as opened:
                self._configure(opened, program)
                buffer = opened.log_fully(_LOG_BYTES)
                try:
                    opened.load()
                except OSError:
                    return "\n-- the verifier's whole reasoning --\n" + buffer.value.decode(errors="replace")
        except OSError:
            return ""
        return ""

    def _keep_log(self, program: Program, text: str) -> str:
        """Write a log to the state directory; its path, or nothing if there is no room for it."""
        path = self._state / f"verifier-{program.object}.log"
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError:
            return ""  # the error that is being reported matters more; its end is in the details
        return str(path)

    def _path(self, object_name: str) -> Path:
        return self._directory / f"{object_name}.bpf.o"

    def _file_hash(self, object_name: str) -> bytes:
        path = self._path(object_name)
        try:
            found = path.stat()
            key = (object_name, found.st_mtime_ns, found.st_size)
            if key not in self._hashes:
                self._hashes[key] = hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise HostFailed(
                f"cannot read object {object_name}: {error.strerror}",
                file=str(path),
                remedy="Its objects are part of the agent: remove its directory on the host, and it is delivered anew.",
            ) from error
        return self._hashes[key]


def history_shares(slots: int) -> Dict[str, int]:
    """The constants that share out the flow history's map, which must go by the size that it has (flow.h): a fifth is
    for what was dropped, two slots for all that does not fit."""
    if not slots:
        return {}
    dropped = (slots - ENUMS["flow_slot"]["first"]) // 5
    return {"flows_passed": slots - ENUMS["flow_slot"]["first"] - dropped, "flows_dropped": dropped}


def _size_by_cpus(sizes: Dict[str, int]) -> None:
    """Give new arrays, those of size 0, what each CPU of this host needs beside the map that they belong to."""
    cpus = possible_cpus()
    if sizes.get("connection_copies") == 0:
        sizes["connection_copies"] = cpus * new_copy_sets(cpus, _size_of("connections", sizes))
    if sizes.get("judgement_copies") == 0:
        sizes["judgement_copies"] = sizes["connection_copies"]
    if sizes.get("flow_counts") == 0:
        sizes["flow_counts"] = cpus * ENUMS["flow_way"]["ways"] * _size_of("flows", sizes)


def _size_of(name: str, sizes: Mapping[str, int]) -> int:
    return sizes[name] or int(MAPS[name]["max_entries"])


def _event_entries() -> Dict[str, int]:
    """Sizes of new arrays of events: as large as this host's CPUs need them."""
    cpus = possible_cpus()
    return {"events": cpus * new_event_slots(cpus, MAPS["events"]["value"]["size"]), "event_cursor": cpus}


def _constants_of(info: syscall.ProgramInfo) -> bytes:
    """The constants of a program in the kernel; empty if it has none."""
    for number in info.map_ids:
        fd = syscall.map_by_id(number)
        try:
            found = syscall.map_info(fd)
            if found.name.endswith(".rodata"):
                return syscall.map_lookup(fd, bytes(found.key_size), found.value_size) or b""
        finally:
            os.close(fd)
    return b""


def _entries(path: Path) -> int:
    """How many entries the map pinned there holds at most; 0 if there is none."""
    fd = open_pin(path)
    if fd is None:
        return 0
    try:
        return syscall.map_info(fd).max_entries
    finally:
        os.close(fd)


def _verifier_lines(text: str) -> List[str]:
    """The lines of the verifier's own log in libbpf's messages, or all lines if it is not marked."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [n for n, line in enumerate(lines) if "BEGIN PROG LOAD LOG" in line]
    ends = [n for n, line in enumerate(lines) if "END PROG LOAD LOG" in line]
    if starts and ends and ends[-1] > starts[-1]:
        return lines[starts[-1] + 1 : ends[-1]]
    return lines
