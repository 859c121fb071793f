"""The SiLU gate of the MLP (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

from tpimpi.kernels.arithmetic import exp32
from tpimpi.kernels.variants import Kernel


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
