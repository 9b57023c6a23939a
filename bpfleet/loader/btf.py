"""Reads what a compiled BPF object says about itself: its maps, enums, constants and programs, from ELF and BTF.

The same answer on any machine: nothing here asks the kernel. Little-endian 64-bit objects only, as clang's
`-target bpf` makes them. The formats: the ELF-64 object file format, and the kernel's Documentation/bpf/btf.rst.

`describe` gives plain data:

    {"maps":      {map: {"type", "key", "value", "max_entries", "flags", "inner"}},
     "enums":     {enum: {name: number}},
     "constants": {constant: {"offset", "size", "kind"}},     offsets into the object's .rodata
     "programs":  {function: section}}

A key or value is {"size": bytes, "fields": [{"name", "offset", "size", "kind"}]}; kinds are u8..u64, s8..s64,
be16..be64, address (16 bytes), mac (6 bytes), and "bits" with "bit_offset" and "bit_size" inside the u32 at "offset";
an array has a "count". Names of enum members lose what they share, in lower case: REASON_WAITING is "waiting" of
"reason".
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from bpfleet.errors import HostFailed

MAP_TYPES = {
    1: "hash",
    2: "array",
    6: "percpu_array",
    9: "lru_hash",
    11: "lpm_trie",
    12: "array_of_maps",
    13: "hash_of_maps",
}

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_BTF_HEADER = struct.Struct("<HBBIIIII")
_BTF_TYPE = struct.Struct("<III")
_WORDS3 = struct.Struct("<III")
_MACHINE_BPF = 247
_STT_FUNC = 2
_STB_GLOBAL = 1

(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC, _PROTO, _VAR) = range(
    1, 15
)
_DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(15, 20)

# Structs that stand for one value, and typedefs that say more than the type behind them.
_NAMED_KINDS = {"address": 16, "mac": 6}
_BIG_ENDIAN = {"__be16": "be16", "__be32": "be32", "__be64": "be64"}


class Section(NamedTuple):
    """One section: its name, its bytes and the number symbols refer to it by."""

    name: str
    data: bytes
    number: int


class Symbol(NamedTuple):
    """One symbol; `value` is the offset in the section numbered `section`."""

    name: str
    value: int
    size: int
    section: int
    is_function: bool
    is_global: bool


class Type(NamedTuple):
    """One BTF type. `size_or_type` as in the format; `members` per kind: (name, type, offset bits) or (name, value)."""

    name: str
    kind: int
    flag: bool
    size_or_type: int
    members: List[Tuple[str, int, int]]


class ObjectFile:
    """Sections, symbols and types of one object."""

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self.path = str(path)
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise HostFailed(
                f"cannot read the object: {error.strerror}", file=self.path, remedy="Build it with `make objects`"
            ) from error
        try:
            self.sections = _sections(data)
            self.symbols = _symbols(self.sections)
            self.types = _types(self.section(".BTF").data)
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise HostFailed(
                f"not a BPF object with type information: {error}",
                file=self.path,
                remedy="Build it again with `make objects`",
            ) from error

    def section(self, name: str) -> Section:
        """The section of that name. Raises KeyError."""
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(f"section {name} is missing")

    def resolve(self, number: int) -> Type:
        """The type behind typedefs and qualifiers."""
        kind = self.types[number]
        while kind.kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG):
            kind = self.types[kind.size_or_type]
        return kind

    def size(self, number: int) -> int:
        """Size in bytes of a type."""
        kind = self.resolve(number)
        if kind.kind == _ARRAY:
            _, element, count = kind.members[0]
            return count * self.size(element)
        if kind.kind == _PTR:
            return 8
        return kind.size_or_type


def describe(path: os.PathLike[str] | str) -> Dict[str, Any]:
    """Everything of an object that Python needs to know; see the module's docstring. Raises HostFailed."""
    elf = ObjectFile(path)
    try:
        return {
            "maps": _maps(elf),
            "enums": _enums(elf),
            "constants": _constants(elf),
            "programs": _programs(elf),
        }
    except (KeyError, IndexError, ValueError) as error:
        raise HostFailed(
            f"its type information is not understood: {error}",
            file=str(path),
            remedy="Build it again with `make objects`",
        ) from error


# --- ELF


def _sections(data: bytes) -> List[Section]:
    header = _ELF_HEADER.unpack_from(data)
    if header[0][:6] != b"\x7fELF\x02\x01" or header[2] != _MACHINE_BPF:
        raise ValueError("not a little-endian ELF-64 file for BPF")
    start, entry_size, count, names_index = header[6], header[11], header[12], header[13]
    raw = [_ELF_SECTION.unpack_from(data, start + index * entry_size) for index in range(count)]
    names = data[raw[names_index][4] : raw[names_index][4] + raw[names_index][5]]
    no_bits = 8
    return [
        Section(_string(names, entry[0]), b"" if entry[1] == no_bits else data[entry[4] : entry[4] + entry[5]], index)
        for index, entry in enumerate(raw)
    ]


def _symbols(sections: List[Section]) -> List[Symbol]:
    by_name = {section.name: section for section in sections}
    names, table = by_name[".strtab"].data, by_name[".symtab"].data
    found = []
    for name, info, _, section, value, size in _ELF_SYMBOL.iter_unpack(table):
        found.append(
            Symbol(_string(names, name), value, size, section, info & 15 == _STT_FUNC, info >> 4 == _STB_GLOBAL)
        )
    return found


def _string(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


# --- BTF


def _types(data: bytes) -> List[Type]:
    """All types by number; number 0 is void."""
    magic, _, _, header_size, type_offset, type_size, string_offset, string_size = _BTF_HEADER.unpack_from(data)
    if magic != 0xEB9F:
        raise ValueError("no BTF magic")
    strings = data[header_size + string_offset :][:string_size]
    raw = data[header_size + type_offset :][:type_size]
    types = [Type("void", 0, False, 0, [])]
    at = 0
    while at < len(raw):
        name, info, size_or_type = _BTF_TYPE.unpack_from(raw, at)
        at += _BTF_TYPE.size
        kind, count, flag = info >> 24 & 31, info & 0xFFFF, bool(info >> 31)
        members: List[Tuple[str, int, int]] = []
        if kind in (_INT, _VAR, _DECL_TAG):
            members = [("", struct.unpack_from("<I", raw, at)[0], 0)]
            at += 4
        elif kind == _ARRAY:
            element, _, length = _WORDS3.unpack_from(raw, at)
            members = [("", element, length)]
            at += 12
        elif kind in (_STRUCT, _UNION, _DATASEC, _ENUM64):
            for index in range(count):
                first, second, third = _WORDS3.unpack_from(raw, at + 12 * index)
                if kind == _DATASEC:
                    members.append(("", first, second))
                elif kind == _ENUM64:
                    members.append((_string(strings, first), third << 32 | second, 0))
                else:
                    members.append((_string(strings, first), second, third))
            at += 12 * count
        elif kind == _ENUM:
            for index in range(count):
                first, value = struct.unpack_from("<Ii" if flag else "<II", raw, at + 8 * index)
                members.append((_string(strings, first), value, 0))
            at += 8 * count
        elif kind == _PROTO:
            at += 8 * count
        elif kind > _ENUM64 or kind == 0:
            raise ValueError(f"BTF kind {kind} is not known")
        types.append(Type(_string(strings, name), kind, flag, size_or_type, members))
    return types


# --- what Python needs of it


def _maps(elf: ObjectFile) -> Dict[str, Any]:
    structs = {kind.name: number for number, kind in enumerate(elf.types) if kind.kind == _STRUCT and kind.name}
    maps: Dict[str, Any] = {}
    for variable in _variables(elf, ".maps"):
        parts = {name: number for name, number, _ in elf.resolve(variable.size_or_type).members}
        found = _map(elf, parts)
        if "values" in parts:
            # The key and value types of an inner map are not in its definition (clang leaves them out there); by
            # convention its struct is called X, and vocabulary.h brings in X_key and X_value.
            inner_type = elf.resolve(_pointee(elf, elf.resolve(parts["values"]).members[0][1]))
            inner = _map(elf, {name: number for name, number, _ in inner_type.members})
            vocabulary = {name: number for name, number, _ in elf.types[structs["vocabulary"]].members}
            inner["key"] = _record(elf, vocabulary[inner_type.name + "_key"])
            inner["value"] = _record(elf, vocabulary[inner_type.name + "_value"])
            found["inner"] = inner_type.name
            maps[inner_type.name] = inner
        maps[variable.name] = found
    return maps


def _map(elf: ObjectFile, parts: Dict[str, int]) -> Dict[str, Any]:
    """A map's definition. Numbers are encoded as the length of an array pointed to (libbpf's __uint)."""
    numbers = {
        name: elf.resolve(_pointee(elf, parts[name])).members[0][2]
        for name in ("type", "max_entries", "map_flags", "key_size", "value_size")
        if name in parts
    }
    found: Dict[str, Any] = {
        "type": MAP_TYPES[numbers["type"]],
        "max_entries": numbers.get("max_entries", 0),
        "flags": numbers.get("map_flags", 0),
    }
    for part in ("key", "value"):
        if part in parts:
            found[part] = _record(elf, _pointee(elf, parts[part]))
    if "values" in parts:
        found["value"] = {"size": 4, "fields": [{"name": "inner", "offset": 0, "size": 4, "kind": "u32"}]}
    return found


def _record(elf: ObjectFile, number: int) -> Dict[str, Any]:
    """Size and fields of a key or value; a bare number is a record with the one field `index`."""
    kind = elf.resolve(number)
    if kind.kind == _STRUCT and kind.name not in _NAMED_KINDS:
        return {"size": kind.size_or_type, "fields": _fields(elf, kind, 0)}
    return {"size": elf.size(number), "fields": [_field(elf, "index", number, 0)]}


def _fields(elf: ObjectFile, kind: Type, base: int) -> List[Dict[str, Any]]:
    fields: List[Dict[str, Any]] = []
    for name, number, position in kind.members:
        bits = position >> 24 if kind.flag else 0
        offset = position & 0xFFFFFF if kind.flag else position
        inner = elf.resolve(number)
        if bits:
            word = offset // 32 * 4
            fields.append(
                {
                    "name": name,
                    "offset": base + word,
                    "size": 4,
                    "kind": "bits",
                    "bit_offset": offset % 32,
                    "bit_size": bits,
                }
            )
        elif inner.kind == _UNION and inner.name not in _NAMED_KINDS:
            # The first member is the one with meaning to readers; the others view the same bytes for speed.
            first = Type(inner.name, _STRUCT, inner.flag, inner.size_or_type, inner.members[:1])
            fields.extend(_fields(elf, first, base + offset // 8))
        elif inner.kind == _STRUCT and inner.name not in _NAMED_KINDS:
            fields.extend(_fields(elf, inner, base + offset // 8))
        else:
            fields.append(_field(elf, name, number, base + offset // 8))
    return fields


def _field(elf: ObjectFile, name: str, number: int, offset: int) -> Dict[str, Any]:
    kind = elf.resolve(number)
    field: Dict[str, Any] = {"name": name, "offset": offset, "size": elf.size(number)}
    if kind.kind == _ARRAY:
        _, element, count = kind.members[0]
        field["kind"] = _scalar(elf, element)
        field["count"] = count
    else:
        field["kind"] = _scalar(elf, number)
    return field


def _scalar(elf: ObjectFile, number: int) -> str:
    kind = elf.types[number]
    while kind.kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG):
        if kind.name in _BIG_ENDIAN:
            return _BIG_ENDIAN[kind.name]
        kind = elf.types[kind.size_or_type]
    if kind.kind == _STRUCT and _NAMED_KINDS.get(kind.name) == kind.size_or_type:
        return kind.name
    if kind.kind == _ENUM:
        return f"u{8 * kind.size_or_type}"
    if kind.kind == _INT:
        signed = kind.members[0][1] >> 24 & 1
        return f"{'s' if signed else 'u'}{8 * kind.size_or_type}"
    raise ValueError(f"a field of type {kind.name or kind.kind} has no kind here")


def _enums(elf: ObjectFile) -> Dict[str, Dict[str, int]]:
    """The named enums that the object's `vocabulary` mentions."""
    found: Dict[str, Dict[str, int]] = {}
    for variable in _variables(elf, ".rodata"):
        if variable.name != "vocabulary":
            continue
        for _, number, _ in elf.resolve(variable.size_or_type).members:
            kind = elf.resolve(number)
            if kind.kind == _ENUM:
                shared = os.path.commonprefix(  # noqa: RUF071 - characters are what is wanted
                    [name for name, _, _ in kind.members]
                )
                cut = shared.rfind("_") + 1
                found[kind.name] = {name[cut:].lower(): value for name, value, _ in kind.members}
    return found


def _constants(elf: ObjectFile) -> Dict[str, Any]:
    """The load-time constants, with the offsets of the symbol table: those in BTF are filled in only when loading."""
    section = elf.section(".rodata").number
    offsets = {symbol.name: symbol.value for symbol in elf.symbols if symbol.section == section}
    found = {}
    for variable in _variables(elf, ".rodata"):
        if variable.name != "vocabulary" and variable.name in offsets:
            field = _field(elf, variable.name, variable.size_or_type, offsets[variable.name])
            found[variable.name] = {"offset": field["offset"], "size": field["size"], "kind": field["kind"]}
    return found


def _programs(elf: ObjectFile) -> Dict[str, str]:
    names = {section.number: section.name for section in elf.sections}
    return {
        symbol.name: names[symbol.section]
        for symbol in elf.symbols
        if symbol.is_function and symbol.is_global and names.get(symbol.section) not in (None, ".text")
    }


def _variables(elf: ObjectFile, section: str) -> List[Type]:
    for kind in elf.types:
        if kind.kind == _DATASEC and kind.name == section:
            return [elf.types[number] for _, number, _ in kind.members]
    return []


def _pointee(elf: ObjectFile, number: int) -> int:
    kind: Optional[Type] = elf.resolve(number)
    if kind is None or kind.kind != _PTR:
        raise ValueError("a map definition holds something else than pointers")
    return kind.size_or_type
