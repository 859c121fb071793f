"""How sixteen weights of a panel at one column become float32 in registers: one entry an encoding.

A kernel knows an encoding by this alone; what its panels are in files and in NumPy's terms is in
`tpimpi.model.encoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    HAS_AVX,
    HAS_AVX512,
    HAS_HALF,
    I16,
    I32,
    I64,
    LANES,
    joined,
    pointer,
    splat,
)  # fmt: skip


@dataclass(frozen=True)
class Widening:
    """Emit sixteen weights of a panel as float32.

    `load(builder, panel, column)` gives the rows' numbers at a column, in the order of `rows`; it
    gets the panel's address. Products begin at multiples of `panels.CHUNK` columns and go on column
    by column, so that blocks of columns may share what they need. `column_bytes` are the bytes of a
    column, or about so many: by these memory is fetched ahead.
    """

    load: Callable
    column_bytes: int
    rows: tuple[int, ...] = tuple(range(LANES))  # lane -> row of the panel


def _loaded(builder, panel, column, element: ir.Type, nbytes: int, count: int = LANES):
    """Load `count` elements that lie side by side at a column."""
    at = builder.add(panel, builder.mul(column, ir.Constant(I64, LANES * nbytes)))
    raw = builder.load(pointer(builder, at), typ=ir.VectorType(element, count))
    raw.align = nbytes
    return raw


def _load_f32(builder, panel, column):
    return _loaded(builder, panel, column, F32, 4)


def _load_bf16(builder, panel, column):
    """bf16 is the upper half of a float32."""
    wide = ir.VectorType(I32, LANES)
    raw = builder.zext(_loaded(builder, panel, column, I16, 2), wide)
    return builder.bitcast(builder.shl(raw, splat(wide, 16)), ir.VectorType(F32, LANES))


def _load_bf16_pairs(builder, panel, column):
    """The same by pairs: even rows are shifted up, odd rows lie right, so nothing is shuffled."""
    pairs = ir.VectorType(I32, LANES // 2)
    raw = _loaded(builder, panel, column, I16, 2)
    raw = builder.bitcast(raw, pairs)
    even, odd = builder.shl(raw, splat(pairs, 16)), builder.and_(raw, splat(pairs, 0xFFFF0000))
    floats = ir.VectorType(F32, LANES // 2)
    return joined(builder, builder.bitcast(even, floats), builder.bitcast(odd, floats))


def _lanes_of(scalar: ir.Type, like: ir.Type) -> ir.Type:
    return ir.VectorType(scalar, like.count) if isinstance(like, ir.VectorType) else scalar


def widen_f16_in_hardware(builder, raw):
    """Emit f16 -> f32 for i16 or a vector of it, by the machine's own instruction."""
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


def _load_f16(builder, panel, column):
    widen = widen_f16_in_hardware if HAS_HALF else widen_f16_by_integers
    return widen(builder, _loaded(builder, panel, column, I16, 2))


_PAIRS = HAS_AVX and not HAS_AVX512  # where vectors of 8 would be widened with two shuffles
_EVEN_ODD = (*range(0, LANES, 2), *range(1, LANES, 2))

WIDENINGS = {
    "f32": Widening(_load_f32, 64),
    "f16": Widening(_load_f16, 32),
    "bf16": Widening(_load_bf16_pairs, 32, _EVEN_ODD) if _PAIRS else Widening(_load_bf16, 32),
}


@intrinsic
def f16_by_integers(typing_context, raw):
    """Return the float16 with these 16 bits as float32, as machines without the instruction do."""

    def codegen(context, builder, sig, args):
        return widen_f16_by_integers(builder, args[0])

    return types.float32(types.uint16), codegen
