"""Vector code that numba's own loops can't promise: 16 lanes an output element, always.

A dot product sums its lane l over k = l, l + 16, ..., then the lanes by one fixed tree. Neither the
number of rows or tokens computed together nor the machine's vector width changes that order, so a
row's bits don't depend on its company. LLVM splits the 16 lanes into whatever the target has.
"""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    HAS_AVX512,
    I32,
    I64,
    IS_ZEN,
    emit_loop,
    emit_prefetch,
    fma,
    splat,
)
from tpimpi.kernels.widening import WIDEN

LANES = 16
ROWS, TOKENS = (4, 6) if HAS_AVX512 else (2, 3)  # accumulators that the registers hold
STREAMS = 4  # rows side by side for one token: one alone doesn't keep the memory busy
# A core waits for few lines at once. Fetched by software in time, from rows FAR apart, weights come
# at 0.95 of the read rate on Intel's cores, where rows side by side reach 0.65; on Zen 3 it is the
# other way round: its prefetchers do better alone, but need help where the next rows begin.
FAR = not IS_ZEN
AHEAD = 1536  # bytes by which a line is fetched before its use
HEAD = 64  # columns of the next rows that are fetched on Zen


def _sum_lanes(builder, vector):
    """Emit the fixed tree: halves are added until one lane is left."""
    count = vector.type.count
    while count > 1:
        half = count // 2
        mask = ir.VectorType(I32, half)
        undefined = ir.Constant(vector.type, ir.Undefined)
        low = ir.Constant(mask, list(range(half)))
        high = ir.Constant(mask, list(range(half, count)))
        vector = builder.fadd(
            builder.shuffle_vector(vector, undefined, low),
            builder.shuffle_vector(vector, undefined, high),
        )
        count = half
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _four_lanes(builder, parts):
    """Emit the first steps of the tree: halves are added until a vector of 4 lanes is left."""
    while len(parts) > 1:
        half = len(parts) // 2
        pairs = zip(parts[:half], parts[half:], strict=True)
        parts = [builder.fadd(low, high) for low, high in pairs]
    vector = parts[0]
    while vector.type.count > 4:
        half = vector.type.count // 2
        low = _shuffle(builder, vector, vector, list(range(half)))
        vector = builder.fadd(low, _shuffle(builder, vector, vector, list(range(half, 2 * half))))
    return vector


def _transposed_sums(builder, vectors):
    """Emit the tree's last two steps for four vectors at once; return their sums in a vector."""

    def halves_added(a, b):
        low = _shuffle(builder, a, b, [0, 1, 4, 5])
        return builder.fadd(low, _shuffle(builder, a, b, [2, 3, 6, 7]))

    a, b = halves_added(*vectors[:2]), halves_added(*vectors[2:])
    even = _shuffle(builder, a, b, [0, 2, 4, 6])
    return builder.fadd(even, _shuffle(builder, a, b, [1, 3, 5, 7]))


def _sums_of_lanes(builder, vectors):
    """Emit the sums of several vectors: four at a time share the tree's last steps."""
    if len(vectors) != 4:
        return [_sum_lanes(builder, vector) for vector in vectors]
    totals = _transposed_sums(builder, [_four_lanes(builder, [vector]) for vector in vectors])
    return [builder.extract_element(totals, ir.Constant(I32, lane)) for lane in range(4)]


class _Rows:
    """The addresses of rows of a 2-d array, each `apart` rows after the last."""

    def __init__(self, builder, array, first, apart, count: int, itemsize: int, element: ir.Type):
        self._builder, self._size, self._element = builder, itemsize, element
        base = builder.ptrtoint(array.data, I64)
        self._stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
        self._rows = []
        for r in range(count):
            row = builder.add(first, builder.mul(apart, ir.Constant(I64, r)))
            self._rows.append(builder.add(base, builder.mul(row, self._stride)))

    def load(self, row: int, column, lanes: int | None):
        """Load one element, or `lanes` of them."""
        builder = self._builder
        at = builder.add(self._rows[row], builder.mul(column, ir.Constant(I64, self._size)))
        kind = ir.VectorType(self._element, lanes) if lanes else self._element
        value = builder.load(builder.inttoptr(at, ir.PointerType()), typ=kind)
        value.align = self._size
        return value

    def prefetch(self, column, columns: int, ahead):
        """Ask for the lines `ahead` bytes after these columns, in the next row if need be.

        The hardware's own prefetchers stop at the end of a page, and a row is often a page.
        """
        builder = self._builder
        offset = builder.add(builder.mul(column, ir.Constant(I64, self._size)), ahead)
        for row in self._rows:
            at = builder.add(row, offset)
            for line in range(0, columns * self._size, 64):
                pointer = builder.add(at, ir.Constant(I64, line))
                emit_prefetch(builder, builder.inttoptr(pointer, ir.PointerType()), 3)

    def prefetch_following(self, columns: int):
        """Ask for the first columns of the rows that follow these, if they lie side by side."""
        ahead = self._builder.mul(self._stride, ir.Constant(I64, len(self._rows)))
        self.prefetch(ir.Constant(I64, 0), columns, ahead)


def _emit_products(builder, accumulators, weights, inputs, widen, column, lanes, lane=None):
    """Emit one step over k for all rows and tokens; return the new accumulators."""
    wide = [widen(builder, weights.load(r, column, lanes)) for r in range(len(accumulators))]
    result = []
    for r, row in enumerate(accumulators):
        result.append([])
        for t, sums in enumerate(row):
            x = inputs.load(t, column, lanes)
            if lane is None:
                result[r].append(fma(builder, wide[r], x, sums))
            else:
                one = fma(builder, wide[r], x, builder.extract_element(sums, lane))
                result[r].append(builder.insert_element(sums, one, lane))
    return result


@intrinsic(prefer_literal=True)
def dot_block(typing_context, rows, tokens, x, t, w, n, apart, out, out_t, out_n):
    """out[out_t + j, out_n + i apart] = sum_k x[t + j, k] w[n + i apart, k], i < rows, j < tokens.

    `rows` and `tokens` are literals. x float32 [T, K], w raw [N, K], both with unit column stride.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    row_count, token_count = rows.literal_value, tokens.literal_value
    element, itemsize, widen = WIDEN[w.dtype]
    i = types.intp
    signature = types.void(rows, tokens, x, i, w, i, i, out, i, i)

    def codegen(context, builder, sig, args):
        _, _, x_value, t_value, w_value, n_value, apart, out_value, out_t_value, out_n_value = args
        x_array = context.make_array(sig.args[2])(context, builder, x_value)
        w_array = context.make_array(sig.args[4])(context, builder, w_value)
        out_array = context.make_array(sig.args[7])(context, builder, out_value)
        columns = cgutils.unpack_tuple(builder, x_array.shape, 2)[1]
        whole = builder.and_(columns, ir.Constant(I64, -LANES))
        one = ir.Constant(I64, 1)
        inputs = _Rows(builder, x_array, t_value, one, token_count, 4, F32)
        weights = _Rows(builder, w_array, n_value, apart, row_count, itemsize, element)
        zero = splat(ir.VectorType(F32, LANES), 0.0)
        sums = [[zero] * token_count for _ in range(row_count)]

        def lanes(k, accumulators):
            return _emit_products(builder, accumulators, weights, inputs, widen, k, LANES)

        def tail(k, accumulators):
            lane = builder.trunc(builder.sub(k, whole), I32)
            return _emit_products(builder, accumulators, weights, inputs, widen, k, None, lane)

        def pair(k, accumulators):  # whole cache lines
            if FAR:
                weights.prefetch(k, 2 * LANES, ir.Constant(I64, AHEAD))
            accumulators = lanes(k, accumulators)
            return lanes(builder.add(k, ir.Constant(I64, LANES)), accumulators)

        if token_count == 1 and not FAR:
            weights.prefetch_following(HEAD)
        paired = builder.and_(columns, ir.Constant(I64, -2 * LANES))
        sums = emit_loop(builder, ir.Constant(I64, 0), paired, 2 * LANES, sums, pair)
        sums = emit_loop(builder, paired, whole, LANES, sums, lanes)
        sums = emit_loop(builder, whole, columns, 1, sums, tail)
        base = builder.ptrtoint(out_array.data, I64)
        strides = cgutils.unpack_tuple(builder, out_array.strides, 2)
        for j in range(token_count):
            row = builder.mul(builder.add(out_t_value, ir.Constant(I64, j)), strides[0])
            totals = _sums_of_lanes(builder, [sums[i][j] for i in range(row_count)])
            for i, total in enumerate(totals):
                column = builder.mul(
                    builder.add(out_n_value, builder.mul(apart, ir.Constant(I64, i))), strides[1]
                )
                at = builder.add(base, builder.add(row, column))
                store = builder.store(total, builder.inttoptr(at, ir.PointerType()))
                store.align = 4
        return context.get_dummy_value()

    return signature, codegen
