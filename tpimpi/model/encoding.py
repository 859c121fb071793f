"""How a tensor's numbers lie in a file: one seam for checkpoint, shard, tape and kernel.

An encoding to come (packed, quantized) is one more entry here and one more widening in
`tpimpi.kernels.matmul`; nothing else names an encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoding:
    """Describe one encoding: its names, the dtype of its raw elements, the ways from and to f32."""

    name: str
    safetensors_name: str
    storage: np.dtype
    widen: Callable[[np.ndarray], np.ndarray]
    narrow: Callable[[np.ndarray], np.ndarray]  # of float32; bf16 by cutting off

    def nbytes(self, *shape: int) -> int:
        """Return the bytes of an array of this shape."""
        return math.prod(shape) * self.storage.itemsize

    def raw(self, data, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
        """Return the raw elements that lie in a buffer, from its byte `offset` on."""
        return np.frombuffer(data, self.storage, math.prod(shape), offset).reshape(shape)

    def zeros(self, *shape: int) -> np.ndarray:
        """Return raw zeros."""
        return np.zeros(shape, self.storage)


def _widen_bf16(raw: np.ndarray) -> np.ndarray:
    # bfloat16 is the upper half of a float32 (Kalamkar et al. 2019, arXiv:1905.12322).
    return (raw.astype(np.uint32) << 16).view(np.float32)


def _narrow_bf16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _widen_f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2").astype(np.float32)


def _narrow_f16(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view("<u2")


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("f32", "F32", np.dtype("<f4"), _f32, _f32),
        Encoding("f16", "F16", np.dtype("<u2"), _widen_f16, _narrow_f16),
        Encoding("bf16", "BF16", np.dtype("<u2"), _widen_bf16, _narrow_bf16),
    )
}
