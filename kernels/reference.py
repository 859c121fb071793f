"""The kernels' NumPy twins: the same signatures, as plain as the maths."""

from __future__ import annotations

import numpy as np


def matmul(x, w, out):
    """Write x [T, K] w.T into out [T, N]; w float32 [N, K]."""
    out[...] = x @ w.T


def rmsnorm(x, weight, eps, out, threads):
    """Write x / sqrt(mean(x^2) + eps) * weight into out [T, D]."""
    out[...] = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(eps)) * weight


def rope(x, cos, sin, threads):
    """Turn the pairs (d, d + Hd/2) of every head of x [T, H, Hd] in place."""
    half = x.shape[2] // 2
    a, b = x[..., :half].copy(), x[..., half:].copy()
    x[..., :half] = a * cos[:, None] - b * sin[:, None]
    x[..., half:] = b * cos[:, None] + a * sin[:, None]


def silu_gate(gate, up, threads):
    """Replace gate [T, F] by gate / (1 + e^-gate) * up."""
    with np.errstate(over="ignore"):
        gate[...] = gate / (1 + np.exp(-gate)) * up


def append_kv(k, v, keys, values, table, positions, slots, threads):
    """Write k, v [T, K, Hd] to their places in the pages."""
    size, head_dim = keys.shape[3], k.shape[2]
    for t, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        page = table[slot, position // size]
        keys[page, :, :, position % size] = k[t]
        values[page, :, position % size, :head_dim] = v[t]


def attention(
    q, keys, values, table, positions, slots, out, kv_index, scale, threads, window=1 << 40
):  # fmt: skip
    """Write softmax(q k^T scale) v of the last `window` positions into out [T, H, Hd]."""
    head_dim = q.shape[2]
    for t, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        first, size = max(int(position) - window + 1, 0), keys.shape[3]
        pages, gone = table[slot, first // size : position // size + 1], first // size * size
        seen = slice(first - gone, position + 1 - gone)
        for h, kv in enumerate(kv_index):
            k = np.concatenate([keys[page, kv] for page in pages], axis=1)[:, seen]
            v = np.concatenate([values[page, kv] for page in pages])[seen, :head_dim]
            scores = q[t, h] @ k * scale  # [positions]
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ v


def read_memory(data):
    """XOR of data [n]."""
    return int(np.bitwise_xor.reduce(data))
