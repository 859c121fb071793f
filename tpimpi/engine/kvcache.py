"""Paged memory for the keys and values of this rank's heads (Kwon et al. 2023, arXiv:2309.06180).

A page holds PAGE_TOKENS consecutive positions of one sequence. All layers share one page table.
Keys lie transposed in a page, so that positions are the lanes of the score kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpimpi.errors import MachineError
from tpimpi.kernels.attention import PAGE as PAGE_TOKENS
from tpimpi.kernels.emit import LANES
from tpimpi.memory.account import pages_held


def page_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Return the bytes of one page: PAGE_TOKENS positions in all layers, keys and values."""
    padded = -(-head_dim // LANES) * LANES
    return 4 * layers * kv_heads * PAGE_TOKENS * (head_dim + padded)


def kept_window(windows: Sequence[int | None]) -> int | None:
    """Return how many positions must be kept, of the layers' windows; None: all of them."""
    return None if None in windows else max(windows)


class KVCache:
    """Pages for `slots` sequences of at most `context` tokens each.

    The pool is virtual memory until it is written, so it grows with the text. Pages are handed out
    by the same rule on every rank, so page tables agree without a message. Where no layer sees
    more than `window` positions, pages before them are given back, so that those of a pass of
    `chunk` tokens are enough.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, slots: int, context: int,
        window: int | None = None, chunk: int = 1,
    ):  # fmt: skip
        per_slot = pages_held(context, window, chunk, PAGE_TOKENS)
        pages = slots * per_slot
        padded = -(-head_dim // LANES) * LANES
        shape = (layers, pages, kv_heads)
        self.keys = np.zeros((*shape, head_dim, PAGE_TOKENS), np.float32)  # [L, pages, K, Hd, P]
        self.values = np.zeros((*shape, PAGE_TOKENS, padded), np.float32)  # [L, pages, K, P, Hd']
        numbers = -(-context // PAGE_TOKENS)
        self.page_table = np.full((slots, numbers), -1, np.int32)  # [slots, pages of a text]
        self._kept = [0] * slots  # the first page of each sequence that was not given back
        self._free = list(range(pages - 1, -1, -1))
        self._window = window
        self.context = context

    def reserve(self, positions: np.ndarray, slots: np.ndarray) -> None:
        """Give every token of a batch (positions [T], slots [T]) a page to write to."""
        for slot in np.unique(slots):
            mine = positions[slots == slot]
            first, last = int(mine.min()), int(mine.max())
            if last >= self.context:
                raise MachineError(f"position {last} is beyond the planned {self.context} tokens")
            row = self.page_table[slot]
            seen = 0
            if self._window is not None:
                seen = max(first - self._window + 1, 0) // PAGE_TOKENS
                if seen < self._kept[slot]:
                    self.release(slot)  # the text begins anew
                self._give_back(row[self._kept[slot] : seen])
                self._kept[slot] = seen
            for page in range(seen, last // PAGE_TOKENS + 1):
                if row[page] < 0:
                    row[page] = self._free.pop()

    def release(self, slot: int) -> None:
        """Take all pages of one sequence back."""
        self._give_back(self.page_table[slot])
        self._kept[slot] = 0

    def _give_back(self, row: np.ndarray) -> None:
        """Take back the pages of a part of a page table [pages]."""
        self._free.extend(int(page) for page in row[row >= 0][::-1])
        row[:] = -1
