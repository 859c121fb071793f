"""Register tiles over packed panels: for many tokens, where arithmetic and not memory is the limit.

An output element is the sum of 16 lanes, and lane l sums over k = l, l + 16, ..., see `vector`. So
a product is 16 smaller ones, each over every 16th column, and a tile is an outer product: a vector
of rows times each token, k by k. A panel holds all that a tile reads of one lane side by side, and
the lanes come in an order in which the fixed tree needs only a few sums kept beside the tile.
"""

from __future__ import annotations

import llvmlite.ir as ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tpimpi.kernels.emit import (
    F32,
    HAS_AVX,
    HAS_AVX512,
    I32,
    I64,
    IS_ARM,
    emit_loop,
    emit_prefetch,
    fma,
    splat,
)  # fmt: skip
from tpimpi.kernels.vector import LANES
from tpimpi.kernels.widening import WIDEN, widen_element

_WIDTH = 16 if HAS_AVX512 else 8 if HAS_AVX else 4  # lanes of one register
_VECTORS = 4 if IS_ARM else 2
ROWS = _VECTORS * _WIDTH  # of a panel of weights
UNIT = 4 if HAS_AVX512 else 2
FEWER, TOKENS = 2 * UNIT, 3 * UNIT  # of a panel of tokens: so many sums the registers hold
TILE = ROWS * TOKENS  # floats of a tile
# In bit-reversed order the fixed tree is a binary counter: each lane is added to as many tiles that
# wait for their partner as its place in the order ends with ones.
ORDER = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)
MERGES = (0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0, 4)
LEVELS = 5  # tiles that wait at most, and the result
UNROLL = 4  # columns of a lane between two lines that are fetched
LINE = 64  # bytes
_VECTOR = ir.VectorType(F32, _WIDTH)


def _int(value: int):
    return ir.Constant(I64, value)


class _Memory:
    """Loads and stores from one element of an array on; offsets are in elements."""

    def __init__(self, context, builder, kind, value, at):
        array = context.make_array(kind)(context, builder, value)
        self._builder, self._size = builder, kind.dtype.bitwidth // 8
        base = builder.ptrtoint(array.data, I64)
        self._base = builder.add(base, builder.mul(at, _int(self._size)))

    def at(self, offset, constant: int):
        # The constant comes last, where an instruction has a place for it.
        builder = self._builder
        at = builder.add(self._base, builder.mul(offset, _int(self._size)))
        return builder.inttoptr(builder.add(at, _int(self._size * constant)), ir.PointerType())

    def load(self, offset, constant: int, kind=_VECTOR):
        value = self._builder.load(self.at(offset, constant), typ=kind)
        value.align = self._size
        return value

    def broadcast(self, offset, constant: int):
        one = self.load(offset, constant, F32)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        vector = self._builder.insert_element(undefined, one, ir.Constant(I32, 0))
        first = splat(ir.VectorType(I32, _WIDTH), 0)
        return self._builder.shuffle_vector(vector, undefined, first)

    def store(self, value, offset, constant: int):
        self._builder.store(value, self.at(offset, constant)).align = self._size


@intrinsic(prefer_literal=True)
def add_lane(typing_context, count, work, w_at, at, merges, inputs, x_at, steps, raw, ahead, step):
    """Multiply a lane's panel of ROWS rows with one of `count` tokens, `steps` columns of it.

    The panels begin at work[w_at], inputs[x_at], all float32; count is a literal. The product gets
    added to the `merges` tiles from work[at] on and is written behind them. Meanwhile bytes of
    `raw` from `ahead` on are fetched for a later panel, `step` of them every UNROLL columns.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    tokens = range(count.literal_value)

    def codegen(context, builder, sig, args):
        _, array, w_offset, offset, merges_value, x, x_offset, steps_value, later, first, line = (
            args
        )
        left = _Memory(context, builder, sig.args[1], array, w_offset)
        tile = _Memory(context, builder, sig.args[1], array, offset)
        right = _Memory(context, builder, sig.args[5], x, x_offset)
        coming = context.make_array(sig.args[8])(context, builder, later).data
        coming = builder.add(builder.ptrtoint(coming, I64), first)
        zero, unrolled = _int(0), builder.and_(steps_value, _int(-UNROLL))

        def steps_of(count):
            def emit(first, sums):
                if count == UNROLL:
                    passed = builder.mul(builder.lshr(first, _int(UNROLL.bit_length() - 1)), line)
                    fetched = builder.inttoptr(builder.add(coming, passed), ir.PointerType())
                    emit_prefetch(builder, fetched, 2)
                w_k = builder.mul(first, _int(ROWS))
                x_k = builder.mul(first, _int(len(tokens)))
                for k in range(count):
                    w = [left.load(w_k, k * ROWS + v * _WIDTH) for v in range(_VECTORS)]
                    added = []
                    for t in tokens:
                        x = right.broadcast(x_k, k * len(tokens) + t)
                        added.append([fma(builder, w[v], x, sums[t][v]) for v in range(_VECTORS)])
                    sums = added
                return sums

            return emit

        def places():
            return [[t * ROWS + v * _WIDTH for v in range(_VECTORS)] for t in tokens]

        def merge(level, sums):
            before = builder.mul(level, _int(TILE))
            return [
                [builder.fadd(tile.load(before, p), s) for p, s in zip(*row, strict=True)]
                for row in zip(places(), sums, strict=True)
            ]

        sums = [[splat(_VECTOR, 0.0)] * _VECTORS for _ in tokens]
        sums = emit_loop(builder, zero, unrolled, UNROLL, sums, steps_of(UNROLL))
        sums = emit_loop(builder, unrolled, steps_value, 1, sums, steps_of(1))
        sums = emit_loop(builder, zero, merges_value, 1, sums, merge)
        behind = builder.mul(merges_value, _int(TILE))
        for row in zip(places(), sums, strict=True):
            for place, value in zip(*row, strict=True):
                tile.store(value, behind, place)
        return context.get_dummy_value()

    i = types.intp
    return types.void(count, work, i, i, i, inputs, i, i, raw, i, i), codegen


def _joined(builder, parts):
    """Emit one vector of several, of a power of two."""
    while len(parts) > 1:
        order = list(range(2 * parts[0].type.count))
        order = ir.Constant(ir.VectorType(I32, len(order)), order)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(a, b, order) for a, b in pairs]
    return parts[0]


def _transposed(builder, rows):
    """Emit the columns of blocks of n x n that lie side by side in n vectors.

    Each round interleaves the first half of the vectors with the second, block by block.
    """
    count, length = len(rows), rows[0].type.count
    half, starts = count // 2, range(0, length, count)
    low = [at + lane // 2 + lane % 2 * length for at in starts for lane in range(count)]
    high = [lane + half for lane in low]
    orders = [ir.Constant(ir.VectorType(I32, length), order) for order in (low, high)]
    for _ in range(count.bit_length() - 1):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [builder.shuffle_vector(a, b, order) for a, b in pairs for order in orders]
    return rows


@intrinsic
def _pack_whole(typing_context, w, first, last, steps, panel, at, lane):
    """Pack the first 16 * steps columns of ROWS rows; lanes are `lane` floats apart."""
    element, itemsize, widen = WIDEN[w.dtype]
    side = 16 // itemsize  # columns of a block: instructions shuffle within 16 bytes
    together = min(ROWS, 16)  # rows that are transposed at once, block beside block

    def codegen(context, builder, sig, args):
        array, first_row, last_row, whole, out, out_at, apart = args
        shape = context.make_array(sig.args[0])(context, builder, array).shape
        columns = cgutils.unpack_tuple(builder, shape)[1]
        rows = []
        for r in range(ROWS):
            row = builder.add(first_row, _int(r))
            row = builder.select(builder.icmp_signed("<", row, last_row), row, last_row)
            rows.append(_Memory(context, builder, sig.args[0], array, builder.mul(row, columns)))
        lanes = []
        for i in range(LANES):
            start = builder.add(out_at, builder.mul(apart, _int(i)))
            lanes.append(_Memory(context, builder, sig.args[4], out, start))

        def steps_of(count):
            def emit(k, _):
                column, place = builder.mul(k, _int(LANES)), builder.mul(k, _int(ROWS))
                for r in range(0, ROWS, together):
                    for c in range(0, count * LANES, side):
                        kind = ir.VectorType(element, side)
                        loaded = [row.load(column, c, kind) for row in rows[r : r + together]]
                        blocks = [_joined(builder, loaded[i::side]) for i in range(side)]
                        for i, values in enumerate(_transposed(builder, blocks), c):
                            at = i // LANES * ROWS + r
                            lanes[i % LANES].store(widen(builder, values), place, at)
                return []

            return emit

        pairs = builder.and_(whole, _int(-2))
        emit_loop(builder, _int(0), pairs, 2, [], steps_of(2))
        emit_loop(builder, pairs, whole, 1, [], steps_of(1))
        return context.get_dummy_value()

    i = types.intp
    return types.void(w, i, i, i, panel, i, i), codegen


@njit(nogil=True)
def pack_rows(w, first, last, panel, at, lane):
    """Pack rows first .. first + ROWS - 1 [., K] as [16, lane]: for each lane [K / 16, ROWS].

    Rows beyond `last` repeat it.
    """
    columns = w.shape[1]
    whole = columns // LANES
    _pack_whole(w, first, last, whole, panel, at, lane)
    for k in range(whole * LANES, columns):
        place = at + (k - whole * LANES) * lane + whole * ROWS
        for r in range(ROWS):
            panel[place + r] = widen_element(w[min(first + r, last), k])


@njit(nogil=True)
def pack_tokens(x, first, last, count, panel, at, lane):
    """Pack tokens first .. first + count - 1 [., K] as `pack_rows` does rows."""
    columns = x.shape[1]
    for start in range(0, columns, LANES):
        place = at + start // LANES * count
        for k in range(start, min(start + LANES, columns)):
            for t in range(count):
                panel[place + (k - start) * lane + t] = x[min(first + t, last), k]
