"""Attention over KV pages with the softmax taken online (Milakov 2018, arXiv:1805.02867).

Every token and head walks its pages in order and by itself, so its bits don't depend on the batch.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.activation import exp32
from tpimpi.kernels.variants import variant

PAGE = 64  # positions in a page
_MASKED = np.float32(-np.inf)


@njit(nogil=True)
def _maximum(values, scratch):
    """Return the largest of PAGE values, by halving: a shape that vectorizes."""
    for i in range(32):
        scratch[i] = max(values[i], values[i + 32])
    for i in range(16):
        scratch[i] = max(scratch[i], scratch[i + 16])
    best = scratch[0]
    for i in range(1, 16):
        best = max(best, scratch[i])
    return best


@njit(nogil=True)
def _sum(values, scratch):
    """Return the sum of PAGE values, by halving: one order for all."""
    for i in range(32):
        scratch[i] = values[i] + values[i + 32]
    for i in range(16):
        scratch[i] = scratch[i] + scratch[i + 16]
    for i in range(8):
        scratch[i] = scratch[i] + scratch[i + 8]
    for i in range(4):
        scratch[i] = scratch[i] + scratch[i + 4]
    return (scratch[0] + scratch[2]) + (scratch[1] + scratch[3])


@njit(nogil=True, fastmath={"contract"})
def _one(q, keys, values, head, table, position, out, scale, scores, scratch, total):
    """Attend with one query [Hd] to positions 0 .. `position`; write out [Hd]."""
    head_dim, padded = q.shape[0], values.shape[3]
    best, weight = _MASKED, np.float32(0.0)
    for d in range(padded):
        total[d] = np.float32(0.0)
    for page in range(position // PAGE + 1):
        k = keys[table[page], head]  # [Hd, PAGE]
        v = values[table[page], head]  # [PAGE, Hd']
        for p in range(PAGE):
            scores[p] = np.float32(0.0)
        for d in range(head_dim):
            factor, row = q[d] * scale, k[d]
            for p in range(PAGE):
                scores[p] += factor * row[p]
        count = min(position - page * PAGE + 1, PAGE)
        for p in range(count, PAGE):
            scores[p] = _MASKED
        new = max(best, _maximum(scores, scratch))
        for p in range(PAGE):
            scores[p] = exp32(scores[p] - new)
        shrink = exp32(best - new)
        weight = weight * shrink + _sum(scores, scratch)
        for d in range(padded):
            total[d] *= shrink
        for p in range(count):
            factor, row = scores[p], v[p]
            for d in range(padded):
                total[d] += factor * row[d]
        best = new
    inverse = np.float32(1.0) / weight
    for d in range(head_dim):
        out[d] = total[d] * inverse


@njit(nogil=True)
def _some(q, keys, values, table, positions, slots, out, kv_index, scale, first, last):
    """Attend for the pairs (token, head) numbered first .. last, heads within tokens."""
    heads = q.shape[1]
    scores, scratch = np.empty(PAGE, np.float32), np.empty(PAGE, np.float32)
    total = np.empty(values.shape[3], np.float32)
    for pair in range(first, last):
        t, h = pair // heads, pair % heads
        _one(
            q[t, h], keys, values, kv_index[h], table[slots[t]], positions[t], out[t, h], scale,
            scores, scratch, total,
        )  # fmt: skip


def _serial(q, keys, values, table, positions, slots, out, kv_index, scale):
    pairs = q.shape[0] * q.shape[1]
    _some(q, keys, values, table, positions, slots, out, kv_index, scale, 0, pairs)


def _parallel(q, keys, values, table, positions, slots, out, kv_index, scale, threads):
    pairs = q.shape[0] * q.shape[1]
    parts = 4 * threads if pairs > 64 else threads  # later tokens look back further
    for part in prange(parts):
        first, last = pairs * part // parts, pairs * (part + 1) // parts
        _some(q, keys, values, table, positions, slots, out, kv_index, scale, first, last)


_F3, _F4 = types.Array(types.float32, 3, "C"), types.Array(types.float32, 4, "C")
_I1, _I2 = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")


def attention(q, keys, values, table, positions, slots, out, kv_index, scale, threads) -> None:
    """Write softmax(q k^T scale) v of every token into out [T, H, Hd].

    q float32 [T, H, Hd]; keys [pages, K, Hd, PAGE]; values [pages, K, PAGE, Hd'] with Hd' >= Hd a
    multiple of 16; table int32 [slots, pages of a slot]; positions, slots int32 [T]; kv_index int32
    [H]. Token t sees positions 0 .. positions[t] of its slot.
    """
    arguments = (_F3, _F4, _F4, _I2, _I1, _I1, _F3, _I1, types.float32)
    if threads > 1:
        kernel = variant(_parallel, "attention", (*arguments, types.intp), parallel=True)
        kernel(q, keys, values, table, positions, slots, out, kv_index, scale, threads)
    else:
        kernel = variant(_serial, "attention", arguments)
        kernel(q, keys, values, table, positions, slots, out, kv_index, scale)


@njit(types.void(_F3, _F3, _F4, _F4, _I2, _I1, _I1), nogil=True, cache=True)
def append_kv(k, v, keys, values, table, positions, slots):
    """Write k, v [T, K, Hd] to their places in the pages (shapes as for `attention`)."""
    tokens, heads, head_dim = k.shape
    for t in range(tokens):
        page, at = table[slots[t], positions[t] // PAGE], positions[t] % PAGE
        for h in range(heads):
            for d in range(head_dim):
                keys[page, h, d, at] = k[t, h, d]
                values[page, h, at, d] = v[t, h, d]
