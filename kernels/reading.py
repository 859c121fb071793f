"""Read memory as fast as the cores can: what a product of one token can reach at most."""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

from tpimpi.kernels.emit import I64, emit_prefetch
from tpimpi.kernels.tasks import COUNTER, counter, next_task
from tpimpi.kernels.variants import variant
from tpimpi.kernels.vector import AHEAD, FAR

_TASK = 1 << 17  # words that a thread takes at a time: 1 MiB
_LINE = 8  # words of a cache line
_AHEAD = AHEAD // 8  # words by which a line is fetched before its use, as products do


@intrinsic
def _fetch(typing_context, data, i):
    """Ask for the line of word i of `data`, which may lie behind its end."""

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        at = builder.mul(args[1], ir.Constant(I64, 8))
        at = builder.add(builder.ptrtoint(array.data, I64), at)
        emit_prefetch(builder, builder.inttoptr(at, ir.PointerType()), 3)
        return context.get_dummy_value()

    return types.void(data, types.intp), codegen


@njit(nogil=True)
def _part(data, first, last):
    """XOR of data[first:last], in four streams: one alone doesn't keep the memory busy."""
    step = (last - first) // (4 * _LINE) * _LINE
    a = b = c = d = np.uint64(0)
    for line in range(first, first + step, _LINE):
        if FAR:
            for stream in range(4):
                _fetch(data, line + stream * step + _AHEAD)
        for i in range(line, line + _LINE):
            a ^= data[i]
            b ^= data[i + step]
            c ^= data[i + 2 * step]
            d ^= data[i + 3 * step]
    for i in range(first + 4 * step, last):
        a ^= data[i]
    return a ^ b ^ c ^ d


def _serial(data, found):
    found[0] = _part(data, 0, data.shape[0])


@njit(nogil=True)
def _tasks(data, tasks):
    size, found = data.shape[0], np.uint64(0)
    first = next_task(tasks) * _TASK
    while first < size:
        found ^= _part(data, first, min(first + _TASK, size))
        first = next_task(tasks) * _TASK
    return found


def _parallel(data, found, threads, tasks):
    tasks[0] = 0
    for thread in prange(threads):
        found[thread] = _tasks(data, tasks)


_WORDS = types.Array(types.uint64, 1, "C")


def read_memory(data: np.ndarray, threads: int) -> int:
    """Read data, uint64 [n], on all threads; return the XOR of it."""
    found = np.zeros(threads, np.uint64)
    if threads > 1:
        arguments = _WORDS, _WORDS, types.intp, COUNTER
        variant(_parallel, "read", arguments, parallel=True)(data, found, threads, counter())
    else:
        variant(_serial, "read", (_WORDS, _WORDS))(data, found)
    return int(np.bitwise_xor.reduce(found))
