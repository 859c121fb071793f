"""exp in FP32, and the SiLU gate of the MLP (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.arithmetic import fma32, power_of_two
from tpimpi.kernels.variants import Kernel

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_LOWEST, _HIGHEST = np.float32(-87.33654), np.float32(88.02969)
# 2^n is written as the bits of its exponent; minimax coefficients for |x| <= ln(2) / 2.
_C5, _C4, _C3 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(0.5)


@njit(nogil=True, inline="always")
def exp32(x):
    """Return e^x for a float32 to about 1 ulp; 0 below -87.3, as it is for -inf; NaN for NaN."""
    clamped = _LOWEST if x < _LOWEST else x
    clamped = _HIGHEST if clamped > _HIGHEST else clamped
    shifted = fma32(clamped, _LOG2_E, _ROUND)
    n = shifted - _ROUND
    r = fma32(n, -_LN2_LOW, fma32(n, -_LN2_HIGH, clamped))
    p = fma32(fma32(fma32(_C5, r, _C4), r, _C3), r, _C2)
    p = fma32(fma32(p, r, _C1), r, _C0)
    p = fma32(p, r * r, r) + np.float32(1.0)
    return np.float32(0.0) if x < _LOWEST else p * power_of_two(shifted)


@njit(nogil=True, error_model="numpy")  # Python's check for zero would not vectorize
def _gate_row(gate, up):
    # In place by name: told of an output that may be the gate, LLVM falls back to scalar code.
    for f in range(gate.shape[0]):
        g = gate[f]
        gate[f] = g / (np.float32(1.0) + exp32(-g)) * up[f]


def _serial(gate, up):
    for t in range(gate.shape[0]):
        _gate_row(gate[t], up[t])


def _parallel(gate, up, threads):
    tokens = gate.shape[0]
    for part in prange(threads):
        for t in range(tokens * part // threads, tokens * (part + 1) // threads):
            _gate_row(gate[t], up[t])


_ROWS = types.Array(types.float32, 2, "C")
_KERNEL = Kernel("silu_gate", _serial, _parallel, _ROWS, _ROWS)
_MANY = 8  # tokens from which a second thread pays


def silu_gate(gate: np.ndarray, up: np.ndarray, threads: int) -> None:
    """Replace gate by gate / (1 + e^-gate) * up, both float32 [T, F]."""
    if threads > 1 and gate.shape[0] >= _MANY:
        _KERNEL.parallel(gate, up, threads)
    else:
        _KERNEL.serial(gate, up)
