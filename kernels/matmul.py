"""x [T, K] times raw weights [N, K]: FP32 arithmetic, weights widened in registers.

The same bits for an output element whatever T, N, the tile or the number of threads: a few tokens
are multiplied where they lie, many in packed panels, see `gemm`, and both sum an element in the
same 16 lanes over k, see `vector`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels import panels
from tpimpi.kernels.emit import HAS_AVX512
from tpimpi.kernels.gemm import (
    BATCH,
    multiply_panel,
    pack_groups,
    packed_floats,
    thread_floats,
)  # fmt: skip
from tpimpi.kernels.scratch import scratch
from tpimpi.kernels.tasks import COUNTER, counter, next_task
from tpimpi.kernels.variants import variant
from tpimpi.kernels.vector import FAR, ROWS, STREAMS, TOKENS, dot_block

FEW = 2 * TOKENS if HAS_AVX512 else 7  # tokens up to which weights pass straight from memory
_TASK_BYTES = (256 if FAR else 128) << 10  # that a thread takes at a time for a few tokens

# numba sees an encoding as a dtype: int16 for f16, so that it isn't taken for bf16's uint16.
_NUMBA_TYPES = {"f32": types.float32, "bf16": types.uint16, "f16": types.int16}


@njit(nogil=True)
def _tokens(x, t, count, w, n, apart, out):
    """Multiply rows n, n + apart, ... with 1 to TOKENS tokens; STREAMS rows, or ROWS for more."""
    if count == 1:
        dot_block(STREAMS, 1, x, t, w, n, apart, out, t, n)
    elif count == 2:
        dot_block(ROWS, 2, x, t, w, n, apart, out, t, n)
    elif count == 3:
        dot_block(ROWS, 3, x, t, w, n, apart, out, t, n)
    elif TOKENS > 3 and count == 4:
        dot_block(ROWS, 4, x, t, w, n, apart, out, t, n)
    elif TOKENS > 3 and count == 5:
        dot_block(ROWS, 5, x, t, w, n, apart, out, t, n)
    elif TOKENS > 3 and count == 6:
        dot_block(ROWS, 6, x, t, w, n, apart, out, t, n)


@njit(nogil=True)
def _few(x, w, out, first, last):
    """Compute out[:, first:last] straight from x and w."""
    tokens = x.shape[0]
    blocks = (tokens + TOKENS - 1) // TOKENS
    rows = STREAMS if tokens == 1 else ROWS
    groups = (last - first) // rows
    apart, step = (groups, 1) if FAR else (1, rows)
    for group in range(groups):
        t = 0
        for block in range(blocks):
            count = (tokens - t) // (blocks - block)
            _tokens(x, t, count, w, first + group * step, apart, out)
            t += count
    for n in range(first + groups * rows, last):
        for t in range(tokens):
            dot_block(1, 1, x, t, w, n, 1, out, t, n)


def _few_serial(x, w, out):
    _few(x, w, out, 0, w.shape[0])


@njit(nogil=True)
def _few_tasks(x, w, out, threads, tasks):
    rows, row_bytes = w.shape[0], max(w.shape[1] * w.itemsize, 1)
    step = min(max(_TASK_BYTES // row_bytes, 1), rows // (8 * threads) + 1)
    step = (step + STREAMS - 1) // STREAMS * STREAMS
    first = next_task(tasks) * step
    while first < rows:
        _few(x, w, out, first, min(first + step, rows))
        first = next_task(tasks) * step


def _few_parallel(x, w, out, threads, tasks):
    tasks[0] = 0
    for _ in prange(threads):
        _few_tasks(x, w, out, threads, tasks)


def _many_serial(x, w, out, size, work):
    tokens, rows, packed = x.shape[0], w.shape[0], work[size:]
    for start in range(0, tokens, BATCH):
        stop = min(start + BATCH, tokens)
        pack_groups(x, start, stop, packed, 0, 1)
        for row in range(0, rows, panels.ROWS):
            multiply_panel(packed, w, out, start, stop, row, row + panels.ROWS, work)


@njit(nogil=True)
def _many_tasks(packed, w, out, start, stop, work, tasks):
    rows, step = w.shape[0], panels.ROWS
    row = next_task(tasks) * step
    while row < rows:
        then = next_task(tasks) * step  # known so early that its weights are fetched meanwhile
        multiply_panel(packed, w, out, start, stop, row, then, work)
        row = then


def _many_parallel(x, w, out, size, work, threads, tasks):
    tokens, packed = x.shape[0], work[threads * size :]
    for start in range(0, tokens, BATCH):
        stop = min(start + BATCH, tokens)
        tasks[0] = 0
        for part in prange(threads):
            pack_groups(x, start, stop, packed, part, threads)
        for part in prange(threads):
            _many_tasks(packed, w, out, start, stop, work[part * size :], tasks)


_FLOATS, _STRIDED = types.Array(types.float32, 2, "C"), types.Array(types.float32, 2, "A")
_WORK = types.Array(types.float32, 1, "C")
_kernels: dict[tuple[bool, bool, str], Callable] = {}


def scratch_floats(tokens: int, columns: int, threads: int) -> int:
    """Return how many floats of scratch a product of T tokens over K columns works in."""
    if tokens <= FEW:
        return 0
    return threads * thread_floats(columns) + packed_floats(min(tokens, BATCH), columns)


def _kernel(many: bool, parallel: bool, encoding: str) -> Callable:
    weights = types.Array(_NUMBA_TYPES[encoding], 2, "C")
    arguments = (
        _FLOATS,
        weights,
        _STRIDED,
        *[types.intp, _WORK] * many,
        *[types.intp, COUNTER] * parallel,
    )
    body = ((_few_serial, _few_parallel), (_many_serial, _many_parallel))[many][parallel]
    kernel = variant(body, f"matmul_{encoding}", arguments, parallel=parallel)
    _kernels[many, parallel, encoding] = kernel
    return kernel


def matmul(x: np.ndarray, w: np.ndarray, out: np.ndarray, threads: int, encoding: str) -> None:
    """Write x [T, K] w.T into out [T, N]; w [N, K] raw in its encoding, out's rows may be strided.

    Each element is summed in 16 lanes over k, see `vector`.
    """
    tokens, columns = x.shape
    many, parallel = tokens > FEW, threads > 1
    kernel = _kernels.get((many, parallel, encoding)) or _kernel(many, parallel, encoding)
    if encoding == "f16":
        w = w.view(np.int16)
    work = ()
    if many:
        work = thread_floats(columns), scratch(scratch_floats(tokens, columns, threads))
    kernel(x, w, out, *work, *((threads, counter()) if parallel else ()))
