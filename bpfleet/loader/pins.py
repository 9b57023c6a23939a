"""Names under /sys/fs/bpf/bpfleet: what keeps our maps, programs and links alive without any process of ours.

    maps/<map>_v<digest of its layout>     programs/<object>-<digest>     links/<device>-<hook>

While maps are made anew in another size (resize.py), they and the programs on them have names that end in _next.

bpffs forbids dots in names, and device names have them (eth0.100): they are written %2e. The place of socket hooks is
"/", which is written %2f.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import List, Optional, Tuple

from bpfleet.errors import HostFailed, HostUnfit
from bpfleet.loader import syscall
from bpfleet.loader.generated.layouts import MAPS

DEFAULT = "/sys/fs/bpf/bpfleet"
_BPF_FS_MAGIC = 0xCAFE4A11
_NEXT = "_next"
_libc = ctypes.CDLL(None, use_errno=True)


class Pins:
    """The pin paths below one directory."""

    def __init__(self, root: str = DEFAULT) -> None:
        self.root = Path(root)
        self.maps = self.root / "maps"
        self.programs = self.root / "programs"
        self.links = self.root / "links"

    # -- bpffs ---------------------------------------------------------------------------------------------------------

    def mounted(self) -> bool:
        """Whether the directory above ours lies in a bpffs."""
        return _filesystem(self.root.parent) == _BPF_FS_MAGIC

    def ensure(self) -> int:
        """Mount bpffs and make our directories where missing; returns the number of changes."""
        changes = 0
        if not self.mounted():
            require_bpffs()
            self.root.parent.mkdir(parents=True, exist_ok=True)
            if _libc.mount(b"bpf", os.fsencode(self.root.parent), b"bpf", 0, b"mode=700") != 0:
                code = ctypes.get_errno()
                raise HostFailed(
                    f"cannot mount bpffs at {self.root.parent}: {os.strerror(code)}",
                    remedy="Mount it: mount -t bpf bpf /sys/fs/bpf",
                    file=str(self.root.parent),
                )
            changes += 1
        for directory in (self.root, self.maps, self.programs, self.links):
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                changes += 1
        return changes

    def remove_empty(self) -> int:
        """Remove our directories when nothing is pinned any more, but for those in which others have something; returns
        the number of changes."""
        if not self.root.is_dir() or self.list_maps() or self.list_programs() or self.list_links():
            return 0
        changes = 0
        for directory in (self.maps, self.programs, self.links, self.root):
            try:
                directory.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
            else:
                changes += 1
        return changes

    # -- names ---------------------------------------------------------------------------------------------------------

    def map(self, name: str) -> Path:
        """Where the map of this name and today's layout is pinned."""
        return self.maps / f"{name}_v{MAPS[name]['digest']}"

    def next_map(self, name: str) -> Path:
        """Where the map that will take its place is pinned."""
        return self.maps / f"{self.map(name).name}{_NEXT}"

    def program(self, object_name: str, digest: str) -> Path:
        """Where an object of this digest is pinned."""
        return self.programs / f"{object_name}-{digest}"

    def next_program(self, object_name: str, digest: str) -> Path:
        """Where the program that will take its place is pinned."""
        return self.programs / f"{object_name}-{digest}{_NEXT}"

    def link(self, device: str, hook: str) -> Path:
        """Where the link that holds our program at a hook is pinned."""
        return self.links / f"{device.replace('%', '%25').replace('.', '%2e').replace('/', '%2f')}-{hook}"

    def list_maps(self) -> List[str]:
        """File names of pinned maps."""
        return _names(self.maps)

    def list_lasting_maps(self) -> List[str]:
        """File names of pinned maps, but for those that are to take the place of others."""
        return [name for name in self.list_maps() if not name.endswith(_NEXT)]

    def list_programs(self) -> List[Tuple[str, str]]:
        """(object, digest) of pinned programs."""
        found = []
        for name in _names(self.programs):
            object_name, _, digest = name.rpartition("-")
            found.append((object_name, digest))
        return found

    def list_links(self) -> List[Tuple[str, str]]:
        """(device, hook) of pinned links."""
        found = []
        for name in _names(self.links):
            device, _, hook = name.rpartition("-")
            if hook in ("native", "generic"):  # xdp-native, xdp-generic: the only hooks with a dash
                device, _, kind = device.rpartition("-")
                hook = f"{kind}-{hook}"
            found.append((device.replace("%2f", "/").replace("%2e", ".").replace("%25", "%"), hook))
        return found


def open_pin(path: Path) -> Optional[int]:
    """A descriptor of what is pinned there, or None."""
    try:
        return syscall.get(str(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def unpin(path: Path) -> bool:
    """Remove a pin; False if there was none."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def take_over(fd: int, path: Path, through: Path) -> None:
    """Have `path` name what is behind `fd`, at once; `through` is a name for the moment before."""
    unpin(through)
    syscall.pin(fd, str(through))
    through.replace(path)


def require_bpffs() -> None:
    """Raise HostUnfit if the kernel has no bpffs."""
    if "\tbpf" not in Path("/proc/filesystems").read_text():
        raise HostUnfit(
            "the kernel has no bpf file system", remedy="Use a kernel with CONFIG_BPF_SYSCALL, 6.1 or later."
        )


def _names(directory: Path) -> List[str]:
    try:
        return sorted(entry.name for entry in os.scandir(directory))
    except FileNotFoundError:
        return []


def _filesystem(path: Path) -> int:
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with f_type, a long where we run
    if _libc.statfs(os.fsencode(path), ctypes.byref(buffer)) != 0:
        return 0
    return int(buffer[0]) & 0xFFFFFFFF
