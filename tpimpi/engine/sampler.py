"""Logits -> one token, by a seeded generator; what is no number is refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tpimpi.engine.settings import SamplingSettings
from tpimpi.errors import MachineError

_SMALLEST = np.finfo(np.float64).tiny  # below it numbers lose digits and their inverses overflow
_ROUNDING = 1e-9  # more than the rounding of a sum over a million probabilities


class Sampler:
    """Sample tokens one after another; the same seed and logits give the same tokens."""

    def __init__(self, settings: SamplingSettings):
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self._made: dict[int, int] = {}  # how often each token was taken
        self._bias = _pairs(dict(settings.logit_bias).items())  # ids, what is added to theirs

    def sample(
        self, logits: np.ndarray, history: Sequence[int], allowed: np.ndarray | None = None
    ) -> int:
        """Return a token id for logits [V]; `history` are the ids the repeat penalty looks at.

        The other penalties look at what this sampler has returned. Logits of -inf are never taken,
        nor tokens that are not `allowed` (bool [V]; None: all are). Raises MachineError where there
        is no best one.
        """
        token = self._sample(logits, history, allowed)
        self._made[token] = self._made.get(token, 0) + 1
        return token

    def _sample(
        self, logits: np.ndarray, history: Sequence[int], allowed: np.ndarray | None
    ) -> int:
        check_logits(logits)
        s, memory = self._settings, _memory(len(logits))
        scores = memory[0]
        scores[...] = logits  # [V]
        if len(self._bias[0]):
            scores[self._bias[0]] += self._bias[1]
        if allowed is not None:
            scores[~allowed] = -np.inf
            if not allowed.any():
                raise MachineError("no token is allowed here: the structure can't be completed")
        with np.errstate(over="ignore"):  # to -inf, which is a probability of 0
            if s.repeat_penalty != 1.0 and len(history):
                seen = np.asarray(history)
                values = scores[seen]
                scores[seen] = np.where(
                    values > 0, values / s.repeat_penalty, values * s.repeat_penalty
                )
            if (s.presence_penalty or s.frequency_penalty) and self._made:
                ids, counts = _pairs(self._made.items())
                scores[ids] -= s.presence_penalty + s.frequency_penalty * counts
            if s.temperature < _SMALLEST or not np.isfinite(scores.max() / s.temperature):
                return int(scores.argmax())
            scores /= s.temperature
            probabilities = self._softmax_of_top_k(memory)
        if s.top_p < 1:
            self._keep_top_p(probabilities, memory)
        if s.min_p > 0:
            probabilities *= probabilities >= s.min_p * probabilities.max()
        cumulative = np.cumsum(probabilities, out=memory[1])  # [V]
        # random() < 1, so the product is below the last sum and the token's probability is not 0.
        return int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))

    def _softmax_of_top_k(self, memory: np.ndarray) -> np.ndarray:
        """Turn the scores [V] into probabilities, in place; 0 for what is not of the top k."""
        scores, work, _ = memory
        k = self._settings.top_k
        top = None
        if 0 < k < len(scores):
            work[...] = scores
            work.partition(len(scores) - k)
            top = scores >= work[-k]  # all that tie with the last one stay
        scores -= scores.max()
        np.exp(scores, out=scores)
        if top is not None:
            scores *= top
        scores /= scores.sum()
        return scores

    def _keep_top_p(self, probabilities: np.ndarray, memory: np.ndarray) -> None:
        """Set to 0 all but the most likely tokens that make up top_p, at least one.

        Only values are sorted, and only those above a floor: what lies below it adds up to less
        than 1 - top_p. On a tie the lower ids stay.
        """
        _, work, before = memory
        top_p, size = self._settings.top_p, len(probabilities)
        ids = np.flatnonzero(probabilities > max((1 - top_p - _ROUNDING) / size, 0.0))  # [n]
        rising, before = work[: len(ids)], before[: len(ids)]  # [n], below 0
        np.negative(probabilities.take(ids), out=rising)
        rising.sort()
        np.cumsum(rising, out=before)
        before -= rising
        beyond = before <= -top_p
        beyond[0] = False
        count = int(beyond.argmax()) or len(ids)
        least = -rising[count - 1]
        probabilities *= probabilities >= least
        ties = np.flatnonzero(probabilities == least)
        probabilities[ties[count - rising.searchsorted(-least) :]] = 0.0


_own = threading.local()


def _memory(size: int) -> np.ndarray:
    """Return memory [3, V] of this thread, taken once: fresh pages cost more than the sums."""
    memory = getattr(_own, "memory", None)
    if memory is None or memory.shape[1] != size:
        memory = _own.memory = np.empty((3, size))
    return memory


def _pairs(items) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and the numbers of pairs of both."""
    table = np.array([*items], np.float64).reshape(-1, 2)
    return table[:, 0].astype(np.intp), table[:, 1]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the natural logarithms of the probabilities that logits [V] stand for, float64 [V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide


def check_logits(logits: np.ndarray) -> None:
    """Raise MachineError where a logit is NaN or inf, or all are -inf."""
    best = logits.max()  # NaN where one is NaN
    if not np.isfinite(best):
        raise MachineError(
            f"the logits are not numbers (the largest is {best}): weights of this checkpoint are "
            "damaged or not finite; fetch or make it again"
        )
