"""Rows of queries times a page of keys, and of weights times a page of values.

Several rows share what is loaded. Each element is summed alone, over d or over p in order, so that
a row's bits don't depend on its company.
"""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tpimpi.kernels.vector import F32, HAS_AVX512, I32, I64, LANES, emit_loop, fma, splat

PAGE = 64  # positions in a page
_VECTOR = ir.VectorType(F32, LANES)
_WIDTH = 4 if HAS_AVX512 else 1  # vectors a row, so that 4 rows of sums stay in registers


class _Floats:
    """A 2-d C-contiguous float32 array, from row `first` on."""

    def __init__(self, context, builder, kind, value, first=None):
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self.shape = cgutils.unpack_tuple(builder, array.shape, 2)
        self._stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
        self._base = builder.ptrtoint(array.data, I64)
        if first is not None:
            self._base = builder.add(self._base, builder.mul(first, self._stride))

    def _at(self, row, column):
        builder = self._builder
        offset = builder.add(
            builder.mul(row, self._stride), builder.mul(column, ir.Constant(I64, 4))
        )
        return builder.inttoptr(builder.add(self._base, offset), ir.PointerType())

    def load(self, row, column):
        value = self._builder.load(self._at(row, column), typ=_VECTOR)
        value.align = 4
        return value

    def store(self, vector, row, column):
        self._builder.store(vector, self._at(row, column)).align = 4

    def broadcast(self, row, column):
        """Load one element into all lanes."""
        builder, undefined = self._builder, ir.Constant(_VECTOR, ir.Undefined)
        value = builder.load(self._at(row, column), typ=F32)
        value.align = 4
        one = builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, undefined, splat(ir.VectorType(I32, LANES), 0))


def _columns(builder, start, width):
    """Return the `width` column numbers, a vector apart, from `start` on."""
    return [builder.add(start, ir.Constant(I64, LANES * i)) for i in range(width)]


def _add_products(builder, factors, rows, matrix, count, columns, sums):
    """Emit sums[r][c] += factors[r, k] * matrix[k, column c] for k = 0 .. count - 1."""

    def step(k, accumulators):
        loaded = [matrix.load(k, column) for column in columns]
        result = []
        for row, values in zip(rows, accumulators, strict=True):
            factor = factors.broadcast(row, k)
            result.append([fma(builder, factor, x, y) for x, y in zip(loaded, values, strict=True)])
        return result

    return emit_loop(builder, ir.Constant(I64, 0), count, 1, sums, step)


@intrinsic(prefer_literal=True)
def score_rows(typing_context, rows, first, q, k, scores):
    """scores[first + r] = q[first + r] k for r < rows, a literal; q [., Hd], k [Hd, PAGE]."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    numbers = [ir.Constant(I64, r) for r in range(rows.literal_value)]

    def codegen(context, builder, sig, args):
        _, at, *arrays = args
        queries = _Floats(context, builder, sig.args[2], arrays[0], at)
        keys = _Floats(context, builder, sig.args[3], arrays[1])
        result = _Floats(context, builder, sig.args[4], arrays[2], at)
        for start in range(0, PAGE, LANES * _WIDTH):
            columns = _columns(builder, ir.Constant(I64, start), _WIDTH)
            zeros = [[splat(_VECTOR, 0.0)] * _WIDTH for _ in numbers]
            sums = _add_products(builder, queries, numbers, keys, keys.shape[0], columns, zeros)
            for row, values in zip(numbers, sums, strict=True):
                for column, value in zip(columns, values, strict=True):
                    result.store(value, row, column)
        return context.get_dummy_value()

    return types.void(rows, types.intp, q, k, scores), codegen


@intrinsic(prefer_literal=True)
def add_values(typing_context, rows, first, count, weights, v, shrink, total):
    """total[first + r] = total[first + r] shrink[first + r] + weights[first + r, :count] v[:count].

    For r < rows, a literal; weights [., PAGE], v [PAGE, Hd'], shrink [., 1], total [., Hd'].
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    numbers = [ir.Constant(I64, r) for r in range(rows.literal_value)]

    def codegen(context, builder, sig, args):
        _, at, positions, *arrays = args
        factors = _Floats(context, builder, sig.args[3], arrays[0], at)
        values = _Floats(context, builder, sig.args[4], arrays[1])
        scales = _Floats(context, builder, sig.args[5], arrays[2], at)
        totals = _Floats(context, builder, sig.args[6], arrays[3], at)
        zero = ir.Constant(I64, 0)

        def piece(width):
            def emit(start, _):
                columns = _columns(builder, start, width)
                sums = []
                for row in numbers:
                    scale = scales.broadcast(row, zero)
                    sums.append([builder.fmul(totals.load(row, c), scale) for c in columns])
                sums = _add_products(builder, factors, numbers, values, positions, columns, sums)
                for row, vectors in zip(numbers, sums, strict=True):
                    for column, value in zip(columns, vectors, strict=True):
                        totals.store(value, row, column)
                return []

            return emit

        padded = values.shape[1]
        whole = builder.and_(padded, ir.Constant(I64, -LANES * _WIDTH))
        emit_loop(builder, zero, whole, LANES * _WIDTH, [], piece(_WIDTH))
        if _WIDTH > 1:
            emit_loop(builder, whole, padded, LANES, [], piece(1))
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, weights, v, shrink, total), codegen


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
