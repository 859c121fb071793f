"""How to choose tokens and where to end: what a text is asked for with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from tpimpi.checkpoint.text_stream import check_stops
from tpimpi.errors import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalty 1 are off.

    A temperature so near to 0 that the best score divided by it overflows is greedy, too: every
    lower score has a probability of 0 then.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 42


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
            if not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
                limits = f"from {low} to {high}" if high < math.inf else f"finite, at least {low}"
                raise UserError(f"{name} is {value!r}, but must be {limits}")
        for name in ("max_new_tokens", "top_k", "seed"):
            value = getattr(self, name, getattr(s, name, None))
            if not isinstance(value, int):
                raise UserError(f"{name} is {value!r}, but must be a whole number")
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
