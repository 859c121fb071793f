"""One text after a prompt: how its tokens are chosen on rank 0, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpimpi.checkpoint.text_stream import TextStream
from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.engine.request import Constraint, Piece, Token
from tpimpi.engine.sampler import Sampler, log_probabilities
from tpimpi.engine.settings import GenerationSettings

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class Completion:
    """The text that was made after a prompt. Seconds since it was asked for.

    It finished by `stop` (an end token, a stop text), `length` (as long as could be), or was left
    half-way: `cancelled`. Of the prompt `cached_tokens` were found computed.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: str
    first_token_seconds: float
    seconds: float
    cached_tokens: int = 0
    tokens: tuple[Token, ...] = ()


class Generation:
    """A text as it is made, token by token; `completion` is what has come so far.

    `length` is how many tokens it may get.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], settings: GenerationSettings,
        eos_ids: Sequence[int], length: int, constraint: Constraint | None = None,
    ):  # fmt: skip
        self.prompt_tokens, self.cached_tokens = len(prompt_ids), 0
        self.ids = list(prompt_ids)  # and those that were made
        self.reason = ""  # why it has ended
        self._length, self._wanted = length, settings.logprobs
        self._sampler, self._constraint = Sampler(settings.sampling), constraint
        self._text = TextStream(tokenizer, prompt_ids, settings.stop)
        ignored = settings.ignore_eos and constraint is None
        self._eos = frozenset(() if ignored else eos_ids)
        self._ends = self._eos | frozenset(settings.stop_ids)
        self._tokens: list[Token] = []
        self._parts: list[str] = []
        self._begin = time.perf_counter()
        self.first_token_seconds = self.seconds = 0.0

    @property
    def made(self) -> int:
        """How many tokens it has beyond its prompt."""
        return len(self.ids) - self.prompt_tokens

    @property
    def is_constrained(self) -> bool:
        """Whether it keeps to a structure."""
        return self._constraint is not None

    @property
    def most(self) -> int:
        """How many tokens prompt and text have at most."""
        return self.prompt_tokens + self._length

    def length_at(self, position: int) -> int:
        """Return how long the text was known to be when the token at a position came."""
        return max(self.prompt_tokens, position + 1)

    def push(self, logits: np.ndarray) -> Piece:
        """Choose the next token by logits [V]; `reason` says whether it was the last.

        Raises MachineError where there is no best one.
        """
        allowed = self._constraint.allowed() if self._constraint else None
        token = self._sampler.sample(logits, self.ids, allowed)
        told = self._told(token, logits)
        self.ids.append(token)
        self._tokens.append(told)
        self.seconds = time.perf_counter() - self._begin
        self.first_token_seconds = self.first_token_seconds or self.seconds
        text = ""
        if token in self._ends:
            self.reason = STOP
        else:
            if self._constraint:
                self._constraint.accept(token)
            text = self._text.push(token)
            if self._text.stopped or (self._constraint and self._constraint.complete):
                self.reason = STOP
            elif self.made == self._length:
                self.reason = LENGTH
        if self.reason:
            text += self._text.finish()
            if self._text.stopped:
                self.reason = STOP
        self._parts.append(text)
        return Piece(text, (told,))

    def cancel(self) -> None:
        """End it half-way, if it has not ended."""
        self.reason = self.reason or CANCELLED

    @property
    def completion(self) -> Completion:
        """What was made so far."""
        return Completion(
            self.ids[: self.prompt_tokens], self.ids[self.prompt_tokens :], "".join(self._parts),
            self.reason or CANCELLED, self.first_token_seconds, self.seconds, self.cached_tokens,
            tuple(self._tokens),
        )  # fmt: skip

    def _told(self, token: int, logits: np.ndarray) -> Token:
        if self._wanted is None:
            return Token(token)
        logs = log_probabilities(logits)  # [V]
        count = min(self._wanted, len(logs))
        top = np.argpartition(logs, len(logs) - count)[len(logs) - count :] if count else ()
        best = sorted(((int(i), float(logs[i])) for i in top), key=lambda pair: -pair[1])
        return Token(token, float(logs[token]), tuple(best))
