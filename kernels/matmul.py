"""x [T, K] times raw weights [N, K]: FP32 arithmetic, weights widened in registers.

The same bits for an output element whatever T, N, the tile or the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.variants import variant
from tpimpi.kernels.vector import ROWS, TOKENS, dot_block

_L2_BYTES = 768 << 10  # of inputs that stay beside the weights in a core's second cache

# numba sees an encoding as a dtype: int16 for f16, so that it isn't taken for bf16's uint16.
_NUMBA_TYPES = {"f32": types.float32, "bf16": types.uint16, "f16": types.int16}


@njit(nogil=True)
def _tokens(x, t, count, w, n, out):
    """Multiply one group of ROWS rows with 1 to TOKENS tokens."""
    if count == 1:
        dot_block(ROWS, 1, x, t, w, n, out, t, n)
    elif count == 2:
        dot_block(ROWS, 2, x, t, w, n, out, t, n)
    elif count == 3:
        dot_block(ROWS, 3, x, t, w, n, out, t, n)
    elif TOKENS > 3 and count == 4:
        dot_block(ROWS, 4, x, t, w, n, out, t, n)
    elif TOKENS > 3 and count == 5:
        dot_block(ROWS, 5, x, t, w, n, out, t, n)
    elif TOKENS > 3 and count == 6:
        dot_block(ROWS, 6, x, t, w, n, out, t, n)


@njit(nogil=True)
def _rows(x, w, out, first, last):
    """Compute out[:, first:last]."""
    tokens, columns = x.shape
    if tokens == 0 or last <= first:
        return
    if tokens == 1 or last - first < ROWS:  # one token: a row is one stream from memory
        for n in range(first, last):
            for t in range(tokens):
                dot_block(1, 1, x, t, w, n, out, t, n)
        return
    most = max(TOKENS, _L2_BYTES // (4 * max(columns, 1)) // TOKENS * TOKENS)
    for start in range(0, tokens, most):
        stop = min(start + most, tokens)
        blocks = (stop - start + TOKENS - 1) // TOKENS
        for group in range(first, last, ROWS):
            n = min(group, last - ROWS)  # the last group overlaps: the same bits once more
            t = start
            for block in range(blocks):
                count = (stop - t) // (blocks - block)
                _tokens(x, t, count, w, n, out)
                t += count


def _serial(x, w, out):
    _rows(x, w, out, 0, w.shape[0])


def _parallel(x, w, out, threads):
    groups = (w.shape[0] + ROWS - 1) // ROWS
    for part in prange(threads):
        first = groups * part // threads * ROWS
        last = min(groups * (part + 1) // threads * ROWS, w.shape[0])
        _rows(x, w, out, first, last)


_FLOATS, _STRIDED = types.Array(types.float32, 2, "C"), types.Array(types.float32, 2, "A")


def matmul(x: np.ndarray, w: np.ndarray, out: np.ndarray, threads: int, encoding: str) -> None:
    """Write x [T, K] w.T into out [T, N]; w [N, K] raw in its encoding, out's rows may be strided.

    Each element is summed in 16 lanes over k, see `vector`.
    """
    weights = types.Array(_NUMBA_TYPES[encoding], 2, "C")
    if encoding == "f16":
        w = w.view(np.int16)
    arguments = (_FLOATS, weights, _STRIDED)
    if threads > 1:
        name = f"matmul_{encoding}"
        variant(_parallel, name, (*arguments, types.intp), parallel=True)(x, w, out, threads)
    else:
        variant(_serial, f"matmul_{encoding}", arguments)(x, w, out)
