"""Rotary positions in the rotate-half layout (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import numpy as np
from numba import njit, types

_TABLE = types.Array(types.float32, 2, "C")


def rope_tables(
    positions: np.ndarray, inv_freq: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> None:
    """Write cosines and sines [T, Hd/2] of positions [T] times inverse frequencies [Hd/2]."""
    np.multiply(positions[:, None].astype(np.float32), inv_freq[None, :], out=cos)  # angles
    np.sin(cos, out=sin)
    np.cos(cos, out=cos)


@njit(types.void(types.Array(types.float32, 3, "C"), _TABLE, _TABLE), nogil=True, cache=True)
def rope(x, cos, sin):
    """Turn the pairs (d, d + Hd/2) of every head of x [T, H, Hd] in place; cos, sin [T, Hd/2]."""
    tokens, heads, head_dim = x.shape
    half = head_dim // 2
    for t in range(tokens):
        for h in range(heads):
            for d in range(half):
                a, b = x[t, h, d], x[t, h, d + half]
                x[t, h, d] = a * cos[t, d] - b * sin[t, d]
                x[t, h, d + half] = b * cos[t, d] + a * sin[t, d]
