"""Rows of queries times a page of keys, and of weights times a page of values.

Several rows share what is loaded. Each element is summed alone, over d or over p in order, so that
a row's bits don't depend on its company.
"""

from __future__ import annotations

import math
from functools import cache

import llvmlite.ir as ir

from tpimpi.kernels.arithmetic import emit_exp
from tpimpi.kernels.emit import (
    F32,
    HAS_AVX512,
    I32,
    I64,
    LANES,
    VECTOR,
    Outlined,
    broadcast,
    emit_loop,
    emit_prefetch,
    fma,
    pointer,
    reduced,
    splat,
)  # fmt: skip
from tpimpi.kernels.functions import call_function, function_address
from tpimpi.kernels.variants import inner

PAGE = 64  # positions in a page
_WIDTH = 4 if HAS_AVX512 else 1  # vectors a row, so that 6 rows of sums stay in registers
TOGETHER = (1, 2, 3, 4, 6)  # numbers of rows that share what is loaded


class _Floats:
    """Rows of float32 from an address on, `width` apart."""

    def __init__(self, builder, base, width):
        self._builder, self._base = builder, base
        self._stride = builder.mul(width, ir.Constant(I64, 4))

    def _address(self, row, column):
        builder = self._builder
        offset = builder.add(
            builder.mul(row, self._stride), builder.mul(column, ir.Constant(I64, 4))
        )
        return builder.add(self._base, offset)

    def _at(self, row, column):
        return pointer(self._builder, self._address(row, column))

    def load(self, row, column):
        value = self._builder.load(self._at(row, column), typ=VECTOR)
        value.align = 4
        return value

    def prefetch(self, row, column):
        """Ask for a vector's lines, into the second cache: a whole page would fill the first."""
        emit_prefetch(self._builder, self._at(row, column), 2)

    def store(self, vector, row, column):
        self._builder.store(vector, self._at(row, column)).align = 4

    def broadcast(self, row, column):
        """Load one element into all lanes."""
        return broadcast(self._builder, self._address(row, column))


def _columns(builder, start, width):
    """Return the `width` column numbers, a vector apart, from `start` on."""
    return [builder.add(start, ir.Constant(I64, LANES * i)) for i in range(width)]


def _add_products(builder, factors, rows, matrix, ahead, bounds, columns, sums):
    """Emit sums[r][c] += factors[r, k] * matrix[k, column c] for k within the bounds.

    Meanwhile the same places of the matrix `ahead` are fetched: a page is too short and too
    scattered for the hardware to see it coming.
    """

    def step(k, accumulators):
        for column in columns:
            ahead.prefetch(k, column)
        loaded = [matrix.load(k, column) for column in columns]
        result = []
        for row, values in zip(rows, accumulators, strict=True):
            factor = factors.broadcast(row, k)
            result.append([fma(builder, factor, x, y) for x, y in zip(loaded, values, strict=True)])
        return result

    return emit_loop(builder, *bounds, 1, sums, step)


def _emit_scores(rows: int):
    def emit(builder, q, keys, ahead, scores, head_dim):
        page, zero = ir.Constant(I64, PAGE), ir.Constant(I64, 0)
        numbers = [ir.Constant(I64, r) for r in range(rows)]
        queries, result = _Floats(builder, q, head_dim), _Floats(builder, scores, page)
        matrix, following = _Floats(builder, keys, page), _Floats(builder, ahead, page)

        def piece(start, _):
            columns = _columns(builder, start, _WIDTH)
            sums = [[splat(VECTOR, 0.0)] * _WIDTH for _ in numbers]
            bounds = zero, head_dim
            sums = _add_products(
                builder, queries, numbers, matrix, following, bounds, columns, sums
            )  # fmt: skip
            for row, values in zip(numbers, sums, strict=True):
                for column, value in zip(columns, values, strict=True):
                    result.store(value, row, column)
            return []

        emit_loop(builder, zero, page, LANES * _WIDTH, [], piece)

    return emit


def _emit_values(rows: int):
    def emit(builder, weights, values, ahead, total, padded, shrink, start, stop):
        page, zero = ir.Constant(I64, PAGE), ir.Constant(I64, 0)
        numbers = [ir.Constant(I64, r) for r in range(rows)]
        factors, scales = _Floats(builder, weights, page), _Floats(builder, shrink, numbers[0])
        matrix, following = _Floats(builder, values, padded), _Floats(builder, ahead, padded)
        totals = _Floats(builder, total, padded)

        def piece(width):
            def emit_piece(column, _):
                columns = _columns(builder, column, width)
                sums = []
                for row in numbers:
                    scale = scales.broadcast(zero, row)
                    sums.append([builder.fmul(totals.load(row, c), scale) for c in columns])
                sums = _add_products(
                    builder, factors, numbers, matrix, following, (start, stop), columns, sums
                )
                for row, vectors in zip(numbers, sums, strict=True):
                    for c, value in zip(columns, vectors, strict=True):
                        totals.store(value, row, c)
                return []

            return emit_piece

        whole = builder.and_(padded, ir.Constant(I64, -LANES * _WIDTH))
        emit_loop(builder, zero, whole, LANES * _WIDTH, [], piece(_WIDTH))
        if _WIDTH > 1:
            emit_loop(builder, whole, padded, LANES, [], piece(1))

    return emit


def _halved(builder, vectors, add):
    """Emit vectors reduced to one: the first half of them with the second, until one is left."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [add(a, b) for a, b in zip(vectors[:half], vectors[half:], strict=True)]
    return vectors[0]


def _emit_weights(builder, scores, low, count, figures, apart):
    """Emit one step of the softmax taken online for a row: PAGE scores become weights.

    Positions before `low` and from `count` on are not seen. Arguments: where scores lie, these
    two, where the row's highest score so far lies; `apart` bytes behind it its sum of weights, and
    behind that what this page leaves of both. The sums go by halving: one order for all.
    """
    row = _Floats(builder, scores, ir.Constant(I64, 0))
    zero, numbers = ir.Constant(I64, 0), ir.VectorType(I64, LANES)

    def larger(a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    def everywhere(value, kind):
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, one, splat(ir.VectorType(I32, LANES), 0))

    def figure(index):
        return pointer(builder, builder.add(figures, builder.mul(apart, ir.Constant(I64, index))))

    first, last = everywhere(low, numbers), everywhere(count, numbers)
    columns = [ir.Constant(I64, column) for column in range(0, PAGE, LANES)]
    seen = []
    for column in columns:
        places = ir.Constant(numbers, [column.constant + lane for lane in range(LANES)])
        within = builder.and_(
            builder.icmp_signed(">=", places, first), builder.icmp_signed("<", places, last)
        )
        seen.append(builder.select(within, row.load(zero, column), splat(VECTOR, -math.inf)))
    before = builder.load(figure(0), typ=F32)
    best = larger(before, reduced(builder, _halved(builder, seen, larger), larger))
    at_best = everywhere(best, VECTOR)
    weights = [emit_exp(builder, builder.fsub(scores, at_best)) for scores in seen]
    for column, weight in zip(columns, weights, strict=True):
        row.store(weight, zero, column)
    added = reduced(builder, _halved(builder, weights, builder.fadd), builder.fadd)
    left = emit_exp(builder, builder.fsub(before, best))
    total = fma(builder, builder.load(figure(1), typ=F32), left, added)
    for index, value in enumerate((best, total, left)):
        builder.store(value, figure(index)).align = 4


_SCORES, _VALUES, _WEIGHTS = 0, 8, 16  # added to a number of rows: what `tile` is to do


def tile() -> int:
    """Return the address of the code for all numbers of rows together."""
    return function_address("attention_tiles", _tiles())


@cache
def _tiles() -> dict[int, Outlined]:
    scores = {_SCORES + r: Outlined(f"scores_{r}", 5, _emit_scores(r)) for r in TOGETHER}
    values = {_VALUES + r: Outlined(f"values_{r}", 8, _emit_values(r)) for r in TOGETHER}
    return scores | values | {_WEIGHTS: Outlined("weights", 5, _emit_weights)}


@inner
def _part(pages, page, head):
    """Return where one head's part of a page begins."""
    return pages.ctypes.data + page * pages.strides[0] + head * pages.strides[1]


@inner
def score_rows(tile, rows, work, keys, page, ahead, head, q, scores):
    """scores[r] = q[r] k for r < rows, one of TOGETHER; k is keys[page, head] [Hd, PAGE].

    q, scores: where rows [., Hd] and [., PAGE] begin in `work`; `ahead`: the page to fetch.
    """
    here = work.ctypes.data
    call_function(
        tile, _SCORES + rows, here + 4 * q, _part(keys, page, head), _part(keys, ahead, head),
        here + 4 * scores, keys.shape[2], 0, 0, 0, 0, 0,
    )  # fmt: skip


@inner
def weigh(tile, work, scores, low, count, figures, apart):
    """Turn a row's PAGE scores into weights, see `_emit_weights`; places are those in `work`."""
    here = work.ctypes.data
    call_function(
        tile, _WEIGHTS, here + 4 * scores, low, count, here + 4 * figures, 4 * apart, 0, 0, 0, 0, 0
    )


@inner
def add_values(
    tile, rows, work, values, page, ahead, head, weights, total, shrink, start, stop
):  # fmt: skip
    """total[r] = total[r] shrink[r] + the sum of weights[r, p] v[p], start <= p < stop, in order.

    For r < rows, one of TOGETHER; v is values[page, head] [PAGE, Hd']. weights [., PAGE],
    total [., Hd'], shrink [.]: where they begin in `work`; `ahead`: the page to fetch.
    """
    here = work.ctypes.data
    call_function(
        tile, _VALUES + rows, here + 4 * weights, _part(values, page, head),
        _part(values, ahead, head), here + 4 * total, values.shape[3], here + 4 * shrink, start,
        stop, 0, 0,
    )  # fmt: skip
