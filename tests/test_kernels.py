"""Kernels against their NumPy twins, and the same bits in whatever company."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types, vectorize

from tpimpi.kernels import activation, arithmetic, matmul, norm, reference, rope, variants
from tpimpi.kernels.widening import f16_by_integers

RANDOM = np.random.default_rng(5)


def normal(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def bits(array):
    return array.view(np.uint32)


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


def test_exp_is_exact_to_about_one_ulp():
    @vectorize(["float32(float32)"])
    def exp(x):
        return arithmetic.exp32(x)

    x = np.linspace(-87.3, 88, 100_001).astype(np.float32)
    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=2e-7)
    low, high = np.array([-87.4, -1000, -np.inf], np.float32), np.array([89, np.inf], np.float32)
    assert (exp(low) == 0).all() and (exp(high) > 1e38).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(exp(np.float32(np.nan)))


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
