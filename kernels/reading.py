"""Read memory as fast as the cores can: what a product of one token can reach at most."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.variants import variant


@njit(nogil=True)
def _part(data, first, last):
    """XOR of data[first:last], in four streams: one alone doesn't keep the memory busy."""
    step = (last - first) // 4
    a = b = c = d = np.uint64(0)
    for i in range(first, first + step):
        a ^= data[i]
        b ^= data[i + step]
        c ^= data[i + 2 * step]
        d ^= data[i + 3 * step]
    for i in range(first + 4 * step, last):
        a ^= data[i]
    return a ^ b ^ c ^ d


def _serial(data, found):
    found[0] = _part(data, 0, data.shape[0])


def _parallel(data, found, threads):
    size = data.shape[0]
    for part in prange(threads):
        found[part] = _part(data, size * part // threads, size * (part + 1) // threads)


_WORDS = types.Array(types.uint64, 1, "C")


def read_memory(data: np.ndarray, found: np.ndarray, threads: int) -> None:
    """Read data, uint64 [n], on all threads; found, uint64 [threads], gets each part's XOR."""
    if threads > 1:
        variant(_parallel, "read", (_WORDS, _WORDS, types.intp), parallel=True)(
            data, found, threads
        )
    else:
        variant(_serial, "read", (_WORDS, _WORDS))(data, found)
