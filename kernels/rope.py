"""Rotary positions in the rotate-half layout (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import numpy as np
from numba import prange, types

from tpimpi.kernels.variants import MANY, Kernel, inner


def rope_tables(
    positions: np.ndarray, inv_freq: np.ndarray, cos: np.ndarray, sin: np.ndarray, factor: float
) -> None:
    """Write factor times cosines and sines [T, Hd/2] of positions [T] times frequencies.

    `inv_freq` are the inverse frequencies [Hd/2], or each token's own [T, Hd/2].
    """
    np.multiply(positions[:, None].astype(np.float32), inv_freq, out=cos)  # angles
    np.sin(cos, out=sin)
    np.cos(cos, out=cos)
    if factor != 1.0:
        np.multiply(cos, np.float32(factor), out=cos)
        np.multiply(sin, np.float32(factor), out=sin)


@inner
def _some(x, cos, sin, first, last):
    """Turn the tokens first .. last - 1."""
    heads, half = x.shape[1], x.shape[2] // 2
    for t in range(first, last):
        for h in range(heads):
            for d in range(half):
                a, b = x[t, h, d], x[t, h, d + half]
                x[t, h, d] = a * cos[t, d] - b * sin[t, d]
                x[t, h, d + half] = b * cos[t, d] + a * sin[t, d]


def _serial(x, cos, sin):
    _some(x, cos, sin, 0, x.shape[0])


def _parallel(x, cos, sin, threads):
    tokens = x.shape[0]
    for part in prange(threads):
        _some(x, cos, sin, tokens * part // threads, tokens * (part + 1) // threads)


_HEADS, _TABLE = types.Array(types.float32, 3, "C"), types.Array(types.float32, 2, "C")
_KERNEL = Kernel("rope", _serial, _parallel, _HEADS, _TABLE, _TABLE)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, threads: int) -> None:
    """Turn the pairs (d, d + Hd/2) of every head of x [T, H, Hd] in place; cos, sin [T, Hd/2]."""
    if threads > 1 and len(x) >= MANY:
        _KERNEL.parallel(x, cos, sin, threads)
    else:
        _KERNEL.serial(x, cos, sin)
