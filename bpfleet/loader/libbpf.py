"""libbpf.so.1 by ctypes: one table of the symbols that are used, resolved before anything else is done.

A host whose libbpf lacks one of them is refused by that symbol's name. libbpf's own messages are collected, and become
part of the error when an object is refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from bpfleet.errors import HostUnfit

LIBRARY = "libbpf.so.1"
MINIMUM = (1, 1)
_REMEDY = "Install libbpf 1.1 or later (Debian 12 and Ubuntu 24.04: apt install libbpf1)."

_Pointer = ctypes.c_void_p
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

SYMBOLS: Dict[str, Tuple[List[Any], Any]] = {
    "libbpf_major_version": ([], ctypes.c_uint32),
    "libbpf_minor_version": ([], ctypes.c_uint32),
    "libbpf_version_string": ([], ctypes.c_char_p),
    "libbpf_set_print": ([_PRINT], _Pointer),
    "bpf_object__open_file": ([ctypes.c_char_p, _Pointer], _Pointer),
    "bpf_object__load": ([_Pointer], ctypes.c_int),
    "bpf_object__close": ([_Pointer], None),
    "bpf_object__next_map": ([_Pointer, _Pointer], _Pointer),
    "bpf_object__next_program": ([_Pointer, _Pointer], _Pointer),
    "bpf_map__name": ([_Pointer], ctypes.c_char_p),
    "bpf_map__is_internal": ([_Pointer], ctypes.c_bool),
    "bpf_map__set_pin_path": ([_Pointer, ctypes.c_char_p], ctypes.c_int),
    "bpf_map__set_max_entries": ([_Pointer, ctypes.c_uint32], ctypes.c_int),
    "bpf_map__initial_value": ([_Pointer, ctypes.POINTER(ctypes.c_size_t)], _Pointer),
    "bpf_map__set_initial_value": ([_Pointer, _Pointer, ctypes.c_size_t], ctypes.c_int),
    "bpf_program__name": ([_Pointer], ctypes.c_char_p),
    "bpf_program__fd": ([_Pointer], ctypes.c_int),
    "bpf_program__set_log_buf": ([_Pointer, _Pointer, ctypes.c_size_t], ctypes.c_int),
    "bpf_program__set_log_level": ([_Pointer, ctypes.c_uint32], ctypes.c_int),
}

_libc = ctypes.CDLL(None)


_messages: List[str] = []


def _collect(_level: int, form: Optional[bytes], arguments: Optional[int]) -> int:
    size = 1 << 16
    buffer = ctypes.create_string_buffer(size)
    # A va_list is passed by reference on every architecture we run on, so its address can be handed on.
    length = int(_libc.vsnprintf(buffer, ctypes.c_size_t(size), form, ctypes.c_void_p(arguments)))
    # What does not fit is lost: the arguments are used up, and copying a va_list is beyond ctypes.
    _messages.append(buffer.value.decode(errors="replace") + (" ...\n" if length >= size else ""))
    return length


_PRINTER = _PRINT(_collect)  # one for the process, as libbpf has one, and holds nothing but its address


class Libbpf:
    """The library, with every symbol of the table resolved and its messages collected in `messages`."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises HostUnfit naming the library, its version or the symbol that is missing."""
        try:
            self._dll = ctypes.CDLL(library, use_errno=True)
        except OSError as error:
            raise HostUnfit(f"{library} cannot be loaded: {error}", remedy=_REMEDY) from error
        self._functions: Dict[str, Callable[..., Any]] = {}
        self.version = self._version(library)
        for name, (arguments, result) in SYMBOLS.items():
            self._functions[name] = self._resolve(library, name, arguments, result)
        self.messages = _messages
        self._functions["libbpf_set_print"](_PRINTER)

    def _version(self, library: str) -> str:
        try:
            found = [self._resolve(library, f"libbpf_{part}_version", [], ctypes.c_uint32)() for part in _PARTS]
        except HostUnfit:
            raise HostUnfit(f"{library} is older than 1.0", remedy=_REMEDY) from None
        version = ".".join(str(part) for part in found)
        if tuple(found) < MINIMUM:
            raise HostUnfit(f"libbpf is {version}, 1.1 or later is needed", remedy=_REMEDY)
        return version

    def _resolve(self, library: str, name: str, arguments: List[Any], result: Any) -> Callable[..., Any]:
        try:
            function = self._dll[name]
        except AttributeError:
            version = getattr(self, "version", "unknown")
            raise HostUnfit(f"{library} (version {version}) has no {name}", remedy=_REMEDY) from None
        function.argtypes, function.restype = arguments, result
        return function

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the table."""
        return self._functions[name](*arguments)

    def open(self, path: str) -> Object:
        """Open an object file; nothing reaches the kernel yet. Raises OSError."""
        handle = self.call("bpf_object__open_file", path.encode(), None)
        if not handle:
            code = ctypes.get_errno() or errno.EINVAL
            raise OSError(code, os.strerror(code), path)
        return Object(self, handle)


_PARTS = ("major", "minor")


class Object:
    """An object file opened by libbpf. Close it when done; what was pinned stays."""

    def __init__(self, libbpf: Libbpf, handle: int) -> None:
        self._libbpf = libbpf
        self._handle: Optional[int] = handle
        self._buffers: List[Any] = []  # log buffers must outlive the load

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._libbpf.call("bpf_object__close", self._handle)
            self._handle = None

    def _each(self, kind: str) -> Iterator[Tuple[int, str]]:
        item = self._libbpf.call(f"bpf_object__next_{kind}", self._handle, None)
        while item:
            yield item, self._libbpf.call(f"bpf_{kind}__name", item).decode()
            item = self._libbpf.call(f"bpf_object__next_{kind}", self._handle, item)

    def maps(self) -> Dict[str, int]:
        """Handles of the object's own maps by name, without libbpf's (.rodata and the like)."""
        return {name: item for item, name in self._each("map") if not self._internal(item)}

    def programs(self) -> Dict[str, int]:
        """Handles of the object's programs by name."""
        return {name: item for item, name in self._each("program")}

    def _internal(self, item: int) -> bool:
        return bool(self._libbpf.call("bpf_map__is_internal", item))

    def _rodata(self) -> Optional[int]:
        for item, name in self._each("map"):
            if self._internal(item) and name.endswith(".rodata"):
                return item
        return None

    def read_constants(self) -> bytes:
        """The contents that .rodata will have; empty if the object has none."""
        item, size = self._rodata(), ctypes.c_size_t()
        if item is None:
            return b""
        start = self._libbpf.call("bpf_map__initial_value", item, ctypes.byref(size))
        return ctypes.string_at(start, size.value)

    def write_constants(self, data: bytes) -> None:
        """Set .rodata as a whole, before the object is loaded."""
        self._checked("bpf_map__set_initial_value", self._rodata(), data, len(data))

    def resize(self, item: int, entries: int) -> None:
        """Set how many entries a map holds at most."""
        self._checked("bpf_map__set_max_entries", item, entries)

    def pin_at(self, item: int, path: str) -> None:
        """Share a map: the one pinned at `path` is used, or the new one is pinned there."""
        self._checked("bpf_map__set_pin_path", item, path.encode())

    def log_fully(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """Have the verifier write its whole reasoning into the buffer that is returned, `size` bytes."""
        buffer = ctypes.create_string_buffer(size)
        self._buffers.append(buffer)
        for item in self.programs().values():
            self._checked("bpf_program__set_log_buf", item, buffer, size)
            self._checked("bpf_program__set_log_level", item, 2)
        return buffer

    def load(self) -> None:
        """Create maps, verify and load programs. Raises OSError."""
        self._checked("bpf_object__load", self._handle)

    def program_fd(self, item: int) -> int:
        """Descriptor of a loaded program; it is closed with the object."""
        return int(self._libbpf.call("bpf_program__fd", item))

    def _checked(self, name: str, *arguments: Any) -> None:
        result = int(self._libbpf.call(name, *arguments))
        if result < 0:
            raise OSError(-result, os.strerror(-result), name)
