"""x [T, K] times weights in panels [N / 16, K, 16]: FP32 arithmetic, widened in registers.

The same bits for an output element whatever T, N, the tiles or the number of threads: one
micro-kernel sums every element in one order, see `panels`. Which tiles are used for how many tokens
is measured, see `tiling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import prange, types

from tpimpi.kernels.panels import CHUNK, ROWS, multiply, store_rows, tile_of, widen
from tpimpi.kernels.scratch import scratch
from tpimpi.kernels.tasks import COUNTER, counter, next_task
from tpimpi.kernels.tiling import MOST_SIDE, WIDE, Tiling, tiling_for
from tpimpi.kernels.tokens import first_of, groups_of, lay_out
from tpimpi.kernels.variants import inner, variant

BATCH = 256  # tokens that are laid out at once, at most
MATRICES = 3  # that one call multiplies with the same x, at most
_TASK_BYTES = 512 << 10  # that a thread takes at a time
_EACH = 6  # numbers in the table for a matrix: see `_describe`
_ALONE = 1 << 15  # numbers of x that one thread lays out sooner than others would be woken


@inner
def _describe(table, i, w, out, start):
    """Note where a matrix's panels lie, how many and how large; where its output is; its rows."""
    table[i, 0], table[i, 1], table[i, 2] = w.ctypes.data, w.shape[0], w.shape[1]
    table[i, 3] = out.ctypes.data + start * out.strides[0]
    table[i, 4], table[i, 5] = out.strides[0], out.shape[1]


@inner
def _table(w0, out0, w1, out1, w2, out2, start):
    """Describe all matrices, with the outputs of the tokens from `start` on."""
    table = np.empty((MATRICES, _EACH), np.int64)
    _describe(table, 0, w0, out0, start)
    _describe(table, 1, w1, out1, start)
    _describe(table, 2, w2, out2, start)
    return table


@inner
def _panels(how, table, i, panel, there, tokens, columns, inputs, sums, at):
    """Multiply `there` panels of matrix i, at most `side`, with all tokens; write the outputs."""
    tile, floats, side, most, ahead, wide = how
    address, nbytes = table[i, 0] + panel * table[i, 2], table[i, 2]
    here, size = sums.ctypes.data + 4 * at, side * ROWS
    widened = here + 4 * size * tokens
    for place in range(at, at + size * tokens):
        sums[place] = 0
    tiles, step = groups_of(tokens, most), nbytes // columns  # bytes a column, or about so many
    for column in range(0, columns, CHUNK):
        width = min(CHUNK, columns - column)
        fetched, following = address + column * step + ahead, step
        if tiles > 1:  # the first two fetch the next chunk, a half each
            fetched, following = address + (column + CHUNK) * step, step // 2
            if column + CHUNK >= columns:
                fetched = address + there * nbytes
        multiplier, weights, apart, begin = tile, address, nbytes, column
        if wide:
            widen(tile, address, nbytes, there, column, width, widened)
            multiplier, weights, apart, begin = floats, widened, 4 * ROWS * CHUNK, 0
        for n in range(tiles):
            first = first_of(n, tiles, tokens)
            count = first_of(n + 1, tiles, tokens) - first
            multiply(
                multiplier, side, count, weights, apart, there, begin, width,
                inputs + 4 * (first * columns + column * count), here + 4 * first * size,
                fetched, nbytes, following,
            )  # fmt: skip
            if n == 0:
                fetched += CHUNK * following
            else:
                following = 0
    for n in range(tiles):
        first = first_of(n, tiles, tokens)
        count = first_of(n + 1, tiles, tokens) - first
        for s in range(there):
            row = (panel + s) * ROWS
            store_rows(
                here + 4 * (first * size + s * count * ROWS), count, min(ROWS, table[i, 5] - row),
                table[i, 3] + first * table[i, 4] + 4 * row, table[i, 4],
            )  # fmt: skip


@inner
def _work(how, table, tokens, columns, inputs, threads, tasks, sums, at):
    """Take panels of one matrix after another until none is left."""
    side, total = how[2], 0
    for i in range(MATRICES):
        total += table[i, 1]
    step = min(_TASK_BYTES // max(table[0, 2], 1), total // (8 * threads))
    step = max(step // side, 1) * side  # panels of a task
    first, i = 0, 0  # the number of the matrix's first task
    task = next_task(tasks)
    while i < MATRICES:
        panel = (task - first) * step
        if panel >= table[i, 1]:
            first += (table[i, 1] + step - 1) // step
            i += 1
            continue
        stop = min(panel + step, table[i, 1])
        while panel < stop:
            there = min(side, stop - panel)
            _panels(how, table, i, panel, there, tokens, columns, inputs, sums, at)
            panel += there
        task = next_task(tasks)


@inner
def _inputs(x, start, tokens, work, packed):
    """Return where the tokens' numbers lie as tiles have them: one token's as they are."""
    if tokens == 1:
        return x.ctypes.data + 4 * start * x.shape[1]
    return work.ctypes.data + 4 * packed


def thread_floats(tokens):
    """Return the floats of scratch that a thread works in: its sums, and a chunk of weights."""
    return MOST_SIDE * ROWS * (tokens + (CHUNK if tokens >= WIDE else 0))


_thread_floats = inner(thread_floats)


def _serial(x, w0, out0, w1, out1, w2, out2, how, tasks, work):
    columns, packed = x.shape[1], _thread_floats(min(x.shape[0], BATCH))
    batches = groups_of(x.shape[0], BATCH)  # equal ones: there are no tiles for any few tokens left
    for batch in range(batches):
        start = first_of(batch, batches, x.shape[0])
        tokens = first_of(batch + 1, batches, x.shape[0]) - start
        table = _table(w0, out0, w1, out1, w2, out2, start)
        if tokens > 1:
            lay_out(x, start, tokens, how[3], work, packed, 0, 1)
        inputs = _inputs(x, start, tokens, work, packed)
        tasks[0] = 0
        _work(how, table, tokens, columns, inputs, 1, tasks, work, 0)


def _parallel(x, w0, out0, w1, out1, w2, out2, how, tasks, work, threads):
    columns, each = x.shape[1], _thread_floats(min(x.shape[0], BATCH))
    packed, batches = threads * each, groups_of(x.shape[0], BATCH)
    for batch in range(batches):
        start = first_of(batch, batches, x.shape[0])
        tokens = first_of(batch + 1, batches, x.shape[0]) - start
        table = _table(w0, out0, w1, out1, w2, out2, start)
        if tokens > 1 and tokens * columns <= _ALONE:
            lay_out(x, start, tokens, how[3], work, packed, 0, 1)
        elif tokens > 1:
            for part in prange(threads):
                lay_out(x, start, tokens, how[3], work, packed, part, threads)
        inputs = _inputs(x, start, tokens, work, packed)
        tasks[0] = 0
        for part in prange(threads):
            _work(how, table, tokens, columns, inputs, threads, tasks, work, part * each)


_FLOATS, _STRIDED = types.Array(types.float32, 2, "C"), types.Array(types.float32, 2, "A")
_WORK, _BYTES = types.Array(types.float32, 1, "C"), types.Array(types.uint8, 2, "C")
_HOW = types.UniTuple(types.intp, 6)  # addresses of tiles of these weights and of float32; a Tiling
_ARGUMENTS = _FLOATS, *[_BYTES, _STRIDED] * MATRICES, _HOW, COUNTER, _WORK
_NONE = np.empty((0, 0), np.uint8), np.empty((0, 0), np.float32)
_KERNELS = (
    (_serial, "matmul", _ARGUMENTS),
    (_parallel, "matmul", (*_ARGUMENTS, types.intp)),
)


def scratch_floats(tokens: int, columns: int, threads: int) -> int:
    """Return how many floats of scratch a product of T tokens over K columns works in."""
    batch = min(tokens, BATCH)
    return threads * thread_floats(batch) + (batch * columns if batch > 1 else 0)


def matmul(
    x: np.ndarray, matrices: Sequence[tuple[np.ndarray, np.ndarray]], threads: int, encoding: str,
    tiling: Tiling | None = None,
) -> None:  # fmt: skip
    """Write x [T, K] w.T into out for up to MATRICES pairs (w, out).

    w: panels, uint8 [ceil(N / 16), bytes of a panel] in this encoding; out [T, N], its rows may be
    strided. Each element is summed in the order that `panels` tells. `tiling` is for those who
    measure; else the best one known is taken.
    """
    parallel = threads > 1
    kernel = variant(*_KERNELS[parallel], parallel=parallel)
    tile = tile_of(encoding)
    tokens, columns = x.shape
    for w, out in matrices:
        if not w.size:
            out[...] = 0  # without columns the sums are empty
    if not (tokens and columns):
        return
    side, most, ahead, wide = tiling or tiling_for(tokens, threads, encoding)
    arrays = [array for pair in matrices for array in pair]
    arrays += _NONE * (MATRICES - len(matrices))
    work = scratch(scratch_floats(tokens, columns, threads))
    how = tile, tile_of("f32") if wide else 0, side, most, ahead, wide
    more = (threads,) if parallel else ()
    kernel(x, *arrays, how, counter(), work, *more)
