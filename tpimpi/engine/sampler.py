"""Logits -> one token, by a seeded generator: the filters in the order that Transformers has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalty 1 are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 42


class Sampler:
    """Sample tokens one after another; the same seed and logits give the same tokens."""

    def __init__(self, settings: SamplingSettings):
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """Return a token id for logits [V]; `history` are the ids the repeat penalty looks at."""
        s = self._settings
        scores = logits.astype(np.float64)  # [V], a copy
        if s.repeat_penalty != 1.0 and len(history):
            seen = np.unique(np.asarray(history))
            values = scores[seen]
            scores[seen] = np.where(
                values > 0, values / s.repeat_penalty, values * s.repeat_penalty
            )
        if s.temperature == 0:
            return int(scores.argmax())
        scores /= s.temperature
        if 0 < s.top_k < len(scores):
            scores[scores < np.partition(scores, -s.top_k)[-s.top_k]] = -np.inf
        probabilities = _softmax(scores)
        if s.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")  # the lower id first on a tie
            before = np.cumsum(probabilities[order]) - probabilities[order]
            probabilities[order[1:][before[1:] >= s.top_p]] = 0.0  # the first always stays
        if s.min_p > 0:
            probabilities[probabilities < s.min_p * probabilities.max()] = 0.0
        cumulative = np.cumsum(probabilities)
        at = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(min(at, np.flatnonzero(probabilities)[-1]))


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
