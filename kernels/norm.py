"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.variants import MANY, Kernel
from tpimpi.kernels.vector import dot_block


@njit(nogil=True)
def _some(x, weight, eps, out, first, last):
    """Normalize the tokens first .. last - 1."""
    dim = x.shape[1]
    for t in range(first, last):
        for d in range(dim):
            out[t, d] = x[t, d]
        first = out[t, 0]
        dot_block(1, 1, out, t, out, t, 1, out, t, 0)  # the sum of squares, in the first column
        scale = np.float32(1.0) / np.sqrt(out[t, 0] / np.float32(dim) + eps)
        out[t, 0] = first
        for d in range(dim):
            out[t, d] = weight[d] * (out[t, d] * scale)


def _serial(x, weight, eps, out):
    _some(x, weight, eps, out, 0, x.shape[0])


def _parallel(x, weight, eps, out, threads):
    tokens = x.shape[0]
    for part in prange(threads):
        _some(x, weight, eps, out, tokens * part // threads, tokens * (part + 1) // threads)


_ROWS, _ROW = types.Array(types.float32, 2, "C"), types.Array(types.float32, 1, "C")
_KERNEL = Kernel("rmsnorm", _serial, _parallel, _ROWS, _ROW, types.float32, _ROWS)


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray, threads: int) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into out; x, out float32 [T, D], weight [D].

    `out` may be x.
    """
    if threads > 1 and len(x) >= MANY:
        _KERNEL.parallel(x, weight, eps, out, threads)
    else:
        _KERNEL.serial(x, weight, eps, out)
