"""How a tensor's numbers lie in a file: one seam for checkpoint, shard, tape and kernel.

An encoding to come (packed, quantized) is one more entry here and one more widening in
`tpimpi.kernels.matmul`; nothing else names an encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoding:
    """Describe one encoding: its name, the safetensors name, and the dtype of its raw elements."""

    name: str
    safetensors_name: str
    storage: np.dtype
    widen: Callable[[np.ndarray], np.ndarray]

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of one row of `columns` numbers."""
        return columns * self.storage.itemsize


def _widen_bf16(raw: np.ndarray) -> np.ndarray:
    # bfloat16 is the upper half of a float32 (Kalamkar et al. 2019, arXiv:1905.12322).
    return (raw.astype(np.uint32) << 16).view(np.float32)


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("f32", "F32", np.dtype("<f4"), lambda raw: raw.astype(np.float32)),
        Encoding("f16", "F16", np.dtype("<u2"), lambda raw: raw.view("<f2").astype(np.float32)),
        Encoding("bf16", "BF16", np.dtype("<u2"), _widen_bf16),
    )
}
