"""How answers are chosen: what was said about it by name, over what the model's own files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import UserError

# What /set knows: the name, what a value is, where it lies.
_KINDS = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "repeat_penalty": float,
    "presence_penalty": float, "frequency_penalty": float, "seed": int, "length": int,
}  # fmt: skip
_NAMES = {"length": "max_new_tokens"}  # others are called the same in GenerationSettings
_SAID = (*(_NAMES.get(name, name) for name in _KINDS), "logit_bias", "stop", "stop_ids",
         "ignore_eos")  # fmt: skip
UNSAID = "default"  # as a value: what was said is taken back
_SHOWN = ("temperature", "top_k", "top_p", "min_p", "seed")
_CALLED = {key: name for name, key in _NAMES.items()}


class Choices:
    """What was `said` of GenerationSettings by name, over the model's own, by name as well.

    Where no length is said it is `length` tokens, or (None) what the context has left. Each answer
    has a seed of its own, counted up from the one that was said, so that an answer that is tried
    again is another one, and all of them come again in another run. Raises UserError.
    """

    def __init__(
        self, said: Mapping[str, Any], model: Mapping[str, object], seed: int,
        length: int | None = None, stop: tuple[str, ...] = (),
    ):  # fmt: skip
        self._said, self._model, self._seed = dict(said), model, seed
        self._length, self._stop, self._answers = length, stop, 0
        self._made()

    def set(self, typed: str, text: str) -> str:
        """Say the value of one thing from now on; return what is told of that.

        The name may be typed with hyphens. Raises UserError, which calls it as it was typed.
        """
        name = typed.replace("-", "_")
        if name not in _KINDS:
            raise UserError(f"there is no setting {typed!r}; there are {', '.join(_KINDS)}")
        key = _NAMES.get(name, name)
        before = dict(self._said)
        if text == UNSAID:
            self._said.pop(key, None)
            return self._told(name)
        try:
            self._said[key] = _KINDS[name](text)
        except ValueError:
            what = "whole number" if _KINDS[name] is int else "number"
            raise UserError(f"{typed} is {text!r}, but must be a {what}, or {UNSAID}") from None
        try:
            self._made()
        except UserError as error:
            self._said = before
            raise UserError(str(error).replace(key, typed, 1)) from None
        if name == "seed":
            self._answers = 0
        return self._told(name)

    def next(self, room: int) -> GenerationSettings:
        """Return the settings of the next answer, where the context has so many tokens left."""
        made = self._made()
        seed = made.sampling.seed + self._answers
        self._answers += 1
        return replace(
            made, max_new_tokens=min(self.length(room), room),
            sampling=replace(made.sampling, seed=seed),
        )  # fmt: skip

    def length(self, room: int) -> int:
        """Return how many tokens an answer is to have at most, where there is so much room."""
        return self._said.get("max_new_tokens", self._length or room)

    def said(self) -> dict[str, Any]:
        """Return what was said, by name."""
        return dict(self._said)

    def take(self, said: Mapping[str, Any]) -> None:
        """Say all this in place of what was said. Raises UserError."""
        for name in said:
            if name not in _SAID:
                raise UserError(f"there is no setting {name!r}; there are {', '.join(_SAID)}")
        before, self._said = self._said, dict(said)
        try:
            self._made()
        except UserError:
            self._said = before
            raise

    def lines(self) -> list[str]:
        """Return what /set tells: each name, its value, whether it was said."""
        return [self._line(name) for name in _KINDS]

    def line(self) -> str:
        """Return the settings that matter most, for people."""
        made = asdict(self._made().sampling)
        return ", ".join(f"{name} {made[name]}" for name in _SHOWN)

    def _told(self, name: str) -> str:
        """Return a name with its value, and everything else that was said."""
        key = _NAMES.get(name, name)
        others = [f"{_CALLED.get(n, n)} {v}" for n, v in self._said.items() if n != key]
        return self._line(name) + (f"; also set: {', '.join(others)}" if others else "")

    def _line(self, name: str) -> str:
        key, made = _NAMES.get(name, name), asdict(self._made().sampling)
        value = made.get(key, self._said.get(key, self._length or "what the context has left"))
        return f"{name} {value}" + ("" if key in self._said else f" ({UNSAID})")

    def _made(self) -> GenerationSettings:
        said = {"seed": self._seed} | self._said
        stop = said.pop("stop", ())
        if not isinstance(stop, tuple):
            raise UserError(f"stop is {stop!r}, but must be texts")
        stop = (*self._stop, *stop)
        return GenerationSettings.of(self._model, stop=stop, **said)
