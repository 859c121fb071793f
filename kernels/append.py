"""New keys and values to their places in the pages that attention walks."""

from __future__ import annotations

from numba import prange, types

from tpimpi.kernels.tiles import PAGE
from tpimpi.kernels.variants import MANY, Kernel, inner


@inner
def _some(k, v, keys, values, table, positions, slots, first, last):
    """Write the tokens first .. last - 1."""
    _, heads, head_dim = k.shape
    for t in range(first, last):
        page, at = table[slots[t], positions[t] // PAGE], positions[t] % PAGE
        for h in range(heads):
            for d in range(head_dim):
                keys[page, h, d, at] = k[t, h, d]
                values[page, h, at, d] = v[t, h, d]


def _serial(k, v, keys, values, table, positions, slots):
    _some(k, v, keys, values, table, positions, slots, 0, k.shape[0])


def _parallel(k, v, keys, values, table, positions, slots, threads):
    tokens = k.shape[0]
    for part in prange(threads):
        first, last = tokens * part // threads, tokens * (part + 1) // threads
        _some(k, v, keys, values, table, positions, slots, first, last)


_F3, _F4 = types.Array(types.float32, 3, "C"), types.Array(types.float32, 4, "C")
_I1, _I2 = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
_KERNEL = Kernel("append_kv", _serial, _parallel, _F3, _F3, _F4, _F4, _I2, _I1, _I1)


def append_kv(k, v, keys, values, table, positions, slots, threads) -> None:
    """Write k, v [T, K, Hd] to their places in the pages, shapes as for `attention.attention`."""
    if threads > 1 and len(k) >= MANY:
        _KERNEL.parallel(k, v, keys, values, table, positions, slots, threads)
    else:
        _KERNEL.serial(k, v, keys, values, table, positions, slots)
