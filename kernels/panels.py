"""Register tiles over packed panels: for many tokens, where arithmetic and not memory is the limit.

A panel holds a few rows of one matrix over BLOCK columns, widened to float32 and laid out in the
order in which a tile reads it. The 16 lanes of an output element don't meet before the end, so a
tile takes them a register's width at a time: lanes 0 .. WIDTH - 1 over the whole block, then the
next ones. That fits more elements into the registers than 16 lanes of each would, and gives the
same bits as `vector.dot_block`. Sums wait in memory between blocks.
"""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tpimpi.kernels.vector import (
    F32,
    HAS_AVX,
    HAS_AVX512,
    I32,
    I64,
    IS_ARM,
    LANES,
    WIDEN,
    emit_loop,
    emit_prefetch,
    fma,
    four_lanes,
    transposed_sums,
)  # fmt: skip

WIDTH = 16 if HAS_AVX512 else 8 if HAS_AVX else 4  # lanes of one register
ROWS, TOKENS = (4, 6) if HAS_AVX512 or IS_ARM else (3, 4)  # sums that the registers hold
BLOCK = 1024  # columns of a panel: the two that a tile reads fit the first cache
TILE = ROWS * TOKENS * LANES  # floats of the sums of one tile
_PARTS = LANES // WIDTH
_UNROLL = 4
_VECTOR = ir.VectorType(F32, WIDTH)


def _int(value: int):
    return ir.Constant(I64, value)


class _Memory:
    """Loads and stores from one element of an array on; offsets are in elements."""

    def __init__(self, context, builder, kind, value, at):
        array = context.make_array(kind)(context, builder, value)
        self._builder, self._size = builder, kind.dtype.bitwidth // 8
        base = builder.ptrtoint(array.data, I64)
        self._base = builder.add(base, builder.mul(at, _int(self._size)))

    def _at(self, offset, constant: int):
        # The constant comes last, where an instruction has a place for it.
        builder = self._builder
        at = builder.add(self._base, builder.mul(offset, _int(self._size)))
        return builder.inttoptr(builder.add(at, _int(self._size * constant)), ir.PointerType())

    def load(self, offset, constant: int, kind=_VECTOR):
        value = self._builder.load(self._at(offset, constant), typ=kind)
        value.align = self._size
        return value

    def prefetch(self, offset, count: int):
        for line in range(0, count, 64 // self._size):
            emit_prefetch(self._builder, self._at(offset, line), 2)

    def store(self, value, offset, constant: int):
        self._builder.store(value, self._at(offset, constant)).align = self._size


def _rows_of(context, builder, kind, value, first, count, column, last=None):
    """Return rows of a C-contiguous 2-d array from `column` on; those beyond `last` repeat it."""
    columns = cgutils.unpack_tuple(builder, context.make_array(kind)(context, builder, value).shape)
    memories = []
    for i in range(count):
        row = builder.add(first, _int(i))
        if last is not None:
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
        at = builder.add(builder.mul(row, columns[1]), column)
        memories.append(_Memory(context, builder, kind, value, at))
    return memories


@intrinsic(prefer_literal=True)
def add_tile(typing_context, streams, work, w_at, at, inputs, x_at, steps, raw, row, column):
    """Add a panel of ROWS rows times one of TOKENS tokens, 16 * steps columns, to a tile of sums.

    The panels begin at work[w_at] and inputs[x_at], the tile at work[at]; all float32. Meanwhile a
    block of raw[row : row + streams, column :] is fetched for a later panel; streams is a literal.
    """
    if not isinstance(streams, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        _, array, w_offset, offset, x, x_offset, steps_value, ahead, first, start = args
        left = _Memory(context, builder, sig.args[1], array, w_offset)
        tile = _Memory(context, builder, sig.args[1], array, offset)
        right = _Memory(context, builder, sig.args[4], x, x_offset)
        count = streams.literal_value
        coming = _rows_of(context, builder, sig.args[7], ahead, first, count, start)
        zero, unrolled = _int(0), builder.and_(steps_value, _int(-_UNROLL))

        def steps_of(part, count):
            before = builder.mul(steps_value, _int(part))

            def emit(first, accumulators):
                if count == _UNROLL:  # the loops of all parts together fetch a block
                    passed = builder.mul(first, _int(LANES // _PARTS))
                    passed = builder.add(passed, _int(part * BLOCK // _PARTS))
                    for memory in coming:
                        memory.prefetch(passed, LANES * _UNROLL // _PARTS)
                first = builder.add(before, first)
                w_k = builder.mul(first, _int(ROWS * WIDTH))
                x_k = builder.mul(first, _int(TOKENS * WIDTH))
                for k in range(count):
                    rows = [left.load(w_k, (k * ROWS + r) * WIDTH) for r in range(ROWS)]
                    columns = []
                    for t in range(TOKENS):
                        x = right.load(x_k, (k * TOKENS + t) * WIDTH)
                        columns.append(
                            [fma(builder, rows[r], x, accumulators[t][r]) for r in range(ROWS)]
                        )
                    accumulators = columns
                return accumulators

            return emit

        for part in range(_PARTS):
            places = [[_place(r, t, part) for r in range(ROWS)] for t in range(TOKENS)]
            values = [[tile.load(zero, place) for place in row] for row in places]
            values = emit_loop(builder, zero, unrolled, _UNROLL, values, steps_of(part, _UNROLL))
            values = emit_loop(builder, unrolled, steps_value, 1, values, steps_of(part, 1))
            for row, row_places in zip(values, places, strict=True):
                for value, place in zip(row, row_places, strict=True):
                    tile.store(value, zero, place)
        return context.get_dummy_value()

    i = types.intp
    return types.void(streams, work, i, i, inputs, i, i, raw, i, i), codegen


def _place(row: int, token: int, part: int) -> int:
    """Return where an element's lanes lie in a tile."""
    return ((part * TOKENS + token) * ROWS + row) * WIDTH


@intrinsic(prefer_literal=True)
def _pack_whole(typing_context, count, source, first, last, column, whole, panel, at, steps):
    if not isinstance(count, types.IntegerLiteral):
        return None
    element, itemsize, widen = WIDEN[source.dtype]
    rows = range(count.literal_value)

    def codegen(context, builder, sig, args):
        _, array, first_row, last_row, start, whole_steps, out, out_at, panel_steps = args
        sources = _rows_of(
            context, builder, sig.args[1], array, first_row, len(rows), start, last_row
        )
        target = _Memory(context, builder, sig.args[6], out, out_at)

        def step(k, _):
            for part in range(_PARTS):
                place = builder.add(k, builder.mul(panel_steps, _int(part)))
                place = builder.mul(place, _int(len(rows) * WIDTH))
                column = builder.mul(k, _int(LANES))
                for r in rows:
                    raw = sources[r].load(column, part * WIDTH, ir.VectorType(element, WIDTH))
                    target.store(widen(builder, raw), place, r * WIDTH)
            return []

        emit_loop(builder, _int(0), whole_steps, 1, [], step)
        return context.get_dummy_value()

    index = types.intp
    signature = types.void(count, source, index, index, index, index, panel, index, index)
    return signature, codegen


@intrinsic
def _widen_element(typing_context, raw):
    widen = WIDEN[raw][2]

    def codegen(context, builder, sig, args):
        return widen(builder, args[0])

    return types.float32(raw), codegen


@njit(nogil=True)
def pack_rows(w, first, last, column, panel, at):
    """Pack BLOCK columns from `column` on of rows first .. first + ROWS - 1; return the steps.

    Rows beyond `last` repeat it. Columns beyond the end are 0 here and -0 in the other panel, as
    their product -0 changes no sum, not even one of -0.
    """
    whole, steps = _steps(w.shape[1] - column)
    _pack_whole(ROWS, w, first, last, column, whole, panel, at, steps)
    if steps > whole:
        _pack_tail(ROWS, w, first, last, column, panel, at, steps, np.float32(0.0))
    return steps


@njit(nogil=True)
def pack_tokens(x, first, last, column, panel, at):
    """Pack BLOCK columns of tokens first .. first + TOKENS - 1, in the way of `pack_rows`."""
    whole, steps = _steps(x.shape[1] - column)
    _pack_whole(TOKENS, x, first, last, column, whole, panel, at, steps)
    if steps > whole:
        _pack_tail(TOKENS, x, first, last, column, panel, at, steps, np.float32(-0.0))


@njit(nogil=True)
def _steps(columns):
    """Return how many steps of LANES columns are whole, and how many there are, in a block."""
    columns = min(columns, BLOCK)
    return columns // LANES, (columns + LANES - 1) // LANES


@njit(nogil=True)
def _pack_tail(count, source, first, last, column, panel, at, steps, padding):
    start = column + (steps - 1) * LANES
    for r in range(count):
        row = min(first + r, last)
        for lane in range(LANES):
            value = padding
            if start + lane < source.shape[1]:
                value = _widen_element(source[row, start + lane])
            step = steps * (lane // WIDTH) + steps - 1
            panel[at + (step * count + r) * WIDTH + lane % WIDTH] = value


@intrinsic
def store_tile(typing_context, sums, at, out, token, last_token, row, last_row):
    """Sum the lanes of a tile's elements by the fixed tree into out[token ..., row ...].

    Elements beyond `last_token` and `last_row` repeat these.
    """

    def codegen(context, builder, sig, args):
        s, s_at, array, t, t_last, n, n_last = args
        tile = _Memory(context, builder, sig.args[0], s, s_at)
        out_array = context.make_array(sig.args[2])(context, builder, array)
        base = builder.ptrtoint(out_array.data, I64)
        strides = cgutils.unpack_tuple(builder, out_array.strides, 2)

        def offsets(first, last, count, stride):
            for i in range(count):
                index = builder.add(first, _int(i))
                index = builder.select(builder.icmp_signed("<", index, last), index, last)
                yield builder.mul(index, stride)

        rows = list(offsets(n, n_last, ROWS, strides[1]))
        addresses, elements = [], []
        for j, offset in enumerate(offsets(t, t_last, TOKENS, strides[0])):
            for i in range(ROWS):
                addresses.append(builder.add(base, builder.add(offset, rows[i])))
                parts = [tile.load(_int(0), _place(i, j, part)) for part in range(_PARTS)]
                elements.append(four_lanes(builder, parts))
        for i in range(0, len(elements), 4):
            totals = transposed_sums(builder, elements[i : i + 4])
            for lane, address in enumerate(addresses[i : i + 4]):
                total = builder.extract_element(totals, ir.Constant(I32, lane))
                builder.store(total, builder.inttoptr(address, ir.PointerType())).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(sums, index, out, index, index, index, index), codegen
