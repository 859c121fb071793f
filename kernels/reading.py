"""Read memory as fast as the cores can: what a product of one token can reach at most."""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from tpimpi.kernels.emit import I64, emit_loop, emit_prefetch, int64, pointer
from tpimpi.kernels.tasks import COUNTER, counter, next_task
from tpimpi.kernels.tiling import AHEADS
from tpimpi.kernels.variants import inner, variant

_TASK = 1 << 17  # words that a thread takes at a time: 1 MiB
_LINE = 8  # words of a cache line
_STREAMS = 4  # read side by side: one alone doesn't keep the memory busy


@intrinsic
def _read(context, data, stream, lines, ahead):
    """Return the XOR of _STREAMS runs of cache lines: where they begin, bytes from one to the next.

    `ahead`: the bytes by which lines are fetched before their use, 0 for none.
    """

    def codegen(context, builder, sig, args):
        data, stream, lines, ahead = args
        line = ir.VectorType(I64, _LINE)
        starts = [builder.add(data, builder.mul(stream, int64(s))) for s in range(_STREAMS)]

        def read(i, found):
            at = builder.mul(i, int64(8 * _LINE))
            for start in starts:
                coming = builder.add(builder.add(start, at), ahead)
                emit_prefetch(builder, pointer(builder, coming), 3)
            result = []
            for start, so_far in zip(starts, found, strict=True):
                value = builder.load(pointer(builder, builder.add(start, at)), typ=line)
                value.align = 8
                result.append([builder.xor(so_far[0], value)])
            return result

        zero = ir.Constant(line, [0] * _LINE)
        found = emit_loop(builder, int64(0), lines, 1, [[zero]] * _STREAMS, read)
        total = found[0][0]
        for other in found[1:]:
            total = builder.xor(total, other[0])
        words = [builder.extract_element(total, int64(i)) for i in range(_LINE)]
        total = words[0]
        for word in words[1:]:
            total = builder.xor(total, word)
        return total

    return types.uint64(*[types.intp] * 4), codegen


@inner
def _part(data, first, last, ahead):
    """XOR of data[first:last]."""
    lines = (last - first) // (_STREAMS * _LINE)
    found = _read(data.ctypes.data + 8 * first, 8 * _LINE * lines, lines, ahead)
    for i in range(first + _STREAMS * _LINE * lines, last):
        found ^= data[i]
    return found


def _serial(data, found, ahead):
    found[0] = _part(data, 0, data.shape[0], ahead)


@inner
def _tasks(data, tasks, ahead):
    size, found = data.shape[0], np.uint64(0)
    first = next_task(tasks) * _TASK
    while first < size:
        found ^= _part(data, first, min(first + _TASK, size), ahead)
        first = next_task(tasks) * _TASK
    return found


def _parallel(data, found, ahead, threads, tasks):
    tasks[0] = 0
    for thread in prange(threads):
        found[thread] = _tasks(data, tasks, ahead)


_WORDS = types.Array(types.uint64, 1, "C")
_ARGUMENTS = _WORDS, _WORDS, types.intp


def read_memory(data: np.ndarray, threads: int, ahead: int = AHEADS[0]) -> int:
    """Read data, uint64 [n], on all threads; return the XOR of it.

    Lines are fetched `ahead` bytes before their use: some cores need that, others are slower by it.
    """
    found = np.zeros(threads, np.uint64)
    if threads > 1:
        arguments = *_ARGUMENTS, types.intp, COUNTER
        kernel = variant(_parallel, "read", arguments, parallel=True)
        kernel(data, found, ahead, threads, counter())
    else:
        variant(_serial, "read", _ARGUMENTS)(data, found, ahead)
    return int(np.bitwise_xor.reduce(found))
