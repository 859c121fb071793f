"""Memory that kernels work in: planned once for the largest call, never allocated in a call."""

from __future__ import annotations

import mmap
import threading

import numpy as np

_kept = threading.local()  # calls from several Python threads must not share it


def scratch(floats: int) -> np.ndarray:
    """Return at least this many float32, the same memory on every call from this thread."""
    memory = getattr(_kept, "memory", None)
    if memory is None or len(memory) < floats:
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANON} if hasattr(mmap, "MAP_PRIVATE") else {}
        pages = mmap.mmap(-1, max(4 * floats, mmap.PAGESIZE), **flags)  # shared ones stay small
        if hasattr(mmap, "MADV_HUGEPAGE"):  # small pages collide in the second cache
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory = _kept.memory = np.frombuffer(pages, np.float32)
    return memory
