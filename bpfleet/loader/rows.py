"""Rows of tables to map keys and values and back, devices bound to their indexes on the way.

A field called `ifindex` (or ending so) holds a device's name in a row and its index in the map. Rows that are wanted
are compared as bytes; only what differs is decoded. So a field that no row names is compared as well: it is zero.
What programs note in a map by themselves is left out before anything is compared (`declared`).
"""

from __future__ import annotations

import socket
import zlib
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import layout
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.model.state import Row, Table

STRAY = "unnamed fields are not zero"
"""Appended to a row's value as it is read when a field that the table does not name holds something."""

REVISION_FIELD = "addresses_revision"


def is_index(field: str) -> bool:
    """Whether a field holds a device."""
    return field.endswith("ifindex")


class Missing(HostFailed):
    """A row names a device that is not there."""


def device_index(name: Any) -> int:
    """Index of a device by name in this network namespace; numbers are taken as they are. Raises Missing."""
    if isinstance(name, int):
        return name
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise Missing(
            f"device {name} is not there", remedy=f"Create {name}, or remove what is declared for it."
        ) from error


def device_name(index: int) -> Any:
    """Name of the device with an index, or the number itself: of a device that is gone, or 0 for none."""
    if index == 0:
        return 0
    try:
        return socket.if_indextoname(index)
    except OSError:
        return index


def salt(indexes: Iterable[int]) -> int:
    """What the bound indexes of local endpoints add to the revision of addresses (see node.h).

    The compiler's revision covers names only; a device that was made again has the same name and another index, and
    connections that remember the old one must be judged anew.
    """
    return zlib.crc32(b"".join(index.to_bytes(4, "little") for index in sorted(indexes)))


class Codec:
    """The keys and values of one map, for tables that name these fields."""

    def __init__(self, map_name: str, key: Tuple[str, ...], value: Tuple[str, ...], salted: int = 0) -> None:
        """`salted` is added (exclusive or) to the addresses' revision. Fields are checked when a row is encoded."""
        self.map_name = map_name
        self.key = key
        self.value = value
        self._salt = salted
        self._key = layout.layout(map_name, "key")
        self._value = layout.layout(map_name, "value")
        self._key_rest = _zeros(map_name, "key", key)
        self._value_rest = _zeros(map_name, "value", value)
        self._key_indexes = [n for n, name in enumerate(key) if is_index(name)]
        self._value_indexes = [n for n, name in enumerate(value) if is_index(name)]
        self._is_array = MAPS[map_name]["type"] == "array"
        self._revision = value.index(REVISION_FIELD) if salted and REVISION_FIELD in value else None

    @property
    def sizes(self) -> Tuple[int, int]:
        """Bytes of a key and of a value."""
        return self._key.size, self._value.size

    def encode_key(self, row: Row) -> bytes:
        """Raises Missing for a device that is not there, InvalidInput for a value that does not fit."""
        if len(row) > len(self.key):
            return bytes.fromhex(row[-1])  # a stray key, see decode_key
        if self._key_indexes:
            row = _bound(row, self._key_indexes)
        record = dict(zip(self.key, row))
        if self._key_rest:
            record.update(self._key_rest)
        return self._key.encode(record)

    def encode_value(self, row: Row) -> bytes:
        """As encode_key."""
        if self._value_indexes:
            row = _bound(row, self._value_indexes)
        if self._revision is not None:
            row = _replaced(row, self._revision, lambda revision: revision ^ self._salt)
        record = dict(zip(self.value, row))
        if self._value_rest:
            record.update(self._value_rest)
        return self._value.encode(record)

    def encode_there(self, row: Row, value: Row) -> Optional[Tuple[bytes, bytes]]:
        """Key and value of a row, or None if it cannot be in the map because a device is not there."""
        try:
            return self.encode_key(row), self.encode_value(value)
        except Missing:
            return None

    def decode_key(self, data: bytes) -> Row:
        """The named fields of a key; and if another one is not zero, STRAY and all of its bytes, so that it can be told
        from the key that it looks like, and removed."""
        record = self._key.decode(data)
        row = tuple(record[name] for name in self.key)
        if self._key.encode({**self._key_rest, **{name: record[name] for name in self.key}}) != data:
            return (*row, STRAY, data.hex())
        for n in self._key_indexes:
            row = _replaced(row, n, device_name)
        return row

    def decode_value(self, data: bytes) -> Row:
        """The named fields of a value, and STRAY if another one is not zero."""
        record = self._value.decode(data)
        row = tuple(record[name] for name in self.value)
        if self._value.encode({**self._value_rest, **{name: record[name] for name in self.value}}) != data:
            return (*row, STRAY)
        for n in self._value_indexes:
            row = _replaced(row, n, device_name)
        if self._revision is not None:
            row = _replaced(row, self._revision, lambda revision: revision ^ self._salt)
        return row

    def compare(self, want: Mapping[Row, Row], have: Mapping[bytes, bytes]) -> Dict[Row, Row]:
        """The rows that `have` stands for; rows that are as wanted are the wanted objects themselves."""
        rows: Dict[Row, Row] = {}
        left = dict(have)
        for key, value in want.items():
            encoded = self.encode_there(key, value)
            if encoded is None:
                continue
            there = left.pop(encoded[0], None)
            if there is not None:
                rows[key] = value if there == encoded[1] else self.decode_value(there)
        zero = bytes(self._value.size) if self._is_array else None  # elements of an array cannot be absent
        for data, there in left.items():
            if there == zero:
                continue
            rows[self.decode_key(data)] = self.decode_value(there)
        return rows


def codec_for(map_name: str, table: Optional[Table], salted: int = 0) -> Codec:
    """The codec for the fields of a table, or for all fields of the map."""
    if table is not None:
        return Codec(map_name, tuple(table.key), tuple(table.value), salted)
    return Codec(map_name, _all_fields(map_name, "key"), _all_fields(map_name, "value"), salted)


def _all_fields(map_name: str, part: str) -> Tuple[str, ...]:
    return tuple(layout.layout(map_name, part).names)


def _zeros(map_name: str, part: str, named: Tuple[str, ...]) -> Dict[str, Any]:
    zeros: Dict[str, Any] = {}
    for field in MAPS[map_name][part]["fields"]:
        if field["name"] not in named and field["name"] != "zero":
            text = field["kind"] in ("address", "mac")
            zeros[field["name"]] = "" if text else [] if field.get("count") else 0
    return zeros


def _bound(row: Row, positions: List[int]) -> Row:
    for n in positions:
        if isinstance(row[n], str):
            row = _replaced(row, n, device_index)
    return row


def _replaced(row: Row, position: int, change: Callable[[Any], Any]) -> Row:
    return (*row[:position], change(row[position]), *row[position + 1 :])
