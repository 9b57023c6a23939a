"""Contents of pinned maps: read and written in batches, inner maps swapped whole."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from bpfleet.errors import HostFailed
from bpfleet.loader import layout, staging, syscall
from bpfleet.loader.connections import live, now_ticks
from bpfleet.loader.generated.layouts import MAPS
from bpfleet.loader.pins import Pins, open_pin
from bpfleet.loader.rows import Codec, codec_for, device_index, is_index, salt
from bpfleet.model.state import Row, Table

_ENOTSUPP = 524  # the kernel's own, which escapes where a map type has no batch operation
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP)
_TYPES = {
    "hash": syscall.MAP_HASH,
    "array": syscall.MAP_ARRAY,
    "lpm_trie": syscall.MAP_LPM_TRIE,
    "lru_hash": syscall.MAP_LRU_HASH,
    "hash_of_maps": syscall.MAP_HASH_OF_MAPS,
}
BACKENDS = "backends"
_CHUNK = 8192  # elements a batch: the kernel copies a batch piece by piece, and the buffers stay small
_INNER_CHUNK = 256  # inner maps a batch: each is an open descriptor until it is in its place


class Maps:
    """The shared maps of this node. `wrote` is called once for each system call that changes something."""

    def __init__(self, pins: Pins, wrote: Callable[[], None]) -> None:
        self._pins = pins
        self._wrote = wrote

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_table(self, name: str, want: Optional[Table], salted: int = 0) -> Optional[Table]:
        """What a map holds, in the fields of `want` (None: all fields); None if there is no such map."""
        codec = codec_for(name, want, salted)
        have = self._contents(name)
        if have is None:
            return None
        rows = codec.compare(want.rows if want else {}, have)
        return Table(codec.key, codec.value, rows)

    def read_nested(self, name: str, want: Optional[Mapping[int, Table]]) -> Optional[Dict[int, Table]]:
        """The inner maps of an outer map by their key; None if there is no such map."""
        ids = self._contents(name)
        if ids is None:
            return None
        found = self._read_inners(name, ids, want)
        if name == staging.POLICIES:
            word = self._generation()
            staged = (self._contents(staging.STAGED) or {}) if word & staging.IS_STAGED else {}
            return staging.in_force(found, self._read_inners(staging.STAGED, staged, want), word)
        return found

    def _read_inners(
        self, name: str, ids: Mapping[bytes, bytes], want: Optional[Mapping[int, Table]]
    ) -> Dict[int, Table]:
        inner_name = MAPS[name]["inner"]
        default = codec_for(inner_name, next(iter(want.values()), None) if want else None)
        outer = codec_for(name, None)
        found: Dict[int, Table] = {}
        for key, identifier in ids.items():
            number = int(outer.decode_key(key)[0])
            table = want.get(number) if want else None
            codec = codec_for(inner_name, table) if table else default
            try:
                inner = syscall.map_by_id(int.from_bytes(identifier, "little"))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # swapped out between the two calls
                raise
            with closing(inner):
                have = dump(inner, inner_name)
            found[number] = Table(codec.key, codec.value, codec.compare(table.rows if table else {}, have))
        return found

    def endpoint_salt(self) -> int:
        """The salt of the indexes bound in `endpoints` as the map is now."""
        return salt(int.from_bytes(key, "little") for key in self._contents("endpoints") or ())

    def size(self, name: str) -> Optional[int]:
        """How many entries a map has room for; None if there is no such map."""
        info = self._info(name)
        return info.max_entries if info is not None else None

    def identifier(self, name: str) -> Optional[int]:
        """The kernel's id of a map; None if there is no such map."""
        info = self._info(name)
        return info.id if info is not None else None

    def _info(self, name: str) -> Optional[syscall.MapInfo]:
        fd = open_pin(self._pins.map(name))
        if fd is None:
            return None
        with closing(fd):
            return syscall.map_info(fd)

    def _contents(self, name: str) -> Optional[Dict[bytes, bytes]]:
        fd = open_pin(self._pins.map(name))
        if fd is None:
            return None
        with closing(fd):
            return dump(fd, name)

    # -- writing -------------------------------------------------------------------------------------------------------

    def put_rows(self, name: str, table: Table) -> None:
        """Create or overwrite rows. Raises HostFailed for a full map, or for a device that is not there."""
        salted = self.endpoint_salt() if name == "node" else 0
        codec = codec_for(name, table, salted)
        pairs = [(codec.encode_key(key), codec.encode_value(value)) for key, value in table.rows.items()]
        with closing(self._required(name)) as fd:
            self._update(fd, name, pairs)

    def delete_rows(self, name: str, key: Tuple[str, ...], keys: Sequence[Row]) -> None:
        """Remove rows by key; rows that are not there, or whose device is not there, are no error."""
        codec = Codec(name, key, ())
        encoded = [codec.encode_key(row) for row in keys if _bindable(key, row)]
        with closing(self._required(name)) as fd:
            if MAPS[name]["type"] == "array":
                zero = bytes(codec.sizes[1])
                self._update(fd, name, [(data, zero) for data in encoded])
            else:
                self._delete(fd, encoded)

    def swap_inner(self, name: str, inners: Mapping[int, Table]) -> None:
        """Build whole inner maps, then put them in their places, many in one call."""
        inner_name = MAPS[name]["inner"]
        outer = codec_for(name, None)
        entries = list(inners.items())
        with closing(self._required(name)) as fd:
            for start in range(0, len(entries), _INNER_CHUNK):
                made: List[Tuple[bytes, int]] = []
                try:
                    for number, table in entries[start : start + _INNER_CHUNK]:
                        made.append((outer.encode_key((number,)), self._build_inner(inner_name, table)))
                    self._update(fd, name, [(key, inner.to_bytes(4, "little")) for key, inner in made])
                finally:
                    for _, inner in made:
                        os.close(inner)

    def remove_inner(self, name: str, keys: Sequence[int]) -> None:
        """Remove inner maps; those that are not there are no error. What names sets has been waited for (staging.py); a
        program that has read an old row of `services` may still look for its list."""
        if name == BACKENDS:
            self.let_programs_end()
        outer = codec_for(name, None)
        with closing(self._required(name)) as fd:
            self._delete(fd, [outer.encode_key((number,)) for number in keys])

    def copy(self, name: str, entries: int) -> int:
        """A map like the pinned one, with all it holds and room for `entries`; a descriptor, which alone keeps it."""
        with ExitStack() as opened:
            contents = dump(opened.enter_context(closing(self._required(name))), name)
            inner = MAPS[name].get("inner")
            like = opened.enter_context(closing(self._create(inner, 1))) if inner is not None else 0
            made = self._create(name, entries, like)
            try:
                if inner is None:
                    self._update(made, name, list(contents.items()))
                else:
                    self._share_inner(made, name, list(contents.items()))
            except BaseException:
                os.close(made)
                raise
        return made

    def create_like(self, name: str, entries: int) -> int:
        """An empty map like the pinned one, with room for `entries`; a descriptor, which alone keeps it."""
        return self._create(name, entries)

    def add_connections(self, to: int) -> None:
        """Add to another map all connections that it does not have, and to those that it has what was seen of them
        here. The idlest first, as a map that has no room for all forgets what came first."""
        at = _offset("connections", "value", "last_seen")
        with closing(self._required("connections")) as fd:
            found = sorted(dump(fd, "connections").items(), key=lambda item: item[1][at : at + 4][::-1])
            for key, value in found:
                syscall.map_add(to, key, value)
            # Only now does no program look for them here any more.
            seen, there = dump(fd, "connections"), dump(to, "connections")
        at = _offset("connections", "value", "state")
        for key, value in seen.items():
            if key in there and value[at:] != there[key][at:]:
                self._add_state(to, key, value)
        self._wrote()

    def _add_state(self, to: int, key: bytes, value: bytes) -> None:
        """What the two ends of a connection have done counts, wherever it was noted: an answer, an end."""
        end = _offset("connections", "value", "next_hop")  # revisions are before it
        now = syscall.map_lookup(to, key, len(value))
        if now is not None and now[:end] == value[:end]:
            record = layout.decode("connections", "value", now)
            state = record["state"] | layout.decode("connections", "value", value)["state"]
            if state != record["state"]:
                syscall.map_update(to, key, layout.encode("connections", "value", {**record, "state": state}))

    def live_connections(self) -> int:
        """How many of the connections that are recorded still count."""
        found = self._contents("connections") or {}
        return live(b"".join(found.keys()), b"".join(found.values()), now_ticks())

    def let_programs_end(self) -> None:
        """Wait until no program runs any longer that runs now. An update of a map of maps returns only then
        (maybe_wait_bpf_programs in the kernel)."""
        name = staging.POLICIES
        with closing(self._create(MAPS[name]["inner"], 1)) as inner, closing(self._create(name, 1, inner)) as outer:
            syscall.map_update(outer, bytes(4), inner.to_bytes(4, "little"))

    def _share_inner(self, fd: int, name: str, entries: Sequence[Tuple[bytes, bytes]]) -> None:
        """Put inner maps, known by their ids, into an outer map as well."""
        for start in range(0, len(entries), _INNER_CHUNK):
            with ExitStack() as opened:
                inners = [
                    (key, opened.enter_context(closing(syscall.map_by_id(int.from_bytes(identifier, "little")))))
                    for key, identifier in entries[start : start + _INNER_CHUNK]
                ]
                self._update(fd, name, [(key, inner.to_bytes(4, "little")) for key, inner in inners])

    def begin_generations(self) -> None:
        """Give the first generation its number, where there is none yet: one that no record of an earlier map has."""
        if self._generation() == 0:
            self._set_generation(staging.settled(int.from_bytes(os.urandom(4), "little") | staging.STEP))

    def switch_policies(self) -> None:
        """Have what is staged in force."""
        word = self._generation()
        if not word & staging.IS_STAGED and self._contents(staging.STAGED):
            self._set_generation(staging.switched(word))

    def settle_policies(self) -> None:
        """Put what was switched to where it is to stay, and empty what is staged."""
        word = self._generation()
        staged = self._contents(staging.STAGED) or {}
        with closing(self._required(staging.POLICIES)) as lasting, closing(self._required(staging.STAGED)) as fd:
            if word & staging.IS_STAGED:
                self._let_programs_end(fd, staged)
                self._settle(lasting, list(staged.items()))
                self._set_generation(staging.settled(word))
            self._delete(fd, list(staged))

    def _let_programs_end(self, fd: int, staged: Mapping[bytes, bytes]) -> None:
        """Wait until no program runs that read the generation before. An update of a map of maps returns only then
        (maybe_wait_bpf_programs in the kernel), also one that changes nothing."""
        for key, identifier in list(staged.items())[:1]:
            with closing(syscall.map_by_id(int.from_bytes(identifier, "little"))) as inner:
                syscall.map_update(fd, key, inner.to_bytes(4, "little"))
                self._wrote()

    def _settle(self, lasting: int, staged: Sequence[Tuple[bytes, bytes]]) -> None:
        inner_name = MAPS[staging.STAGED]["inner"]
        gone: List[bytes] = []
        for start in range(0, len(staged), _INNER_CHUNK):
            with ExitStack() as opened:
                kept: List[Tuple[bytes, bytes]] = []
                for key, identifier in staged[start : start + _INNER_CHUNK]:
                    inner = opened.enter_context(closing(syscall.map_by_id(int.from_bytes(identifier, "little"))))
                    if syscall.map_next_key(inner, None, MAPS[inner_name]["key"]["size"]) is None:
                        gone.append(key)
                    else:
                        kept.append((key, inner.to_bytes(4, "little")))
                self._update(lasting, staging.POLICIES, kept)
        self._delete(lasting, gone)

    def _generation(self) -> int:
        """The word; 0 if there is no such map, or no generation yet."""
        contents = self._contents(staging.GENERATION) or {}
        return int.from_bytes(next(iter(contents.values()), b""), "little")

    def _set_generation(self, word: int) -> None:
        with closing(self._required(staging.GENERATION)) as fd:
            self._update(fd, staging.GENERATION, [(bytes(4), word.to_bytes(4, "little"))])

    def _build_inner(self, inner_name: str, table: Table) -> int:
        codec = codec_for(inner_name, table)
        fd = self._create(inner_name, max(len(table.rows), 1))
        try:
            self._update(
                fd, inner_name, [(codec.encode_key(key), codec.encode_value(row)) for key, row in table.rows.items()]
            )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _create(self, name: str, entries: int, inner_fd: int = 0) -> int:
        described = MAPS[name]
        fd = syscall.map_create(
            _TYPES[described["type"]],
            described["key"]["size"],
            described["value"]["size"],
            entries,
            flags=described["flags"],
            name=name,
            inner_fd=inner_fd,
        )
        self._wrote()
        return fd

    def _update(self, fd: int, name: str, pairs: Sequence[Tuple[bytes, bytes]]) -> None:
        try:
            for start in range(0, len(pairs), _CHUNK):
                chunk = pairs[start : start + _CHUNK]
                try:
                    syscall.update_batch(
                        fd, b"".join([key for key, _ in chunk]), b"".join([value for _, value in chunk]), len(chunk)
                    )
                    self._wrote()
                except OSError as error:
                    if error.errno not in _NO_BATCH:
                        raise
                    for key, value in chunk:
                        syscall.map_update(fd, key, value)
                        self._wrote()
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            limit = syscall.map_info(fd).max_entries
            raise HostFailed(
                f"map {name} is full: it holds {limit} entries",
                field=name,
                remedy="Declare fewer endpoints, identities or rules for this node.",
            ) from error

    def _delete(self, fd: int, keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            try:
                syscall.delete_batch(fd, b"".join(chunk), len(chunk))
                self._wrote()
            except OSError as error:
                if error.errno not in (*_NO_BATCH, errno.ENOENT):
                    raise
                for key in chunk:  # one of them is gone already, which ends a batch
                    if syscall.map_delete(fd, key):
                        self._wrote()

    def _required(self, name: str) -> int:
        path = self._pins.map(name)
        fd = open_pin(path)
        if fd is None:
            raise HostFailed(
                f"map {name} is not there",
                field=name,
                file=str(path),
                remedy="Load the programs first: they bring the maps.",
            )
        return fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of a with block."""
    try:
        yield fd
    finally:
        os.close(fd)


def _bindable(key: Tuple[str, ...], row: Row) -> bool:
    for name, value in zip(key, row):
        if is_index(name) and isinstance(value, str):
            try:
                device_index(value)
            except HostFailed:
                return False
    return True


def _offset(name: str, part: str, field: str) -> int:
    return next(int(one["offset"]) for one in MAPS[name][part]["fields"] if one["name"] == field)


def dump(fd: int, name: str) -> Dict[bytes, bytes]:
    """Everything a map holds; of an array every element."""
    described = MAPS[name]
    key_size, value_size = described["key"]["size"], described["value"]["size"]
    try:
        keys, values, count = syscall.lookup_batch(fd, key_size, value_size, 1024)
        found = {
            keys[n * key_size : (n + 1) * key_size]: values[n * value_size : (n + 1) * value_size] for n in range(count)
        }
    except OSError as error:
        if error.errno not in _NO_BATCH:
            raise
        found = dict(_one_by_one(fd, key_size, value_size))
    return found


def _one_by_one(fd: int, key_size: int, value_size: int) -> Iterator[Tuple[bytes, bytes]]:
    key = syscall.map_next_key(fd, None, key_size)
    while key is not None:
        value = syscall.map_lookup(fd, key, value_size)
        if value is not None:
            yield key, value
        key = syscall.map_next_key(fd, key, key_size)
