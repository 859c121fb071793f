"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from tpimpi.kernels.vector import dot_block

_ROWS = types.Array(types.float32, 2, "C")


@njit(
    types.void(_ROWS, types.Array(types.float32, 1, "C"), types.float32, _ROWS),
    nogil=True,
    cache=True,
)
def _rmsnorm(x, weight, eps, out):
    tokens, dim = x.shape
    for t in range(tokens):
        dot_block(1, 1, x, t, x, t, out, t, 0)  # the sum of squares, in out's first column
        scale = np.float32(1.0) / np.sqrt(out[t, 0] / np.float32(dim) + eps)
        for d in range(dim):
            out[t, d] = weight[d] * (x[t, d] * scale)


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into out; x, out float32 [T, D], weight [D]."""
    _rmsnorm(x, weight, np.float32(eps), out)
