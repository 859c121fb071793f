"""Kernels against their NumPy twins, and the same bits in whatever company."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types

from tpimpi.kernels import (
    activation,
    attention,
    gemm,
    matmul,
    norm,
    panels,
    reference,
    rope,
    scratch,
    softmax,
    variants,
)
from tpimpi.kernels.widening import f16_by_integers

RANDOM = np.random.default_rng(5)


def normal(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def encode(values, encoding):
    if encoding == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16) if encoding == "f16" else values


@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_matmul(encoding, threads):
    for tokens, rows, columns in [
        (1, 1, 1), (1, 5, 7), (2, 3, 16), (3, 17, 64), (5, 4, 31), (7, 33, 50), (13, 3, 40),
        (70, 41, 129), (4, 9, 0), (0, 4, 8), (3, 0, 8), (1, 64, 4096), (40, 1, 1), (20, 9, 0),
        (33, 0, 8), (131, 70, 2085),
    ]:  # fmt: skip
        x, w = normal(tokens, columns), encode(normal(rows, columns), encoding)
        full = np.full((tokens, rows + 3), np.float32(7))  # the output's rows may be strided
        twin = np.zeros((tokens, rows), np.float32)
        matmul.matmul(x, w, full[:, 1 : rows + 1], threads, encoding)
        reference.matmul(x, w, twin, threads, encoding)
        np.testing.assert_allclose(full[:, 1 : rows + 1], twin, atol=2e-5 * (columns + 1) ** 0.5)
        assert (full[:, 0] == 7).all() and (full[:, rows + 1 :] == 7).all()


def bits(array):
    return array.view(np.uint32)


@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("columns", [1, 15, 16, 203, 1024, 2115, 8192 + 5])
def test_matmul_bits_do_not_depend_on_company(encoding, columns):
    """One token alone is the measure: no batch, tile or number of threads changes a bit of it."""
    tokens, rows = gemm.BATCH + 23, 65
    x, w = normal(tokens, columns), encode(normal(rows, columns), encoding)
    alone = np.empty((tokens, rows), np.float32)
    for t in range(tokens):
        matmul.matmul(x[t : t + 1], w, alone[t : t + 1], 1, encoding)
    edges = {matmul.FEW, panels.TOKENS, 16, 32, 64, 22 * panels.TOKENS}
    counts = {1, 2, 3, 5, tokens} | {edge + i for edge in edges for i in (-1, 0, 1)}
    for threads in (1, 2, 3):
        for count in counts:
            part = np.empty((count, rows), np.float32)
            matmul.matmul(x[-count:], w, part, threads, encoding)
            assert (bits(part) == bits(alone[-count:])).all(), (count, threads)
    for step in (1, 2, 5, 31, 64):  # tiles of rows
        for count in (matmul.FEW, tokens):
            tiled = np.empty((count, rows), np.float32)
            for row in range(0, rows, step):
                part = w[row : row + step]
                matmul.matmul(x[:count], part, tiled[:, row : row + step], 2, encoding)
            assert (bits(tiled) == bits(alone[:count])).all(), (count, step)


@pytest.mark.parametrize("columns", [3, 33])
def test_matmul_sums_that_vanish_keep_their_sign(columns):
    """Products too small for a float32 make a lane -0, which the packed columns' ends must keep."""
    x, w = np.full((40, columns), 1e-30, np.float32), np.full((5, columns), -1e-30, np.float32)
    many, alone = np.empty((40, 5), np.float32), np.empty((1, 5), np.float32)
    matmul.matmul(x, w, many, 1, "f32")
    matmul.matmul(x[:1], w, alone, 1, "f32")
    assert (bits(many) == bits(alone)).all()


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_matmul_specials_touch_only_their_own_row(special):
    x, w = normal(40, 37), normal(9, 37)
    expected, out = np.empty((40, 9), np.float32), np.empty((40, 9), np.float32)
    matmul.matmul(x, w, expected, 1, "f32")
    x[17, 36] = special
    matmul.matmul(x, w, out, 1, "f32")
    assert not np.isfinite(out[17]).any()
    assert (np.delete(out, 17, 0) == np.delete(expected, 17, 0)).all()


def test_every_half_is_widened_without_the_machines_instruction():
    @njit(types.void(types.uint16[::1], types.float32[::1]))
    def widen(raw, out):
        for i in range(len(raw)):
            out[i] = f16_by_integers(raw[i])

    raw, out = np.arange(65536, dtype=np.uint16), np.empty(65536, np.float32)
    widen(raw, out)
    expected = raw.view(np.float16).astype(np.float32)
    number = ~np.isnan(expected)
    assert (out[number].view(np.uint32) == expected[number].view(np.uint32)).all()
    assert np.isnan(out[~number]).all()


def test_bf16_specials():
    raw = np.array([[0x7F80, 0, 0], [0xFF80, 0, 0], [0x0001, 0, 0], [0x8000, 0, 0]], np.uint16)
    out = np.empty((1, 4), np.float32)
    matmul.matmul(np.ones((1, 3), np.float32), raw, out, 1, "bf16")
    assert out[0, 0] == np.inf and out[0, 1] == -np.inf and out[0, 3] == 0
    assert out[0, 2] == np.array([0x00010000], np.uint32).view(np.float32)[0]


def test_importing_compiles_nothing(tmp_path):
    """Only the child that warms the cache up may compile: the compiler's memory stays in a peak."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", "import tpimpi.engine.forward"], env=environment, check=True
    )
    assert not list(tmp_path.rglob("*.nb[ic]"))


def test_kernels_import_nothing_of_the_package_but_kernels():
    for path in Path(matmul.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("tpimpi") or name.startswith("tpimpi.kernels"), path


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dim", [1, 15, 48, 257])
def test_rmsnorm(dim, threads):
    x, weight = normal(variants.MANY + 5, dim), normal(dim)
    out, twin, alone = np.empty_like(x), np.empty_like(x), np.empty((1, dim), np.float32)
    norm.rmsnorm(x, weight, 1e-5, out, threads)
    in_place = x.copy()
    norm.rmsnorm(in_place, weight, 1e-5, in_place, threads)
    assert (bits(in_place) == bits(out)).all()
    reference.rmsnorm(x, weight, 1e-5, twin, threads)
    np.testing.assert_allclose(out, twin, rtol=2e-6, atol=1e-7)
    for t in (0, 3, variants.MANY + 4):
        norm.rmsnorm(x[t : t + 1].copy(), weight, 1e-5, alone, 1)
        assert (bits(alone[0]) == bits(out[t])).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rope(threads):
    positions = np.concatenate([[0, 3, 7, 500, 8191, 2], np.arange(variants.MANY)]).astype(np.int32)
    x = normal(len(positions), 5, 12)
    inverse = (1 / 10000 ** (np.arange(0, 12, 2) / 12)).astype(np.float32)
    cos, sin = np.empty((2, len(positions), 6), np.float32)
    rope.rope_tables(positions, inverse, cos, sin, 1.0)
    angles = positions[:, None].astype(np.float32) * inverse
    assert np.allclose(cos, np.cos(angles)) and np.allclose(sin, np.sin(angles))
    twin, alone = x.copy(), x[4:5].copy()
    rope.rope(x, cos, sin, threads)
    reference.rope(twin, cos, sin, threads)
    np.testing.assert_allclose(x, twin, rtol=1e-6, atol=1e-6)
    rope.rope(alone, cos[4:5], sin[4:5], 1)
    assert (bits(alone[0]) == bits(x[4])).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_silu_gate(threads):
    gate = np.concatenate([normal(9, 33) * 4, np.linspace(-100, 100, 33 * 9).reshape(9, 33)])
    gate = gate.astype(np.float32)
    up = normal(*gate.shape)
    twin = gate.copy()
    reference.silu_gate(twin, up, threads)
    activation.silu_gate(gate, up, threads)
    np.testing.assert_allclose(gate, twin, rtol=1e-6, atol=1e-12)


def pages(head_dim, kv_heads, lengths):
    """Return filled pages of sequences of these lengths, scattered over the pool."""
    per_slot = max(-(-n // attention.PAGE) for n in lengths)
    count = per_slot * len(lengths)
    padded = -(-head_dim // 16) * 16
    keys = np.zeros((count, kv_heads, head_dim, attention.PAGE), np.float32)
    values = np.zeros((count, kv_heads, attention.PAGE, padded), np.float32)
    table = RANDOM.permutation(count).astype(np.int32).reshape(len(lengths), per_slot)
    for slot, length in enumerate(lengths):
        positions = np.arange(length, dtype=np.int32)
        slots = np.full(length, slot, np.int32)
        k, v = normal(length, kv_heads, head_dim), normal(length, kv_heads, head_dim)
        twins = keys.copy(), values.copy()
        attention.append_kv(k, v, keys, values, table, positions, slots, 2)
        reference.append_kv(k, v, *twins, table, positions, slots, 2)
        assert (twins[0] == keys).all() and (twins[1] == values).all()
    return keys, values, table


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_append_kv_in_any_order(threads):
    """Decoding sequences and prompts, mixed: tokens that follow each other and such that don't."""
    tokens, slots = 3 * variants.MANY, RANDOM.integers(0, 2, 3 * variants.MANY).astype(np.int32)
    slots[20:70] = 1
    positions = np.empty(tokens, np.int32)
    for slot in (0, 1):
        positions[slots == slot] = 50 + np.arange((slots == slot).sum())
    positions[40], positions[41] = positions[41], positions[40]
    k, v = normal(tokens, 2, 20), normal(tokens, 2, 20)
    keys, values = np.zeros((6, 2, 20, 64), np.float32), np.zeros((6, 2, 64, 32), np.float32)
    twins, table = (keys.copy(), values.copy()), np.array([[4, 0, 2], [1, 5, 3]], np.int32)
    attention.append_kv(k, v, keys, values, table, positions, slots, threads)
    reference.append_kv(k, v, *twins, table, positions, slots, threads)
    assert (twins[0] == keys).all() and (twins[1] == values).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("head_dim", [6, 12, 32, 128])
def test_attention(head_dim, threads):
    lengths, kv_index = (1, 64, 65, 200), np.array([0, 0, 1, 2, 2], np.int32)
    keys, values, table = pages(head_dim, 3, lengths)
    slots = np.concatenate([np.full(n, s, np.int32) for s, n in enumerate(lengths)])
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    q = normal(len(slots), 5, head_dim) * 3
    out, twin, scale = np.empty_like(q), np.empty_like(q), np.float32(head_dim**-0.5)
    arguments = (keys, values, table)
    attention.attention(q, *arguments, positions, slots, out, kv_index, scale, threads)
    reference.attention(q, *arguments, positions, slots, twin, kv_index, scale, threads)
    np.testing.assert_allclose(out, twin, atol=2e-5)
    for t in (0, 30, 64, 129, len(slots) - 1):
        alone, at = np.empty((1, 5, head_dim), np.float32), slice(t, t + 1)
        attention.attention(
            q[at].copy(), *arguments, positions[at], slots[at], alone, kv_index, scale, 1
        )
        assert (alone[0] == out[t]).all()


def test_attention_bits_do_not_depend_on_company():
    """Unwritten places of pages hold NaN here: no row may read beyond its own last position."""
    lengths, kv_index = (3, 64, 130), np.array([0, 0, 0, 0, 0, 1, 1], np.int32)
    keys, values, table = pages(80, 2, lengths)
    slots = np.repeat(np.arange(3, dtype=np.int32), lengths)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    for slot, length in enumerate(lengths):
        for at in range(length, table.shape[1] * attention.PAGE):
            page, place = table[slot, at // attention.PAGE], at % attention.PAGE
            keys[page, :, :, place] = values[page, :, place] = np.nan
    q = normal(len(slots), 7, 80) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), 7, 80), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.1), threads)
        return out.view(np.uint32)

    everything = np.arange(len(slots))
    whole, mixed = attend(everything, 1), RANDOM.permutation(everything)
    assert np.isfinite(whole.view(np.float32)).all()
    for threads in (1, 2):
        assert (attend(everything, threads) == whole).all()
        assert (attend(mixed, threads) == whole[mixed]).all()
        for count in (1, 2, 3, 5, 31, 33, 70):
            part = everything[-count:]
            assert (attend(part, threads) == whole[part]).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (3, 3), (13, 2)])
def test_attention_bits_of_long_texts(heads, kv_heads):
    """Long texts are cut by spans of pages where pairs are few: no cut may change a bit."""
    span, lengths = softmax.SPAN * attention.PAGE, (8192, 1537)
    head_dim, kv_index = 20, (np.arange(heads) * kv_heads // heads).astype(np.int32)
    keys, values, table = pages(head_dim, kv_heads, lengths)
    ends = [0, 63, 64, span - 1, span, 4 * span + 1, 8189, 8190, 8191, 70, span, 1536]
    positions = np.array(ends, np.int32)
    slots = np.array([0] * 9 + [1] * 3, np.int32)
    q = normal(len(ends), heads, head_dim) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), heads, head_dim), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.2), threads)
        return out

    everything, twin = np.arange(len(ends)), np.empty_like(q)
    whole = attend(everything, 1)
    reference.attention(q, keys, values, table, positions, slots, twin, kv_index, 0.2, 1)
    np.testing.assert_allclose(whole, twin, atol=2e-5)
    for threads in (1, 2, 3):
        for t in everything:
            assert (bits(attend(everything[t : t + 1], threads)) == bits(whole[t])).all(), t
        for chosen in (everything, everything[5:9], everything[8:], everything[[8, 11]]):
            assert (bits(attend(chosen, threads)) == bits(whole[chosen])).all(), (threads, chosen)


@pytest.mark.parametrize("window", [1, 7, 64, 65, 200, 700, 5000])
def test_attention_sees_its_window_alone(window):
    """Pages before a window are gone, and what lies before it within a page is no longer seen."""
    lengths, kv_index, head_dim = (3, 1300, 130), np.array([0, 0, 0, 1, 1], np.int32), 20
    keys, values, table = pages(head_dim, 2, lengths)
    ends = [0, 2, *range(1180, 1300), 61, 129]
    slots = np.array([0, 0, *[1] * 120, 2, 2], np.int32)
    positions = np.array(ends, np.int32)
    gone = max(1180 - window + 1, 0) // attention.PAGE
    for page in table[1, :gone]:
        keys[page] = values[page] = np.nan
    table[1, :gone] = -1
    q = normal(len(ends), 5, head_dim) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), 5, head_dim), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.2), threads, window)
        return out

    everything, twin = np.arange(len(ends)), np.empty_like(q)
    whole = attend(everything, 1)
    reference.attention(q, keys, values, table, positions, slots, twin, kv_index, 0.2, 1, window)
    np.testing.assert_allclose(whole, twin, atol=2e-5)
    for threads in (1, 2, 3):
        for t in (0, 1, 2, 50, 121, 122, 123):
            assert (bits(attend(everything[t : t + 1], threads)) == bits(whole[t])).all(), t
        for chosen in (everything, everything[100:], everything[118:123], everything[::-7]):
            assert (bits(attend(chosen, threads)) == bits(whole[chosen])).all(), (threads, chosen)


def test_scratch_is_taken_once():
    """Memory that was planned for the largest call serves all smaller ones."""
    sizes = [attention.scratch_floats(t, 8, 1, 128, 8192, 2) for t in (1, 512)]
    floats = max(sizes)
    assert min(sizes) > 0
    memory = scratch.scratch(floats)
    assert scratch.scratch(floats // 2) is memory


def test_a_nan_is_never_hidden():
    keys, values, table = pages(32, 1, (10,))
    keys[table[0, 0], 0, :, 3] = np.nan
    out, zero = np.zeros((1, 1, 32), np.float32), np.zeros(1, np.int32)
    attention.attention(
        np.ones_like(out), keys, values, table, zero + 9, zero, out, zero, np.float32(1), 1
    )
    assert np.isnan(out).all()
    x = np.array([[np.nan, 1]], np.float32)
    activation.silu_gate(x, np.ones_like(x), 1)
    assert np.isnan(x[0, 0]) and np.isfinite(x[0, 1])
