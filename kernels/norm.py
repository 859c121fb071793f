"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    I32,
    LANES,
    VECTOR,
    emit_loop,
    fma,
    int64,
    pointer,
    reduced,
    splat,
)  # fmt: skip
from tpimpi.kernels.variants import MANY, Kernel, inner


@intrinsic
def _sum_of_squares(context, row, count):
    """Return the sum of squares of `count` float32 from an address on, in 16 lanes over k."""

    def codegen(context, builder, sig, args):
        row, count = args

        def load(k, kind):
            at = builder.add(row, builder.mul(k, int64(4)))
            value = builder.load(pointer(builder, at), typ=kind)
            value.align = 4
            return value

        def lanes(k, sums):
            x = load(k, VECTOR)
            return [[fma(builder, x, x, sums[0][0])]]

        def tail(k, sums):
            x, lane = load(k, F32), builder.trunc(builder.sub(k, whole), I32)
            one = fma(builder, x, x, builder.extract_element(sums[0][0], lane))
            return [[builder.insert_element(sums[0][0], one, lane)]]

        whole = builder.and_(count, int64(-LANES))
        sums = emit_loop(builder, int64(0), whole, LANES, [[splat(VECTOR, 0.0)]], lanes)
        sums = emit_loop(builder, whole, count, 1, sums, tail)
        return reduced(builder, sums[0][0], builder.fadd)

    return types.float32(types.intp, types.intp), codegen


@inner
def _some(x, weight, eps, out, first, last):
    """Normalize the tokens first .. last - 1."""
    dim = x.shape[1]
    for t in range(first, last):
        square = _sum_of_squares(x.ctypes.data + t * x.strides[0], dim)
        scale = np.float32(1.0) / np.sqrt(square / np.float32(dim) + eps)
        for d in range(dim):
            out[t, d] = weight[d] * (x[t, d] * scale)


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
