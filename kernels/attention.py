"""Attention over KV pages: the pairs of token and head are cut among threads by their cost.

Every pair walks its pages in order and by itself, see `softmax`, so its bits don't depend on the
batch. A few pairs with long texts are cut by spans of pages instead, as in Dao et al. 2023
(https://pytorch.org/blog/flash-decoding), so that a page is read once and no thread idles.
"""

from __future__ import annotations

import numpy as np
from numba import prange, types

from tpimpi.kernels.arithmetic import bits_of, from_bits
from tpimpi.kernels.scratch import scratch
from tpimpi.kernels.softmax import (
    ROWS,
    SPAN,
    add_span,
    first_seen,
    keep_span,
    last_positions,
    places,
    walk_span,
    work_floats,
)  # fmt: skip
from tpimpi.kernels.tiles import PAGE, tile
from tpimpi.kernels.variants import Kernel, inner

EVERYTHING = 1 << 40  # a window beyond every context
_FEW = 4  # groups of pairs a thread below which spans are cut
_work_floats = inner(work_floats)


@inner
def _tokens_within(slots):
    """Return whether pairs are numbered by tokens within heads: neighbours share a sequence."""
    matching = 0
    for t in range(1, slots.shape[0]):
        matching += slots[t] == slots[t - 1]
    return 2 * matching >= slots.shape[0] - 1 and slots.shape[0] > 1


@inner
def _numbered(pair, tokens, heads, within):
    """Return token and head of a pair; neighbours mostly share a sequence and a KV head."""
    return (pair % tokens, pair // tokens) if within else (pair // heads, pair % heads)


@inner
def _boundary(part, threads, positions, heads, within, window):
    """Return the pair at which this thread's part begins: each gets as many positions to see."""
    tokens, total = positions.shape[0], 0
    for t in range(tokens):
        total += min(positions[t], window) + PAGE
    target = total * heads * part // threads
    if within:
        head, left = target // total, target % total
        for t in range(tokens):
            left -= min(positions[t], window) + PAGE
            if left < 0:
                return head * tokens + t
        return head * tokens
    for t in range(tokens):
        cost = min(positions[t], window) + PAGE
        if target < cost * heads:
            return t * heads + target // cost
        target -= cost * heads
    return tokens * heads


@inner
def _group(q, positions, slots, kv_index, scale, window, first, last, within, padded, work):
    """Gather the pairs from `first` on that share a sequence and a KV head.

    Returns their number, sequence, KV head and the first and last page that any of them sees.
    """
    tokens, heads, head_dim = q.shape
    lasts = last_positions(head_dim, padded)
    t, h = _numbered(first, tokens, heads, within)
    slot, kv, rows, least, most = slots[t], kv_index[h], 0, positions[t], 0
    while rows < ROWS and first + rows < last:
        t, h = _numbered(first + rows, tokens, heads, within)
        if slots[t] != slot or kv_index[h] != kv:
            break
        for d in range(head_dim):
            work[rows * head_dim + d] = q[t, h, d] * scale
        work[lasts + rows] = from_bits(positions[t])
        least, most = min(least, positions[t]), max(most, positions[t])
        rows += 1
    return rows, slot, kv, first_seen(least, window) // PAGE, most // PAGE


@inner
def _store(found, out):
    """Write what a pair has found [Hd' + 2] as its output [Hd]."""
    inverse = np.float32(1.0) / found[found.shape[0] - 1]
    for d in range(out.shape[0]):
        out[d] = found[d] * inverse


@inner
def _some(
    tile, q, keys, values, table, positions, slots, out, kv_index, scale, window, first, last, work
):  # fmt: skip
    """Attend for the pairs first .. last - 1."""
    tokens, heads, head_dim = q.shape
    within, padded = _tokens_within(slots), values.shape[3]
    lasts = last_positions(head_dim, padded)
    _, totals, at, best = places(head_dim, padded)
    found = work[at:best].reshape(ROWS, padded + 2)
    pair = first
    while pair < last:
        rows, slot, kv, start, final = _group(
            q, positions, slots, kv_index, scale, window, pair, last, within, padded, work
        )  # fmt: skip
        for span in range(start // SPAN, final // SPAN + 1):
            walk_span(tile, rows, keys, values, kv, table[slot], span, start, final, window, work)
            for r in range(rows):
                position = bits_of(work[lasts + r])
                begin = first_seen(position, window) // (SPAN * PAGE)
                if begin <= span and position >= span * SPAN * PAGE:
                    if span == begin:
                        keep_span(found[r], r, head_dim, padded, work)
                    else:
                        total = work[totals + r * padded : totals + (r + 1) * padded]
                        add_span(found[r], total, work[best + r], work[best + ROWS + r])
        for r in range(rows):
            t, h = _numbered(pair + r, tokens, heads, within)
            _store(found[r], out[t, h])
        pair += rows


@inner
def _some_spans(
    tile, q, keys, values, table, positions, slots, kv_index, scale, window, first, last, found,
    work,
):  # fmt: skip
    """Walk the spans whose first page is one of first .. last - 1; found [pairs, spans, Hd' + 2].

    The pages are numbered group by group.
    """
    tokens, heads, head_dim = q.shape
    pairs, within, padded = tokens * heads, _tokens_within(slots), values.shape[3]
    pair, at = 0, 0
    while pair < pairs:
        rows, slot, kv, start, final = _group(
            q, positions, slots, kv_index, scale, window, pair, pairs, within, padded, work
        )  # fmt: skip
        for span in range(start // SPAN, final // SPAN + 1):
            if first <= at + max(span * SPAN, start) - start < last:
                walk_span(
                    tile, rows, keys, values, kv, table[slot], span, start, final, window, work
                )
                for r in range(rows):
                    keep_span(found[pair + r, span], r, head_dim, padded, work)
        at += final - start + 1
        pair += rows


@inner
def _count(q, positions, slots, kv_index, scale, window, padded, work):
    """Return how many spans and pages the groups of all pairs have to walk."""
    pairs, within = q.shape[0] * q.shape[1], _tokens_within(slots)
    pair = spans = pages = 0
    while pair < pairs:
        rows, _, _, start, final = _group(
            q, positions, slots, kv_index, scale, window, pair, pairs, within, padded, work
        )  # fmt: skip
        pair += rows
        spans += final // SPAN - start // SPAN + 1
        pages += final - start + 1
    return spans, pages


def _serial(tile, q, keys, values, table, positions, slots, out, kv_index, scale, window, memory):
    pairs = q.shape[0] * q.shape[1]
    _some(
        tile,
        q,
        keys,
        values,
        table,
        positions,
        slots,
        out,
        kv_index,
        scale,
        window,
        0,
        pairs,
        memory,
    )


def _parallel(
    tile, q, keys, values, table, positions, slots, out, kv_index, scale, window, memory, threads
):  # fmt: skip
    tokens, heads, head_dim = q.shape
    padded, within = values.shape[3], _tokens_within(slots)
    floats, row = _work_floats(head_dim, padded), padded + 2
    spans, pages = 0, 0
    if tokens * keys.shape[1] < _FEW * threads:
        spans, pages = _count(q, positions, slots, kv_index, scale, window, padded, memory)
    if spans < 2 * threads:
        for part in prange(threads):
            work = memory[part * floats : (part + 1) * floats]
            first = _boundary(part, threads, positions, heads, within, window)
            last = _boundary(part + 1, threads, positions, heads, within, window)
            _some(
                tile, q, keys, values, table, positions, slots, out, kv_index, scale, window, first,
                last, work,
            )  # fmt: skip
        return
    most = (table.shape[1] + SPAN - 1) // SPAN
    found = memory[threads * floats : threads * floats + tokens * heads * most * row]
    found = found.reshape(tokens * heads, most, row)
    for part in prange(threads):
        work = memory[part * floats : (part + 1) * floats]
        first, last = pages * part // threads, pages * (part + 1) // threads
        _some_spans(
            tile, q, keys, values, table, positions, slots, kv_index, scale, window, first, last,
            found, work,
        )  # fmt: skip
    for pair in range(tokens * heads):
        t, h = _numbered(pair, tokens, heads, within)
        begin = first_seen(positions[t], window) // (SPAN * PAGE)
        for span in range(begin + 1, positions[t] // (SPAN * PAGE) + 1):
            other = found[pair, span]
            add_span(found[pair, begin], other[:padded], other[padded], other[padded + 1])
        _store(found[pair, begin], out[t, h])


_F1, _F3, _F4 = (types.Array(types.float32, n, "C") for n in (1, 3, 4))
_I1, _I2 = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
_KERNEL = Kernel(
    "attention", _serial, _parallel,
    types.intp, _F3, _F4, _F4, _I2, _I1, _I1, _F3, _I1, types.float32, types.intp, _F1,
)  # fmt: skip


def scratch_floats(
    tokens: int, heads: int, kv_heads: int, head_dim: int, context: int, threads: int
) -> int:
    """Return how many floats of scratch T tokens' attention works in, with texts up to `context`.

    A rank with H_loc query and K_loc KV heads needs as much as its largest or its smallest batch:
    one token's spans can take more than the rest.
    """
    padded = -(-head_dim // 16) * 16
    floats = threads * work_floats(head_dim, padded)
    if threads > 1 and tokens * kv_heads < _FEW * threads:
        floats += tokens * heads * -(-context // (SPAN * PAGE)) * (padded + 2)
    return floats


def attention(
    q, keys, values, table, positions, slots, out, kv_index, scale, threads, window=EVERYTHING
) -> None:  # fmt: skip
    """Write softmax(q k^T scale) v of every token into out [T, H, Hd].

    q float32 [T, H, Hd]; keys [pages, K, Hd, PAGE]; values [pages, K, PAGE, Hd'] with Hd' >= Hd a
    multiple of 16; table int32 [slots, pages of a slot]; positions, slots int32 [T]; kv_index int32
    [H]. Token t sees the last `window` of the positions 0 .. positions[t] of its slot; pages before
    them may be gone.
    """
    tokens, heads, head_dim = q.shape
    context = PAGE * table.shape[1]
    memory = scratch(
        scratch_floats(tokens, heads, keys.shape[1], head_dim, context, threads)
    )  # fmt: skip
    if threads > 1:
        _KERNEL.parallel(
            tile(), q, keys, values, table, positions, slots, out, kv_index, scale, window, memory,
            threads,
        )  # fmt: skip
    else:
        _KERNEL.serial(
            tile(), q, keys, values, table, positions, slots, out, kv_index, scale, window, memory
        )
