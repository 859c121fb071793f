"""Rows that come in runs of any length, gathered to whole panels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.shards.layout import StoredTensor

PACKED_BYTES = 1 << 20  # of the panels that are packed at a time: what is packed stays in the cache


class Gatherer:
    """Pack the rows of one matrix as they come, in order; fewer than ROWS are kept over."""

    def __init__(self, tensor: StoredTensor, done: int = 0):
        """Begin after the first `done` rows, which are whole panels."""
        self._encoding = ENCODINGS[tensor.encoding]
        self._left = tensor.shape[0] - done  # rows that have yet to come
        self._over = self._encoding.zeros(0, tensor.shape[1])  # [o, K] without a whole panel
        self._step = max(1, PACKED_BYTES // tensor.panel_bytes) * ROWS  # rows

    def panels(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the panels that are whole with the next raw rows [n, K]: uint8 [P, panel_bytes].

        The last of the matrix is whole with its last row.
        """
        self._left -= len(rows)
        if len(self._over):
            missing = ROWS - len(self._over)
            self._over = np.concatenate((self._over, rows[:missing]))
            rows = rows[missing:]
            if len(self._over) < ROWS and self._left:
                return
            yield self._encoding.pack(self._over)
        whole = len(rows) // ROWS * ROWS if self._left else len(rows)
        for start in range(0, whole, self._step):
            yield self._encoding.pack(rows[start : min(start + self._step, whole)])
        self._over = rows[whole:].copy()
