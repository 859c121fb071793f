"""One text after a prompt: how it is made on rank 0, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tpimpi import status
from tpimpi.checkpoint.text_stream import TextStream
from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.engine.engine import Engine
from tpimpi.engine.figures import decode_rate, made
from tpimpi.engine.sampler import Sampler
from tpimpi.engine.settings import GenerationSettings


@dataclass(frozen=True)
class Completion:
    """The text that was made after a prompt. Seconds.

    It finished by `stop` (an end token, a stop text), `length` (as long as could be), or was left
    half-way: `cancelled`.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: str
    first_token_seconds: float
    seconds: float


class Generation:
    """The pieces of one text as they are made (rank 0); `completion` is what has come so far."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, prompt_ids: Sequence[int],
        settings: GenerationSettings, eos_ids: Sequence[int], length: int,
    ):  # fmt: skip
        self._engine, self._prompt_ids, self._length = engine, list(prompt_ids), length
        self._sampler = Sampler(settings.sampling)
        self._text = TextStream(tokenizer, prompt_ids, settings.stop)
        self._ends = {*settings.stop_ids, *(() if settings.ignore_eos else eos_ids)}
        self._ids: list[int] = []
        self._parts: list[str] = []
        self._reason, self._first, self._seconds = "cancelled", 0.0, 0.0

    def pieces(self) -> Iterator[str]:
        """Yield the text piece by piece."""
        start = time.perf_counter()
        tokens = self._engine.generate(self._prompt_ids, self._sampler, self._length, self._ends)
        for token in tokens:
            self._seconds = time.perf_counter() - start
            self._first = self._first or self._seconds
            self._ids.append(token)
            status.current.figures = made(
                len(self._ids),
                len(self._prompt_ids),
                self._first,
                decode_rate(len(self._ids), self._first, self._seconds),
            )
            if token in self._ends:
                self._reason = "stop"
                break
            if piece := self._text.push(token):
                self._parts.append(piece)
                yield piece
            if self._text.stopped:
                break
        else:
            self._reason = "length"
        if piece := self._text.finish():
            self._parts.append(piece)
            yield piece
        if self._text.stopped:
            self._reason = "stop"
        self._seconds = time.perf_counter() - start

    @property
    def completion(self) -> Completion:
        """What was made so far."""
        return Completion(
            self._prompt_ids, self._ids, "".join(self._parts), self._reason, self._first,
            self._seconds,
        )  # fmt: skip
