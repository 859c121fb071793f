"""Arithmetic that numba has no words for: a fused product and sum, e^x, bits of a float32."""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import F32, I32, fma, splat


@intrinsic
def fma32(typing_context, a, b, c):
    """Return a b + c in float32, fused on every machine that can, in and out of vectors."""

    def codegen(context, builder, sig, args):
        return fma(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), codegen


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which the low bits then are
_LOWEST, _HIGHEST = -87.33654, 88.02969
# Minimax coefficients for |x| <= ln(2) / 2, the highest power first.
_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    0.5,
)  # fmt: skip


def emit_exp(builder, x):
    """Emit e^x for a float32 or a vector to about 1 ulp: 0 below -87.3, also for -inf; NaN for NaN.

    x = n ln(2) + r; 2^n is written as the bits of its exponent.
    """
    integers = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32

    def number(value: float):
        return splat(x.type, float(np.float32(value)))

    small = builder.fcmp_ordered("<", x, number(_LOWEST))
    clamped = builder.select(small, number(_LOWEST), x)
    large = builder.fcmp_ordered(">", clamped, number(_HIGHEST))
    clamped = builder.select(large, number(_HIGHEST), clamped)
    shifted = fma(builder, clamped, number(_LOG2_E), number(_ROUND))
    n = builder.fsub(shifted, number(_ROUND))
    r = fma(builder, n, number(-_LN2_HIGH), clamped)
    r = fma(builder, n, number(-_LN2_LOW), r)
    p = number(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = fma(builder, p, r, number(coefficient))
    p = builder.fadd(fma(builder, p, builder.fmul(r, r), r), number(1.0))
    bits = builder.shl(builder.bitcast(shifted, integers), splat(integers, 23))
    power = builder.bitcast(builder.add(bits, splat(integers, 0x3F800000)), x.type)
    return builder.select(small, number(0.0), builder.fmul(p, power))


@intrinsic
def exp32(typing_context, x):
    """Return e^x, see `emit_exp`."""

    def codegen(context, builder, sig, args):
        return emit_exp(builder, args[0])

    return types.float32(types.float32), codegen


@intrinsic
def bits_of(typing_context, value):
    """Return the int32 that was kept in a float32's place."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def from_bits(typing_context, value):
    """Return a float32 with the bits of an int32, to keep it among float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), codegen
