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
UNROLL = 4  # columns
LINE = 64  # bytes
# Panels side by side, and up to how many tokens: as many sums as the registers hold. One panel with
# many tokens loads its weights once; several with few tokens keep the memory busy.
TILES = ((4, 6), (1, 24)) if HAS_AVX512 else ((1, 6), (2, 2), (4, 1))
_SHAPES = sorted({(side, count) for side, most in TILES for count in range(1, most + 1)})


def _emit_tile(side: int, count: int, widening: Widening):
    """Emit the product of `side` panels with `count` tokens over columns of one chunk.

    Arguments, all 64-bit: the first panel's address, bytes to the next, how many there are (the
    last stands in for those that are not), the first column, how many columns; the tokens' numbers
    [columns, count]; the sums [side, count, 16] that the products are added to; and what is fetched
    meanwhile: an address, bytes to that of the next panel, bytes a column.
    """
    columns_a_line = max(LINE // widening.column_bytes, 1)
    back = [widening.rows.index(row) for row in range(ROWS)]

    def emit(builder, panel, stride, there, column, columns, x, sums, ahead, ahead_stride, step):
        last = builder.sub(there, int64(1))
        panels, coming = [panel], [ahead]
        for s in range(1, side):
            number = builder.select(builder.icmp_signed("<", int64(s), last), int64(s), last)
            panels.append(builder.add(panel, builder.mul(number, stride)))
            coming.append(builder.add(coming[-1], ahead_stride))

        def columns_of(unroll):
            def emit_columns(k, products):
                if unroll == UNROLL:
                    for u in range(0, UNROLL, columns_a_line):
                        passed = builder.mul(builder.add(k, int64(u)), step)
                        for at in coming:
                            emit_prefetch(builder, pointer(builder, builder.add(at, passed)), 3)
                first, inputs = (
                    builder.add(column, k),
                    builder.add(x, builder.mul(k, int64(4 * count))),
                )
                for u in range(unroll):
                    at = builder.add(first, int64(u))
                    weights = [widening.load(builder, panel, at) for panel in panels]
                    numbers = [
                        broadcast(builder, builder.add(inputs, int64(4 * (u * count + t))))
                        for t in range(count)
                    ]
                    products = [
                        [fma(builder, w, n, p) for n, p in zip(numbers, row, strict=True)]
                        for w, row in zip(weights, products, strict=True)
                    ]
                return products

            return emit_columns

        whole = builder.and_(columns, int64(-UNROLL))
        products = [[splat(VECTOR, 0.0)] * count for _ in range(side)]
        products = emit_loop(builder, int64(0), whole, UNROLL, products, columns_of(UNROLL))
        products = emit_loop(builder, whole, columns, 1, products, columns_of(1))
        order = ir.Constant(ir.VectorType(I32, LANES), back)
        for i, product in enumerate(product for row in products for product in row):
            if back != list(range(ROWS)):
                product = builder.shuffle_vector(product, product, order)
            place = pointer(builder, builder.add(sums, int64(4 * ROWS * i)))
            before = builder.load(place, typ=VECTOR)
            before.align = 4 * LANES
            builder.store(builder.fadd(before, product), place).align = 4 * LANES

    return emit


def tile_of(encoding: str) -> int:
    """Return the address of the micro-kernel for an encoding, which `multiply` calls."""
    return function_address(f"tiles_{encoding}", _tiles(encoding))


@cache
def _tiles(encoding: str) -> dict[int, Outlined]:
    widening = WIDENINGS[encoding]
    return {
        side << 8 | count: Outlined(f"tile_{side}_{count}", 10, _emit_tile(side, count, widening))
        for side, count in _SHAPES
    }


@inner
def multiply(
    tile, side, count, panel, stride, there, column, columns, x, sums, ahead, apart, step
):  # fmt: skip
    """Add the products of a chunk of columns to the sums: arguments as `_emit_tile` has them."""
    call_function(
        tile, side << 8 | count, panel, stride, there, column, columns, x, sums, ahead, apart, step
    )


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
