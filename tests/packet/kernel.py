"""The objects in the kernel, to be fed with packets: libbpf to load them, bpf(2) for the rest.

Only as much as packet tests and benches need; the agent's loader is another matter.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import struct
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import ENUMS, MAPS, PROGRAMS

BUILD = Path(__file__).resolve().parents[2] / "build/bpf"
CPUS = os.sysconf("SC_NPROCESSORS_CONF")
SLOTS = 1024
COPY_SETS = 1024
"""Connections of which each CPU keeps a copy, if the constants do not say otherwise (base.h)."""
FLOW_MAPS = ("flow_slots", "flows", "flow_counts")
FLOW_WAYS = ENUMS["flow_way"]["ways"]
COPIES = ("connection_copies", "judgement_copies")

TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT = 0xFFFFFFFF, 2, 7
XDP_ACTIONS = {1: "drop", 2: "pass"}
ACTIONS = {TC_ACT_UNSPEC: "pass", TC_ACT_SHOT: "shot", TC_ACT_REDIRECT: "redirect"}

MAP_UPDATE = 2
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT, TEST_RUN = 0, 1, MAP_UPDATE, 3, 4, 10
_LOOKUP_BATCH = 24
_LINK_CREATE, _LINK_DETACH, _TCX_INGRESS, _TCX_EGRESS = 28, 34, 46, 47
_INNER_TYPES = {"hash": 1, "array": 2, "lpm_trie": 11}
_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_SK_BUFF_SIZE, _INGRESS_IFINDEX, _IFINDEX = 192, 36, 40
_MARK, _PRIORITY, _GSO_SIZE = 8, 32, 176
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Result(NamedTuple):
    """What became of one packet: action by name, frame afterwards, counters that moved, events written."""

    action: str
    frame: bytes
    counters: Dict[str, int]
    events: List[Dict[str, Any]]


def bpf(command: int, attributes: bytes, keep: Sequence[Any] = ()) -> tuple[int, bytes]:
    """bpf(2): (result, attributes as the kernel left them). `keep`: the buffers they point to. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    result = _libc.syscall(_SYSCALL, command, buffer, 144)
    del keep
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, buffer.raw


def run_program(program: int, frame: bytes, context: bytes) -> tuple[int, bytes]:
    """BPF_PROG_TEST_RUN of a program by its descriptor: (return code, the frame afterwards)."""
    data, out, ctx = buffer(frame), buffer(bytes(len(frame) + 256)), buffer(context) if context else None
    attributes = struct.pack(
        "<IIIIQQIIIIQQ",
        program, 0, len(frame), len(frame) + 256, pointer(data), pointer(out),
        1, 0, len(context), 0, pointer(ctx), 0,
    )  # fmt: skip
    _, left = bpf(TEST_RUN, attributes, (data, out, ctx))
    _, code, _, size = struct.unpack_from("<IIII", left)
    return code, out.raw[:size]


def pointer(data: Any) -> int:
    """The address of a buffer, 0 for None."""
    return ctypes.addressof(data) if data is not None else 0


def buffer(data: bytes) -> Any:
    """Bytes where the kernel can reach them."""
    return ctypes.create_string_buffer(data, max(len(data), 1))


def detach(link: int) -> None:
    """At once; closing alone is not enough while somebody lists links, and so holds this one for a moment."""
    try:
        bpf(_LINK_DETACH, struct.pack("<I", link))
    finally:
        os.close(link)


class Map:
    """One map by its descriptor."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.percpu = MAPS[name]["type"].startswith("percpu")
        self.after_write: Callable[[], None] = lambda: None

    def update(self, key: Mapping[str, Any], value: Mapping[str, Any] | bytes) -> None:
        """Write one record."""
        data = value if isinstance(value, bytes) else layout.encode(self.name, "value", value)
        self._do(_UPDATE, layout.encode(self.name, "key", key), data)

    def delete(self, key: Mapping[str, Any]) -> None:
        """Remove one record. Raises OSError if there is none."""
        self._do(_DELETE, layout.encode(self.name, "key", key), b"")

    def lookup(self, key: Mapping[str, Any]) -> Dict[str, Any]:
        """One record; of a per-CPU map the sum of its fields. Raises OSError if there is none."""
        return self._value(layout.encode(self.name, "key", key))

    def _value(self, key: bytes) -> Dict[str, Any]:
        size = layout.layout(self.name, "value").size
        data = self._do(_LOOKUP, key, bytes(size * (CPUS if self.percpu else 1)))
        records = layout.decode_many(self.name, "value", data)
        if not self.percpu:
            return records[0]
        return {name: sum(record[name] for record in records) for name in records[0]}

    def lookup_raw(self, key: bytes) -> bytes:
        """The value behind an encoded key. Raises OSError if there is none."""
        return self._do(_LOOKUP, key, bytes(layout.layout(self.name, "value").size))

    def update_raw(self, key: bytes, value: bytes) -> None:
        """Write an encoded record."""
        self._do(_UPDATE, key, value)

    def items(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """All records."""
        return [(layout.decode(self.name, "key", key), self._value(key)) for key in self.keys()]

    def keys(self) -> List[bytes]:
        """All keys, encoded."""
        found: List[bytes] = []
        while True:
            after = buffer(found[-1]) if found else None
            following = buffer(bytes(layout.layout(self.name, "key").size))
            attributes = struct.pack("<IIQQ", self.fd, 0, pointer(after), pointer(following))
            try:
                bpf(_NEXT, attributes, (after, following))
            except FileNotFoundError:
                return found
            found.append(following.raw)

    def sums(self, field: str) -> List[int]:
        """A field of 8 bytes of every record of a per-CPU array, over all CPUs; read by one call."""
        described = MAPS[self.name]
        size, count = described["value"]["size"], described["max_entries"]
        offset = next(one["offset"] for one in described["value"]["fields"] if one["name"] == field)
        keys, values, at = buffer(bytes(4 * count)), buffer(bytes(size * CPUS * count)), buffer(bytes(4))
        attributes = struct.pack("<QQQQII", 0, pointer(at), pointer(keys), pointer(values), count, self.fd)
        with contextlib.suppress(FileNotFoundError):  # which is the end
            bpf(_LOOKUP_BATCH, attributes, (keys, values, at))
        column = struct.unpack(f"<{size * CPUS * count // 8}Q", values.raw)[offset // 8 :: size // 8]
        return [sum(column[start : start + CPUS]) for start in range(0, len(column), CPUS)]

    def clear(self) -> None:
        """Remove every record of a hash; zero those of an array."""
        value = bytes(layout.layout(self.name, "value").size * (CPUS if self.percpu else 1))
        for key in self.keys():
            if "array" in MAPS[self.name]["type"]:
                self._do(_UPDATE, key, value)
            else:
                self._do(_DELETE, key, b"")

    def _do(self, command: int, key: bytes, value: bytes) -> bytes:
        key_buffer, value_buffer = buffer(key), buffer(value)
        value_pointer = pointer(value_buffer) if value else 0
        attributes = struct.pack("<IIQQQ", self.fd, 0, pointer(key_buffer), value_pointer, 0)
        bpf(command, attributes, (key_buffer, value_buffer))
        if command != _LOOKUP:
            self.after_write()
        return value_buffer.raw


class Datapath:
    """All objects, sharing one set of maps. Close it to let go of everything."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self.maps: Dict[str, Map] = {}
        self.programs: Dict[str, int] = {}
        self._objects: List[int] = []
        self._flow_slots = flow_slots(constants)
        self._copy_sets = constants.get("copies_mask", COPY_SETS - 1) + 1
        self._never_written = () if constants.get("direct_delivery") else ("direct_paths",)
        self._lib = libbpf()
        for name, functions in PROGRAMS.items():
            self._load(name, next(iter(functions)), constants)
        self._events = mmap.mmap(
            self.maps["events"].fd,
            _pages(CPUS * SLOTS * MAPS["events"]["value"]["size"]),
            mmap.MAP_SHARED,
            mmap.PROT_READ,
        )
        copies, judgements = (self._map_memory(name) for name in COPIES)
        self._copies, self._judgements = copies, judgements
        self.maps["connections"].after_write = self.forget_copies
        self.maps["flows"].after_write = self.forget_judgements

    def _map_memory(self, name: str) -> mmap.mmap:
        return mmap.mmap(self.maps[name].fd, _pages(CPUS * self._copy_sets * MAPS[name]["value"]["size"]))

    def forget_copies(self) -> None:
        """Have the next packet of each connection look at its record, as if a tick had passed."""
        self._copies[:] = bytes(len(self._copies))

    def forget_judgements(self) -> None:
        """Have policy asked again, as if other questions had taken every copy's place."""
        self._judgements[:] = bytes(len(self._judgements))

    def close(self) -> None:
        """Unload."""
        self._events.close()
        self._copies.close()
        self._judgements.close()
        for opened in self._objects:
            self._lib.bpf_object__close(opened)

    def _load(self, name: str, function: str, constants: Mapping[str, Any]) -> None:
        lib = self._lib
        opened = lib.bpf_object__open_file(str(BUILD / f"{name}.bpf.o").encode(), None)
        if not opened:
            raise OSError(ctypes.get_errno(), f"cannot open {name}: run make objects")
        self._objects.append(opened)
        one = lib.bpf_object__next_map(opened, None)
        names = {}
        while one:
            map_name = lib.bpf_map__name(one).decode()
            names[map_name] = one
            if map_name.endswith(".rodata"):
                size = ctypes.c_size_t()
                initial = lib.bpf_map__initial_value(one, ctypes.byref(size))
                data = layout.encode_constants(name, constants, ctypes.string_at(initial, size.value))
                check(lib.bpf_map__set_initial_value(one, data, len(data)))
            elif map_name in self.maps:
                check(lib.bpf_map__reuse_fd(one, self.maps[map_name].fd))
            elif map_name == "events":
                check(lib.bpf_map__set_max_entries(one, CPUS * SLOTS))
            elif map_name in COPIES:
                check(lib.bpf_map__set_max_entries(one, CPUS * self._copy_sets))
            elif map_name == "event_cursor":
                check(lib.bpf_map__set_max_entries(one, CPUS))
            elif map_name in FLOW_MAPS:
                each = CPUS * FLOW_WAYS if map_name == "flow_counts" else 1
                check(lib.bpf_map__set_max_entries(one, each * self._flow_slots))
            one = lib.bpf_object__next_map(opened, one)
        check(lib.bpf_object__load(opened))
        for map_name, one in names.items():
            if map_name in MAPS and map_name not in self.maps:
                self.maps[map_name] = Map(map_name, lib.bpf_map__fd(one))
        program = lib.bpf_object__find_program_by_name(opened, function.encode())
        self.programs[name] = lib.bpf_program__fd(program)

    def attach(self, program: str, ifindex: int, egress: bool = False) -> int:
        """Attach a program by a tcx link, for detach() to take away. Needs kernel 6.6."""
        kind = _TCX_EGRESS if egress else _TCX_INGRESS
        return bpf(_LINK_CREATE, struct.pack("<IIII", self.programs[program], ifindex, kind, 0))[0]

    @contextlib.contextmanager
    def watch(self) -> Iterator[List[Result]]:
        """What real frames do to counters and events inside the block: one Result, there after it."""
        counters, written = self.counters(), self._written()
        seen: List[Result] = []
        yield seen
        seen.append(Result("", b"", self._moved(counters), self._events_since(written)))

    def _moved(self, before: Mapping[str, int]) -> Dict[str, int]:
        return {name: count - before[name] for name, count in self.counters().items() if count != before[name]}

    def reset(self) -> None:
        """Empty every map but the events."""
        for name, one in self.maps.items():
            if name not in ("events", "event_cursor", *COPIES, *self._never_written):
                one.clear()
        self.forget_copies()
        self.forget_judgements()

    def set_policy(self, identity: int, entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Swap in a new inner map."""
        self.set_inner("policies", {"identity": identity}, entries)

    def next_generation(self) -> None:
        """Have the programs judge every connection once more."""
        word = self.maps["generation"].lookup({"index": 0})["word"]
        self.maps["generation"].update({"index": 0}, {"word": (word + ENUMS["generation_word"]["step"]) % (1 << 32)})

    def set_inner(
        self,
        outer: str,
        outer_key: Mapping[str, Any],
        entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    ) -> None:
        """Make an inner map and put it in its place."""
        name = MAPS[outer]["inner"]
        described = MAPS[name]
        key, value = described["key"]["size"], described["value"]["size"]
        kind = _INNER_TYPES[described["type"]]
        fd, _ = bpf(_MAP_CREATE, struct.pack("<IIIII", kind, key, value, max(len(entries), 1), described["flags"]))
        inner = Map(name, fd)
        try:
            for entry_key, entry_value in entries:
                inner.update(entry_key, entry_value)
            self.maps[outer].update(outer_key, {"inner": fd})
        finally:
            os.close(fd)

    def run_xdp(self, frame: bytes) -> Result:
        """Feed one frame to the XDP program, as if at the loopback device (there is no saying where)."""
        counters, written = self.counters(), self._written()
        code, out = self.run_raw("xdp_underlay", frame, b"")
        return Result(XDP_ACTIONS.get(code, str(code)), out, self._moved(counters), self._events_since(written))

    def run(
        self,
        program: str,
        frame: bytes,
        ifindex: int = 0,
        ingress_ifindex: int = 0,
        *,
        segment: int = 0,
        mark: int = 0,
        priority: int = 0,
    ) -> Result:
        """Feed one frame to a program, as if at that device. segment: put together by the kernel from ones with so many
        bytes. mark, priority: what somebody else has noted with the packet."""
        counters, written = self.counters(), self._written()
        context = bytearray(_SK_BUFF_SIZE)
        struct.pack_into("<II", context, _INGRESS_IFINDEX, ingress_ifindex, ifindex)
        for offset, value in ((_GSO_SIZE, segment), (_MARK, mark), (_PRIORITY, priority)):
            struct.pack_into("<I", context, offset, value)
        code, out = self.run_raw(program, frame, bytes(context))
        return Result(ACTIONS.get(code, str(code)), out, self._moved(counters), self._events_since(written))

    def run_raw(self, program: str, frame: bytes, context: bytes) -> tuple[int, bytes]:
        """BPF_PROG_TEST_RUN: (return code, the frame afterwards)."""
        return run_program(self.programs[program], frame, context)

    def flows(self) -> List[Dict[str, Any]]:
        """The history: what each slot is and carried, first those that did not fit; numbers become names."""
        found = []
        first = ENUMS["flow_slot"]["first"]
        for key, flow in self.maps["flows"].items():
            count = self.flow_count(key["index"])
            if flow["verdict"] or (key["index"] < first and count["packets"] + count["answer_packets"]):
                for field in ("verdict", "direction", "reason"):
                    flow[field] = layout.name_of(field, flow[field])
                found.append({"slot": key["index"], **flow, **count})
        return found

    def flow_count(self, slot: int) -> Dict[str, int]:
        """What a slot of the history carried, over all CPUs."""
        counts = self.maps["flow_counts"]
        found: Dict[str, int] = {}
        for way, prefix in enumerate(("", "answer_")):
            indices = [(cpu * FLOW_WAYS + way) * self._flow_slots + slot for cpu in range(CPUS)]
            each = [counts.lookup({"index": index}) for index in indices]
            found.update({f"{prefix}{name}": sum(one[name] for one in each) for name in each[0]})
        return found

    def counters(self) -> Dict[str, int]:
        """Packets by the reason's name."""
        counts = self.maps["counters"].sums("packets")
        return {name: counts[number] for name, number in ENUMS["reason"].items() if name != "limit"}

    def _written(self) -> List[int]:
        cursor = self.maps["event_cursor"]
        return [cursor.lookup({"index": cpu})["written"] for cpu in range(CPUS)]

    def _events_since(self, written: List[int]) -> List[Dict[str, Any]]:
        """Events by the readers' protocol, from the mapping; numbers become names."""
        found = []
        stride = MAPS["events"]["value"]["size"]
        for cpu, (before, now) in enumerate(zip(written, self._written())):
            for number in range(before + 1, now + 1):
                at = (cpu * SLOTS + (number - 1) % SLOTS) * stride
                event = layout.decode("events", "value", self._events[at : at + stride])
                assert event["sequence"] == number
                for field in ("verdict", "direction", "reason", "hook"):
                    event[field] = layout.name_of(field, event[field])
                found.append(event)
        return sorted(found, key=lambda event: event["time_ns"])


def flow_slots(constants: Mapping[str, Any]) -> int:
    """Of the history by these constants, or else as base.h has them."""
    if "flows_passed" not in constants:
        return int(ENUMS["flow_slot"]["limit"])
    return int(ENUMS["flow_slot"]["first"] + constants["flows_passed"] + constants["flows_dropped"])


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """A network namespace for this thread alone."""
    with Path("/proc/thread-self/ns/net").open() as home:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def check(result: int) -> None:
    """Raise OSError for a negative result of libbpf."""
    if result:
        raise OSError(-result, os.strerror(-result))


def libbpf() -> ctypes.CDLL:
    """The library, with the signatures of what is called here."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: Dict[str, tuple[Any, list[Any]]] = {
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (number, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__next_map": (pointer, [pointer, pointer]),
        "bpf_object__find_program_by_name": (pointer, [pointer, text]),
        "bpf_program__fd": (number, [pointer]),
        "bpf_map__name": (text, [pointer]),
        "bpf_map__fd": (number, [pointer]),
        "bpf_map__initial_value": (pointer, [pointer, pointer]),
        "bpf_map__set_initial_value": (number, [pointer, text, ctypes.c_size_t]),
        "bpf_map__set_max_entries": (number, [pointer, ctypes.c_uint32]),
        "bpf_map__reuse_fd": (number, [pointer, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    quiet: Optional[Any] = lib.libbpf_set_print
    if quiet is not None:
        quiet(None)
    return lib
