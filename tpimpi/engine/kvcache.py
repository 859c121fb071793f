"""Paged memory for the keys and values of this rank's heads (Kwon et al. 2023, arXiv:2309.06180).

A page holds PAGE_TOKENS consecutive positions of one sequence. All layers share one page table.
Keys lie transposed in a page, so that positions are the lanes of the score kernel.
"""

from __future__ import annotations

import numpy as np

from tpimpi.errors import MachineError
from tpimpi.kernels.attention import PAGE as PAGE_TOKENS
from tpimpi.kernels.vector import LANES


def page_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Return the bytes of one page: PAGE_TOKENS positions in all layers, keys and values."""
    padded = -(-head_dim // LANES) * LANES
    return 4 * layers * kv_heads * PAGE_TOKENS * (head_dim + padded)


class KVCache:
    """Pages for `slots` sequences of at most `context` tokens each.

    The pool is virtual memory until it is written, so it grows with the text. Pages are handed out
    by the same rule on every rank, so page tables agree without a message.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, slots: int, context: int):
        per_slot = -(-context // PAGE_TOKENS)
        pages = slots * per_slot
        padded = -(-head_dim // LANES) * LANES
        shape = (layers, pages, kv_heads)
        self.keys = np.zeros((*shape, head_dim, PAGE_TOKENS), np.float32)  # [L, pages, K, Hd, P]
        self.values = np.zeros((*shape, PAGE_TOKENS, padded), np.float32)  # [L, pages, K, P, Hd']
        self.page_table = np.full((slots, per_slot), -1, np.int32)  # [slots, pages of a slot]
        self._free = list(range(pages - 1, -1, -1))
        self.context = context

    def reserve(self, positions: np.ndarray, slots: np.ndarray) -> None:
        """Give every token of a batch (positions [T], slots [T]) a page to write to."""
        for slot in np.unique(slots):
            last = int(positions[slots == slot].max())
            if last >= self.context:
                raise MachineError(f"position {last} is beyond the planned {self.context} tokens")
            row = self.page_table[slot]
            for page in range(last // PAGE_TOKENS + 1):
                if row[page] < 0:
                    row[page] = self._free.pop()

    def release(self, slot: int) -> None:
        """Take all pages of one sequence back."""
        row = self.page_table[slot]
        self._free.extend(int(page) for page in row[row >= 0][::-1])
        row[:] = -1
