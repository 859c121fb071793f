"""The forward pass's memory: accounted for before it is taken, then reused by every pass.

T tokens of a chunk, n rows of logits, D hidden, H_loc / K_loc heads and F_loc MLP columns of this
rank, Hd head size, V vocabulary, V_loc this rank's rows of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tpimpi.engine.step import StepMessage
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import RankCut


def buffer_shapes(
    config: ModelConfig, mine: RankCut, tokens: int, logits: int
) -> dict[str, tuple[int, int]]:
    """Return the shape of every buffer of one rank for chunks of T tokens and n rows of logits."""
    dim, head_dim = config.hidden_size, config.head_dim
    heads, kv_heads, columns = len(mine.q_heads), len(mine.kv_heads), len(mine.columns)
    return {
        "message": (1, StepMessage.words(tokens, dim)),
        "normed": (tokens, dim),
        "partial": (tokens, dim),
        "q": (tokens, heads * head_dim),
        "k": (tokens, kv_heads * head_dim),
        "v": (tokens, kv_heads * head_dim),
        "attended": (tokens, heads * head_dim),
        "gate": (tokens, columns),
        "up": (tokens, columns),
        "cos": (tokens, head_dim // 2),
        "sin": (tokens, head_dim // 2),
        "last": (logits, dim),
        "logits_loc": (logits, len(mine.rows)),
        "logits": (logits if mine.rank == 0 else 0, config.vocab_size),
    }


def buffer_bytes(config: ModelConfig, mine: RankCut, tokens: int, logits: int) -> int:
    """Return the bytes of all buffers of one rank."""
    shapes = buffer_shapes(config, mine, tokens, logits)
    return sum(4 * math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class Buffers:
    """The buffers of one rank, all float32."""

    message: np.ndarray  # [1, .], in which hidden [T, D] lies
    normed: np.ndarray  # [T, D]
    partial: np.ndarray  # [T, D]
    q: np.ndarray  # [T, H_loc Hd]
    k: np.ndarray  # [T, K_loc Hd]
    v: np.ndarray  # [T, K_loc Hd]
    attended: np.ndarray  # [T, H_loc Hd]
    gate: np.ndarray  # [T, F_loc]
    up: np.ndarray  # [T, F_loc]
    cos: np.ndarray  # [T, Hd/2]
    sin: np.ndarray  # [T, Hd/2]
    last: np.ndarray  # [n, D]
    logits_loc: np.ndarray  # [n, V_loc]
    logits: np.ndarray  # [n, V] on rank 0, else [0, V]

    @classmethod
    def allocate(cls, config: ModelConfig, mine: RankCut, tokens: int, logits: int) -> Buffers:
        """Return buffers for chunks of up to `tokens` tokens and `logits` rows of logits."""
        shapes = buffer_shapes(config, mine, tokens, logits)
        return cls(**{name: np.empty(shape, np.float32) for name, shape in shapes.items()})
