"""Anonymous memory in huge pages, where the system has them."""

from __future__ import annotations

import mmap


def huge_pages(nbytes: int) -> mmap.mmap:
    """Return at least `nbytes` of zeroed memory of this process alone.

    Python's own choice is shared memory, which the system keeps in small pages: they collide in the
    caches, and looking their addresses up costs a large matrix a quarter of the read rate.
    """
    length = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
