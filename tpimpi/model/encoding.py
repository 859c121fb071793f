"""How a tensor's numbers lie in a file: one seam for checkpoint, shard, tape and kernel.

A checkpoint has rows. Of a matrix on the tape a shard has panels: for each column sixteen rows side
by side, so that a kernel keeps sixteen sums in a vector's lanes and reads memory in one stream.

An encoding to come (packed, quantized) is one more entry here and one more in
`tpimpi.kernels.widening`; nothing else names an encoding, or knows what the bytes of a panel mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ROWS = 16  # of a panel
_TILE_BYTES, _TILE_COLUMNS = 256 << 10, 8192  # that are packed at once: they stay in the cache
_ODD_BYTES = 64  # by which a tile's rows lie further apart than a power of two


def panel_count(rows: int, columns: int) -> int:
    """Return how many panels a matrix [N, K] has; none where it has no rows or no columns."""
    return -(-rows // ROWS) if columns else 0


@dataclass(frozen=True)
class Encoding:
    """Describe one encoding: its names, its raw elements, the ways from and to f32, its panels.

    Where `packed`, the panels are bytes that only the encoding understands; it overrides
    `panel_bytes`, `pack` and `unpack`. Else they are plain numbers.
    """

    name: str
    safetensors_name: str
    storage: np.dtype
    exponent: int  # bits of a number; HDF5 is told of them
    mantissa: int
    widen: Callable[[np.ndarray], np.ndarray]
    narrow: Callable[[np.ndarray], np.ndarray]  # of float32; bf16 by cutting off
    packed: bool = False

    def nbytes(self, *shape: int) -> int:
        """Return the bytes of rows of this shape, as a checkpoint has them."""
        return math.prod(shape) * self.storage.itemsize

    def raw(self, data, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
        """Return the raw elements that lie in a buffer, from its byte `offset` on."""
        return np.frombuffer(data, self.storage, math.prod(shape), offset).reshape(shape)

    def zeros(self, *shape: int) -> np.ndarray:
        """Return raw zeros."""
        return np.zeros(shape, self.storage)

    def panel_bytes(self, columns: int) -> int:
        """Return the bytes of one panel of K columns."""
        return self.nbytes(columns, ROWS)

    def panel_shape(self, columns: int) -> tuple[int, ...]:
        """Return the shape of one panel: [K, ROWS] of raw elements, [bytes] where `packed`."""
        return (self.panel_bytes(columns),) if self.packed else (columns, ROWS)

    def pack(self, rows: np.ndarray) -> np.ndarray:
        """Return raw rows [n, K] as panels, uint8 [P, panel_bytes]; missing rows are zeros."""
        count, columns = rows.shape
        panels = np.empty((-(-count // ROWS), columns, ROWS), self.storage)  # [P, K, ROWS]
        # A tile's rows lie an odd way apart: a power of two lets them fall on few cache lines.
        width = max(1, min(columns, _TILE_COLUMNS))
        apart = width + _ODD_BYTES // self.storage.itemsize
        step = max(1, min(_TILE_BYTES // self.nbytes(ROWS, apart), len(panels)))  # panels
        tile = self.zeros(step, ROWS, apart)
        for first in range(0, len(panels), step):
            some = rows[first * ROWS : (first + step) * ROWS]  # [n', K]
            into = panels[first : first + step]  # [P', K, ROWS]
            flat = tile[: len(into)].reshape(len(into) * ROWS, apart)  # a view
            flat[len(some) :] = 0
            for start in range(0, columns, width):
                part = some[:, start : start + width]  # [n', K']
                flat[: len(part), : part.shape[1]] = part
                beside = tile[: len(into), :, : part.shape[1]].transpose(0, 2, 1)  # [P', K', ROWS]
                into[:, start : start + width] = beside
        return panels.view(np.uint8).reshape(len(panels), self.nbytes(columns, ROWS))

    def unpack(self, panels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the first raw rows [n, K] of panels, uint8 [P, panel_bytes]."""
        numbers = self.raw(panels, (len(panels), columns, ROWS))  # [P, K, ROWS]
        beside = np.ascontiguousarray(numbers.transpose(0, 2, 1))  # [P, ROWS, K]
        return beside.reshape(len(panels) * ROWS, columns)[:rows]


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
        Encoding("f32", "F32", np.dtype("<f4"), 8, 23, _f32, _f32),
        Encoding("f16", "F16", np.dtype("<u2"), 5, 10, _widen_f16, _narrow_f16),
        Encoding("bf16", "BF16", np.dtype("<u2"), 8, 7, _widen_bf16, _narrow_bf16),
    )
}
