"""Scalar arithmetic that numba has no words for: a fused product and sum, bits of a float32."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import F32, I32, fma


@intrinsic
def fma32(typing_context, a, b, c):
    """Return a b + c in float32, fused on every machine that can, in and out of vectors."""

    def codegen(context, builder, sig, args):
        return fma(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def power_of_two(typing_context, shifted):
    """Return 2^n for the float 1.5 * 2^23 + n, whose low bits are n."""

    def codegen(context, builder, sig, args):
        bits = builder.shl(builder.bitcast(args[0], I32), ir.Constant(I32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(I32, 0x3F800000)), F32)

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
