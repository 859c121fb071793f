"""Tokens as tiles have them: cut into groups, and of each group [K, count] in place of [count, K].

A tile then reads what it needs at a column from one place, however many tokens there are.
"""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    I32,
    LANES,
    VECTOR,
    emit_loop,
    int64,
    pointer,
)  # fmt: skip
from tpimpi.kernels.variants import inner

_SIDE = 4  # tokens and columns of a block that is transposed in registers


@inner
def groups_of(tokens, most):
    """Return into how many groups tokens are cut; they are as equal as can be, large ones first."""
    return (tokens + most - 1) // most


@inner
def first_of(group, groups, tokens):
    """Return the first token of a group."""
    return tokens // groups * group + min(group, tokens % groups)


@inner
def lay_out(x, start, tokens, most, work, at, part, parts):
    """Write this part of tokens start .. start + tokens - 1, group by group, from work[at] on.

    The parts are runs of columns of x [T, K].
    """
    columns, groups = x.shape[1], groups_of(tokens, most)
    lines = (columns + LANES - 1) // LANES
    begin, end = lines * part // parts * LANES, lines * (part + 1) // parts * LANES
    end = min(end, columns)
    for group in range(groups):
        first = first_of(group, groups, tokens)
        count = first_of(group + 1, groups, tokens) - first
        source = x.ctypes.data + 4 * (start + first) * columns
        target = work.ctypes.data + 4 * (at + first * columns)
        whole = begin
        if count >= _SIDE:
            whole += (end - begin) // LANES * LANES
            for t in range(0, count, _SIDE):  # the last ones may be written twice
                token = min(t, count - _SIDE)
                _transpose(
                    source + 4 * token * columns, columns, target + 4 * token, count, begin, whole
                )
        for t in range(count):
            _scatter(source + 4 * t * columns, target + 4 * t, count, whole, end)


@intrinsic
def _transpose(context, source, columns, target, count, begin, end):
    """Write _SIDE rows, `columns` apart, to the same columns of target [., count].

    `source` and `target` are addresses; columns begin .. end - 1, a multiple of LANES.
    """

    def codegen(context, builder, sig, args):
        source, columns, target, count, begin, end = args
        row_bytes, step = builder.mul(columns, int64(4)), builder.mul(count, int64(4))
        rows = [builder.add(source, builder.mul(row_bytes, int64(r))) for r in range(_SIDE)]

        def line(column, _):
            offset = builder.mul(column, int64(4))
            loaded = []
            for row in rows:
                value = builder.load(pointer(builder, builder.add(row, offset)), typ=VECTOR)
                value.align = 4
                loaded.append(value)
            place = builder.add(target, builder.mul(column, step))
            for i, block in enumerate(_transposed(builder, loaded)):
                for lane in range(0, LANES, _SIDE):  # column `lane + i` of these
                    numbers = list(range(lane, lane + _SIDE))
                    order = ir.Constant(ir.VectorType(I32, _SIDE), numbers)
                    value = builder.shuffle_vector(block, block, order)
                    at = builder.add(place, builder.mul(step, int64(lane + i)))
                    builder.store(value, pointer(builder, at)).align = 4
            return []

        emit_loop(builder, begin, end, LANES, [], line)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), codegen


def _transposed(builder, rows):
    """Emit blocks of 4 x 4 transposed where they lie side by side in 4 vectors."""
    starts = range(0, LANES, _SIDE)

    def shuffled(a, b, lanes):
        order = [at + lane % _SIDE + LANES * (lane >= _SIDE) for at in starts for lane in lanes]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), order))

    a, b, c, d = rows
    low_ab, high_ab = shuffled(a, b, (0, 4, 1, 5)), shuffled(a, b, (2, 6, 3, 7))
    low_cd, high_cd = shuffled(c, d, (0, 4, 1, 5)), shuffled(c, d, (2, 6, 3, 7))
    return [
        shuffled(ab, cd, lanes)
        for ab, cd in ((low_ab, low_cd), (high_ab, high_cd))
        for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


@intrinsic
def _scatter(context, source, target, count, begin, end):
    """Write columns begin .. end - 1 of one row to the same columns of target [., count]."""

    def codegen(context, builder, sig, args):
        source, target, count, begin, end = args
        step = builder.mul(count, int64(4))

        def one(column, _):
            at = builder.add(source, builder.mul(column, int64(4)))
            value = builder.load(pointer(builder, at), typ=F32)
            place = builder.add(target, builder.mul(column, step))
            builder.store(value, pointer(builder, place)).align = 4
            return []

        emit_loop(builder, begin, end, 1, [], one)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen
