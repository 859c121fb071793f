"""Memory that kernels work in: planned once for the largest call, never allocated in a call."""

from __future__ import annotations

import threading

import numpy as np

from tpimpi.kernels.pages import huge_pages

_kept = threading.local()  # calls from several Python threads must not share it


def scratch(floats: int) -> np.ndarray:
    """Return at least this many float32, the same memory on every call from this thread."""
    memory = getattr(_kept, "memory", None)
    if memory is None or len(memory) < floats:
        memory = _kept.memory = np.frombuffer(huge_pages(4 * floats), np.float32)
    return memory
