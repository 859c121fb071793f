"""One text after a prompt: what is asked for, how it is made on rank 0, what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from tpimpi.checkpoint.tokenizer import TextStream, Tokenizer, check_stops
from tpimpi.engine.engine import Engine
from tpimpi.engine.sampler import Sampler, SamplingSettings
from tpimpi.errors import UserError


@dataclass(frozen=True)
class GenerationSettings:
    """How to go on from a prompt, and where to end. Raises UserError for what makes no sense."""

    max_new_tokens: int = 20
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()  # texts to end before, or special tokens
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        s = self.sampling
        for name, value, low, high in (
            ("max_new_tokens", self.max_new_tokens, 1, math.inf),
            ("temperature", s.temperature, 0, math.inf), ("top_k", s.top_k, 0, math.inf),
            ("top_p", s.top_p, 0, 1), ("min_p", s.min_p, 0, 1),
            ("repeat_penalty", s.repeat_penalty, 1e-3, math.inf), ("seed", s.seed, 0, math.inf),
        ):  # fmt: skip
            if not isinstance(value, int | float) or not low <= value <= high:
                limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise UserError(f"{name} is {value!r}, but must be {limits}")
        check_stops(self.stop)

    @classmethod
    def of(cls, **choices) -> GenerationSettings:
        """Return settings from the names of this class's and SamplingSettings' fields."""
        own = {f.name for f in fields(cls)} - {"sampling"}
        sampling = {f.name for f in fields(SamplingSettings)}
        for name in choices:
            if name not in own | sampling:
                known = ", ".join(sorted(own | sampling))
                raise UserError(f"there is no choice {name!r}; known are {known}")
        for name in ("stop", "stop_ids"):
            if name in choices:
                value = choices[name]
                choices[name] = (value,) if isinstance(value, str | int) else tuple(value)
        return cls(
            sampling=SamplingSettings(**{n: v for n, v in choices.items() if n in sampling}),
            **{n: v for n, v in choices.items() if n in own},
        )


@dataclass(frozen=True)
class Completion:
    """The text that was made after a prompt. Seconds."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: str  # stop: an end token or a stop text; length: as long as could be
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
        self._reason, self._first, self._seconds = "length", 0.0, 0.0

    def pieces(self) -> Iterator[str]:
        """Yield the text piece by piece."""
        start = time.perf_counter()
        tokens = self._engine.generate(self._prompt_ids, self._sampler, self._length, self._ends)
        for token in tokens:
            self._seconds = time.perf_counter() - start
            self._first = self._first or self._seconds
            self._ids.append(token)
            if token in self._ends:
                self._reason = "stop"
                break
            if piece := self._text.push(token):
                self._parts.append(piece)
                yield piece
            if self._text.stopped:
                break
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
