"""Raw weights to float32 in registers: one element, or vectors of any length."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import F32, HAS_HALF, I16, I32, splat


def _lanes_of(scalar: ir.Type, like: ir.Type) -> ir.Type:
    return ir.VectorType(scalar, like.count) if isinstance(like, ir.VectorType) else scalar


def widen_bf16(builder, raw):
    """Emit bf16 -> f32 for i16 or a vector of it: the upper half of a float32."""
    wide = _lanes_of(I32, raw.type)
    bits = builder.shl(builder.zext(raw, wide), splat(wide, 16))
    return builder.bitcast(bits, _lanes_of(F32, raw.type))


def widen_f16_in_hardware(builder, raw):
    """Emit f16 -> f32 by the machine's own instruction."""
    return builder.fpext(
        builder.bitcast(raw, _lanes_of(ir.HalfType(), raw.type)), _lanes_of(F32, raw.type)
    )


def widen_f16_by_integers(builder, raw):
    """Emit f16 -> f32 with shifts and one exact product, for machines without the instruction.

    Exponent and mantissa shifted to their places make a float32 that is 2^112 too small, also where
    the half is subnormal; infinities and NaN get all exponent bits afterwards.
    """
    wide, floats = _lanes_of(I32, raw.type), _lanes_of(F32, raw.type)
    bits = builder.zext(raw, wide)
    magnitude = builder.and_(bits, splat(wide, 0x7FFF))
    sign = builder.shl(builder.and_(bits, splat(wide, 0x8000)), splat(wide, 16))
    shifted = builder.bitcast(builder.shl(magnitude, splat(wide, 13)), floats)
    scaled = builder.bitcast(builder.fmul(shifted, splat(floats, 2.0**112)), wide)
    special = builder.icmp_unsigned(">=", magnitude, splat(wide, 0x7C00))
    full = builder.or_(scaled, splat(wide, 0x7F800000))
    return builder.bitcast(builder.or_(builder.select(special, full, scaled), sign), floats)


widen_f16 = widen_f16_in_hardware if HAS_HALF else widen_f16_by_integers

# The dtype under which raw weights come to the kernels tells their encoding.
WIDEN = {
    types.float32: (F32, 4, lambda builder, raw: raw),
    types.uint16: (I16, 2, widen_bf16),
    types.int16: (I16, 2, widen_f16),
}


@intrinsic
def widen_element(typing_context, raw):
    """Return one raw weight as float32."""
    widen = WIDEN[raw][2]

    def codegen(context, builder, sig, args):
        return widen(builder, args[0])

    return types.float32(raw), codegen


@intrinsic
def f16_by_integers(typing_context, raw):
    """Return the float16 with these 16 bits as float32, as machines without the instruction do."""

    def codegen(context, builder, sig, args):
        return widen_f16_by_integers(builder, args[0])

    return types.float32(types.uint16), codegen
