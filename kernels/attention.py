"""Attention over KV pages with the softmax taken online (Milakov 2018, arXiv:1805.02867).

Every token and head walks its pages in order and by itself, so its bits don't depend on the batch.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.activation import exp32
from tpimpi.kernels.tiles import PAGE, add_values, fma32, score_rows
from tpimpi.kernels.variants import MANY, Kernel

_MASKED = np.float32(-np.inf)
_ROWS = 32  # pairs of token and head that walk the pages together


@njit(nogil=True)
def _softmax(scores, count, best, scratch):
    """Turn PAGE scores into weights e^(score - max), 0 from `count` on; return max and sum.

    Both reductions go by halving: one order for all, and a shape that vectorizes.
    """
    for p in range(count, PAGE):
        scores[p] = _MASKED
    for i in range(32):
        scratch[i] = max(scores[i], scores[i + 32])
    for i in range(16):
        scratch[i] = max(scratch[i], scratch[i + 16])
    for i in range(16):
        best = max(best, scratch[i])
    for p in range(PAGE):
        scores[p] = exp32(scores[p] - best)
    for i in range(32):
        scratch[i] = scores[i] + scores[i + 32]
    for i in range(16):
        scratch[i] = scratch[i] + scratch[i + 16]
    for i in range(8):
        scratch[i] = scratch[i] + scratch[i + 8]
    for i in range(4):
        scratch[i] = scratch[i] + scratch[i + 4]
    return best, (scratch[0] + scratch[2]) + (scratch[1] + scratch[3])


@njit(nogil=True)
def _page(rows, first, count, k, v, work):
    """Attend with 1, 2 or 4 rows to the first `count` positions of a page."""
    q, scores, total, shrink, best, weight, scratch, _ = work
    if rows == 4:
        score_rows(4, first, q, k, scores)
    elif rows == 2:
        score_rows(2, first, q, k, scores)
    else:
        score_rows(1, first, q, k, scores)
    for r in range(first, first + rows):
        new, added = _softmax(scores[r], count, best[r], scratch)
        factor = exp32(best[r] - new)
        weight[r] = fma32(weight[r], factor, added)
        shrink[r, 0], best[r] = factor, new
    if rows == 4:
        add_values(4, first, count, scores, v, shrink, total)
    elif rows == 2:
        add_values(2, first, count, scores, v, shrink, total)
    else:
        add_values(1, first, count, scores, v, shrink, total)


@njit(nogil=True)
def _run(rows, keys, values, head, pages, work):
    """Attend with rows of one sequence and KV head, each to its own last position."""
    last = work[7]
    most = 0
    for r in range(rows):
        most = max(most, last[r])
    for page in range(most // PAGE + 1):
        k, v = keys[pages[page], head], values[pages[page], head]  # [Hd, PAGE], [PAGE, Hd']
        start, r = page * PAGE, 0
        while r < rows:
            count = min(last[r] - start + 1, PAGE)
            same = 1  # how many rows from r on see as much of this page
            while same < 4 and r + same < rows and min(last[r + same] - start + 1, PAGE) == count:
                same += 1
            together = 2 if same == 3 else same
            if count > 0:
                _page(together, r, count, k, v, work)
            r += together


@njit(nogil=True)
def _some(q, keys, values, table, positions, slots, out, kv_index, scale, first, last):
    """Attend for the pairs of token and head numbered first .. last.

    Pairs are numbered so that neighbours mostly share a sequence and a KV head.
    """
    tokens, heads, head_dim = q.shape
    matching = 0
    for t in range(1, tokens):
        matching += slots[t] == slots[t - 1]
    tokens_within = 2 * matching >= tokens - 1  # as in a prompt; else heads within tokens
    work = (
        np.empty((_ROWS, head_dim), np.float32),  # queries
        np.empty((_ROWS, PAGE), np.float32),  # scores, then weights
        np.empty((_ROWS, values.shape[3]), np.float32),  # totals
        np.empty((_ROWS, 1), np.float32),  # what a new page leaves of the totals
        np.empty(_ROWS, np.float32),  # highest scores
        np.empty(_ROWS, np.float32),  # sums of weights
        np.empty(PAGE, np.float32),
        np.empty(_ROWS, np.int64),  # last positions
    )
    pair = first
    while pair < last:
        rows, slot, kv = 0, 0, 0
        while rows < _ROWS and pair + rows < last:
            t, h = _numbered(pair + rows, tokens, heads, tokens_within)
            if rows == 0:
                slot, kv = slots[t], kv_index[h]
            elif slots[t] != slot or kv_index[h] != kv:
                break
            for d in range(head_dim):
                work[0][rows, d] = q[t, h, d] * scale
            work[7][rows] = positions[t]
            rows += 1
        work[2][:rows] = np.float32(0.0)
        work[4][:rows] = _MASKED
        work[5][:rows] = np.float32(0.0)
        _run(rows, keys, values, kv, table[slot], work)
        for r in range(rows):
            t, h = _numbered(pair + r, tokens, heads, tokens_within)
            inverse = np.float32(1.0) / work[5][r]
            for d in range(head_dim):
                out[t, h, d] = work[2][r, d] * inverse
        pair += rows


@njit(nogil=True)
def _numbered(pair, tokens, heads, tokens_within):
    return (pair % tokens, pair // tokens) if tokens_within else (pair // heads, pair % heads)


def _serial(q, keys, values, table, positions, slots, out, kv_index, scale):
    pairs = q.shape[0] * q.shape[1]
    _some(q, keys, values, table, positions, slots, out, kv_index, scale, 0, pairs)


def _parallel(q, keys, values, table, positions, slots, out, kv_index, scale, threads):
    pairs = q.shape[0] * q.shape[1]
    for part in prange(threads):
        first, last = pairs * part // threads, pairs * (part + 1) // threads
        _some(q, keys, values, table, positions, slots, out, kv_index, scale, first, last)


_F3, _F4 = types.Array(types.float32, 3, "C"), types.Array(types.float32, 4, "C")
_I1, _I2 = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
_KERNEL = Kernel(
    "attention", _serial, _parallel, _F3, _F4, _F4, _I2, _I1, _I1, _F3, _I1, types.float32
)


def attention(q, keys, values, table, positions, slots, out, kv_index, scale, threads) -> None:
    """Write softmax(q k^T scale) v of every token into out [T, H, Hd].

    q float32 [T, H, Hd]; keys [pages, K, Hd, PAGE]; values [pages, K, PAGE, Hd'] with Hd' >= Hd a
    multiple of 16; table int32 [slots, pages of a slot]; positions, slots int32 [T]; kv_index int32
    [H]. Token t sees positions 0 .. positions[t] of its slot.
    """
    if threads > 1:
        _KERNEL.parallel(
            q, keys, values, table, positions, slots, out, kv_index, scale, threads
        )  # fmt: skip
    else:
        _KERNEL.serial(q, keys, values, table, positions, slots, out, kv_index, scale)


@njit(nogil=True)
def _append_some(k, v, keys, values, table, positions, slots, first, last):
    """Write the tokens first .. last - 1."""
    _, heads, head_dim = k.shape
    for t in range(first, last):
        page, at = table[slots[t], positions[t] // PAGE], positions[t] % PAGE
        for h in range(heads):
            for d in range(head_dim):
                keys[page, h, d, at] = k[t, h, d]
                values[page, h, at, d] = v[t, h, d]


def _append_serial(k, v, keys, values, table, positions, slots):
    _append_some(k, v, keys, values, table, positions, slots, 0, k.shape[0])


def _append_parallel(k, v, keys, values, table, positions, slots, threads):
    tokens = k.shape[0]
    for part in prange(threads):
        first, last = tokens * part // threads, tokens * (part + 1) // threads
        _append_some(k, v, keys, values, table, positions, slots, first, last)


_APPEND = Kernel("append_kv", _append_serial, _append_parallel, _F3, _F3, _F4, _F4, _I2, _I1, _I1)


def append_kv(k, v, keys, values, table, positions, slots, threads) -> None:
    """Write k, v [T, K, Hd] to their places in the pages (shapes as for `attention`)."""
    if threads > 1 and len(k) >= MANY:
        _APPEND.parallel(k, v, keys, values, table, positions, slots, threads)
    else:
        _APPEND.serial(k, v, keys, values, table, positions, slots)
