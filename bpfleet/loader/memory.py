"""Arrays of the kernel as memory of this process, read-only."""

from __future__ import annotations

import mmap


def map_array(fd: int, size: int) -> mmap.mmap:
    """An array with BPF_F_MMAPABLE, of which all elements take `size` bytes. Raises OSError."""
    page = mmap.PAGESIZE
    return mmap.mmap(fd, (size + page - 1) // page * page, mmap.MAP_SHARED, mmap.PROT_READ)
