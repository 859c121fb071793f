"""Paged memory for the keys and values of this rank's heads (Kwon et al. 2023, arXiv:2309.06180).

A page holds PAGE_TOKENS consecutive positions of one sequence, or of several that begin alike. All
layers share one page table. Keys lie transposed in a page, so that positions are the lanes of the
score kernel. Rank 0 says which page is whose, see `pages`: each token of a step brings its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpimpi.kernels.attention import PAGE as PAGE_TOKENS
from tpimpi.kernels.emit import LANES


def page_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Return the bytes of one page: PAGE_TOKENS positions in all layers, keys and values."""
    padded = -(-head_dim // LANES) * LANES
    return 4 * layers * kv_heads * PAGE_TOKENS * (head_dim + padded)


def kept_window(windows: Sequence[int | None]) -> int | None:
    """Return how many positions must be kept, of the layers' windows; None: all of them."""
    return None if None in windows else max(windows)


class KVCache:
    """`pages` pages for `slots` sequences of at most `context` tokens each.

    It is virtual memory until it is written, so it grows with the texts.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, pages: int, slots: int, context: int
    ):
        padded = -(-head_dim // LANES) * LANES
        shape = (layers, pages, kv_heads)
        self.keys = np.zeros((*shape, head_dim, PAGE_TOKENS), np.float32)  # [L, pages, K, Hd, P]
        self.values = np.zeros((*shape, PAGE_TOKENS, padded), np.float32)  # [L, pages, K, P, Hd']
        numbers = -(-context // PAGE_TOKENS)
        # Of pages that nothing looks at any more, what they were.
        self.page_table = np.zeros((slots, numbers), np.int32)  # [slots, pages of a text]
        self.context, self.slots, self.pages = context, slots, pages

    def place(self, positions: np.ndarray, slots: np.ndarray, pages: np.ndarray) -> None:
        """Note the pages [T] that a step's tokens, positions [T] of slots [T], are written to."""
        self.page_table[slots, positions // PAGE_TOKENS] = pages

    def adopt(self, slot: int, pages: Sequence[int], copy: tuple[int, int] | None = None) -> None:
        """Let a slot's table begin with pages; `copy` one to another before."""
        if copy is not None:
            source, target = copy
            self.keys[:, target] = self.keys[:, source]  # [L, K, Hd, P]
            self.values[:, target] = self.values[:, source]  # [L, K, P, Hd']
        self.page_table[slot, : len(pages)] = pages
