"""The micro-kernel: panels of sixteen rows times a few tokens, an outer product for each column.

A panel [K, 16] holds sixteen rows of a matrix side by side, column by column. At each column its
weights are widened once and multiplied with every token's number there; nothing is packed, nothing
transposed, and no lanes are added up.

Every element is summed in one order: chunks of CHUNK columns, each in sequence by fused
multiply-adds from zero, the chunks in sequence. It depends on nothing, neither on the tokens or
panels that are computed together nor on the vectors of the machine.
"""

from __future__ import annotations

from functools import cache

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    HAS_AVX512,
    I32,
    LANES,
    VECTOR,
    Outlined,
    broadcast,
    emit_loop,
    emit_prefetch,
    fma,
    int64,
    pointer,
    splat,
)  # fmt: skip
from tpimpi.kernels.functions import call_function, function_address
from tpimpi.kernels.variants import inner
from tpimpi.kernels.widening import WIDENINGS, Widening

ROWS = LANES  # of a panel
CHUNK = 256  # columns that are summed by themselves
UNROLL = 2  # columns
LINE = 64  # bytes
# Panels side by side, from how many and up to how many tokens: as many sums as the registers hold.
# Several panels with few tokens keep the memory busy, one with many tokens widens weights once.
TILES = ((4, 1, 6), (1, 7, 24), (2, 6, 12)) if HAS_AVX512 else ((1, 1, 6), (2, 1, 2), (4, 1, 1))
_SHAPES = [(side, n) for side, least, most in TILES for n in range(least, most + 1)]
_WIDEN = 0  # in place of a shape


def _emit_tile(side: int, count: int, widening: Widening):
    """Emit the product of `side` panels with `count` tokens over columns of one chunk.

    Arguments, all 64-bit: the first panel's address, bytes to the next, how many there are (the
    last stands in for those that are not), the first column, how many columns; the tokens' numbers
    [columns, count]; the sums [side, count, 16] that the products are added to; and what is fetched
    meanwhile: an address, bytes to that of the next panel, bytes a column.
    """
    columns_a_line = max(LINE // widening.column_bytes, 1)

    def emit(builder, panel, stride, there, column, columns, x, sums, ahead, ahead_stride, step):
        last = builder.sub(there, int64(1))
        panels, coming = [panel], [ahead]
        for s in range(1, side):
            number = builder.select(builder.icmp_signed("<", int64(s), last), int64(s), last)
            panels.append(builder.add(panel, builder.mul(number, stride)))
            coming.append(builder.add(coming[-1], ahead_stride))

        def columns_of(unroll):
            def emit_columns(k, before):
                products = list(before)
                if unroll == UNROLL:
                    for u in range(0, UNROLL, columns_a_line):
                        passed = builder.mul(builder.add(k, int64(u)), step)
                        for at in coming:
                            emit_prefetch(builder, pointer(builder, builder.add(at, passed)), 3)
                first = builder.add(column, k)
                inputs = builder.add(x, builder.mul(k, int64(4 * count)))
                for u in range(unroll):
                    at = builder.add(first, int64(u))
                    weights = [widening.load(builder, panel, at) for panel in panels]
                    for t in range(count):  # in an order that needs few registers at a time
                        number = broadcast(builder, builder.add(inputs, int64(4 * (u * count + t))))
                        row = zip(weights, products[t], strict=True)
                        products[t] = [fma(builder, w, number, p) for w, p in row]
                return products

            return emit_columns

        whole = builder.and_(columns, int64(-UNROLL))
        products = [[splat(VECTOR, 0.0)] * side for _ in range(count)]
        products = emit_loop(builder, int64(0), whole, UNROLL, products, columns_of(UNROLL))
        products = emit_loop(builder, whole, columns, 1, products, columns_of(1))
        for t, row in enumerate(products):
            for s, product in enumerate(row):
                place = builder.add(sums, int64(4 * ROWS * (s * count + t)))
                before = _load(builder, place)
                _store(builder, builder.fadd(before, _in_order(builder, product, widening)), place)

    return emit


def _emit_widening(widening: Widening):
    """Emit the widening of panels: arguments as for a tile, up to the columns; then where to.

    The widened panels [columns, 16] are CHUNK columns apart.
    """

    def emit(builder, panel, stride, there, column, columns, target):
        def one(s, _):
            source = builder.add(panel, builder.mul(s, stride))
            place = builder.add(target, builder.mul(s, int64(4 * ROWS * CHUNK)))

            def column_of(k, _):
                weights = widening.load(builder, source, builder.add(column, k))
                at = builder.add(place, builder.mul(k, int64(4 * ROWS)))
                _store(builder, _in_order(builder, weights, widening), at)
                return []

            emit_loop(builder, int64(0), columns, 1, [], column_of)
            return []

        emit_loop(builder, int64(0), there, 1, [], one)

    return emit


def _in_order(builder, vector, widening: Widening):
    """Emit a vector with the rows of a panel in their order."""
    back = [widening.rows.index(row) for row in range(ROWS)]
    if back == list(range(ROWS)):
        return vector
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, ROWS), back))


def _load(builder, address):
    vector = builder.load(pointer(builder, address), typ=VECTOR)
    vector.align = 4 * LANES
    return vector


def _store(builder, vector, address):
    builder.store(vector, pointer(builder, address)).align = 4 * LANES


def tile_of(encoding: str) -> int:
    """Return the address of the micro-kernel for an encoding, which `multiply` calls."""
    return function_address(f"tiles_{encoding}", _tiles(encoding))


@cache
def _tiles(encoding: str) -> dict[int, Outlined]:
    widening = WIDENINGS[encoding]
    tiles = {
        side << 8 | count: Outlined(f"tile_{side}_{count}", 10, _emit_tile(side, count, widening))
        for side, count in _SHAPES
    }
    return tiles | {_WIDEN: Outlined("widen", 6, _emit_widening(widening))}


@inner
def multiply(
    tile, side, count, panel, stride, there, column, columns, x, sums, ahead, apart, step
):  # fmt: skip
    """Add the products of a chunk of columns to the sums: arguments as `_emit_tile` has them."""
    call_function(
        tile, side << 8 | count, panel, stride, there, column, columns, x, sums, ahead, apart, step
    )


@inner
def widen(tile, panel, stride, there, column, columns, target):
    """Write a chunk of panels as float32, as `_emit_widening` tells."""
    call_function(tile, _WIDEN, panel, stride, there, column, columns, target, 0, 0, 0, 0)


@intrinsic
def store_rows(context, sums, tokens, rows, out, stride):
    """Write sums [tokens, 16] of the first `rows` rows to out, whose tokens are `stride` apart.

    `sums` and `out` are addresses, `stride` are bytes.
    """

    def codegen(context, builder, sig, args):
        sums, tokens, rows, out, stride = args

        def token(t, _):
            source = builder.add(sums, builder.mul(t, int64(4 * ROWS)))
            target = builder.add(out, builder.mul(t, stride))
            with builder.if_else(builder.icmp_signed("==", rows, int64(ROWS))) as (whole, part):
                with whole:
                    vector = builder.load(pointer(builder, source), typ=VECTOR)
                    vector.align = 4
                    builder.store(vector, pointer(builder, target)).align = 4
                with part:
                    emit_loop(builder, int64(0), rows, 1, [], row(source, target))
            return []

        def row(source, target):
            def emit(r, _):
                offset = builder.mul(r, int64(4))
                one = builder.load(pointer(builder, builder.add(source, offset)), typ=F32)
                builder.store(one, pointer(builder, builder.add(target, offset)))
                return []

            return emit

        emit_loop(builder, int64(0), tokens, 1, [], token)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen
