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
    gemm,
    matmul,
    norm,
    panels,
    reference,
    rope,
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
