"""How to choose tokens and where to end: what a text is asked for with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

from tpimpi.checkpoint.text_stream import check_stops
from tpimpi.errors import UserError

LOGITS_BYTES = 32 << 20  # of rank 0, for the logits of one pass that scores
MOST_PENALTY, MOST_BIAS = 2.0, 100.0  # either way, as OpenAI's API allows


def whole_number(name: str, value, low: int) -> int:
    """Return what a caller has given as an int. Raises UserError for what is none."""
    if not isinstance(value, Integral):
        raise UserError(f"{name} is {value!r}, but must be a whole number")
    if value < low:
        raise UserError(f"{name} is {value}, but must be at least {low}")
    return int(value)


def _number(name: str, value, low: float, high: float | None = None) -> None:
    """Refuse what is no number, or not one from `low` to `high`. Raises UserError."""
    try:
        real = float(value) if isinstance(value, Real) else None
    except OverflowError:
        real = math.inf
    if real is None:
        raise UserError(f"{name} is {value!r}, but must be a number")
    if not math.isfinite(real) or real < low or (high is not None and real > high):
        limits = f"at least {low}, and finite" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {real}, but must be {limits}")


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalty 1 are off.

    A temperature so near to 0 that the best score divided by it overflows is greedy, too: every
    lower score has a probability of 0 then.

    `logit_bias` is added to the logits of ids. `repeat_penalty` divides those of tokens in prompt
    and text (Keskar et al. 2019, arXiv:1909.05858). Of a token that the text has c times,
    `presence_penalty` is taken off once and `frequency_penalty` c times, as OpenAI's API has it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 42
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added)


@dataclass(frozen=True)
class GenerationSettings:
    """How to go on from a prompt, and where to end. Raises UserError for what makes no sense."""

    max_new_tokens: int = 20
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()  # texts to end before, or special tokens
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # of each token, and of so many likeliest; None: of none

    def __post_init__(self) -> None:
        s = self.sampling
        whole_number("max_new_tokens", self.max_new_tokens, 1)
        whole_number("top_k", s.top_k, 0)
        whole_number("seed", s.seed, 0)
        if self.logprobs is not None:
            whole_number("logprobs", self.logprobs, 0)
        _number("temperature", s.temperature, 0)
        _number("top_p", s.top_p, 0, 1)
        _number("min_p", s.min_p, 0, 1)
        _number("repeat_penalty", s.repeat_penalty, 1e-3)
        _number("presence_penalty", s.presence_penalty, -MOST_PENALTY, MOST_PENALTY)
        _number("frequency_penalty", s.frequency_penalty, -MOST_PENALTY, MOST_PENALTY)
        for pair in s.logit_bias:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(
                    f"logit_bias holds {pair!r}, but must be pairs of an id and a number"
                )
            token, bias = pair
            whole_number("an id of logit_bias", token, 0)
            _number(f"the logit_bias of id {token}", bias, -MOST_BIAS, MOST_BIAS)
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos is {self.ignore_eos!r}, but must be True or False")
        for stop in self.stop:
            if not isinstance(stop, str):
                raise UserError(f"stop holds {stop!r}, but must be texts; ids are stop_ids")
        for stop in self.stop_ids:
            whole_number("an id of stop_ids", stop, 0)
        check_stops(self.stop)

    @classmethod
    def of(cls, defaults: Mapping[str, object] | None = None, **choices) -> GenerationSettings:
        """Return settings from the names of this class's and SamplingSettings' fields.

        What they are silent about is in `defaults`, by the same names.
        """
        choices = {**(defaults or {}), **choices}
        own = {f.name for f in fields(cls)} - {"sampling"}
        sampling = {f.name for f in fields(SamplingSettings)}
        for name in choices:
            if name not in own | sampling:
                known = ", ".join(sorted(own | sampling))
                raise UserError(f"there is no choice {name!r}; known are {known}")
        for name in ("stop", "stop_ids"):
            if name in choices:
                value = choices[name]
                one = isinstance(value, str | bytes) or not isinstance(value, Iterable)
                choices[name] = () if value is None else (value,) if one else tuple(value)
        if "logit_bias" in choices:
            bias = choices["logit_bias"] or ()
            if not isinstance(bias, Iterable):
                raise UserError(f"logit_bias is {bias!r}, but must be {{id: what is added}}")
            choices["logit_bias"] = tuple(bias.items() if isinstance(bias, Mapping) else bias)
        return cls(
            sampling=SamplingSettings(**{n: v for n, v in choices.items() if n in sampling}),
            **{n: v for n, v in choices.items() if n in own},
        )
