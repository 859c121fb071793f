"""Values out of config.json, each checked for its kind as it is taken; null is the default."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from tpimpi.errors import UserError

# RoPE's positions are float32, which counts exactly up to here; and no known model has a tenth of
# it in any direction, while tensors of 2**24 x 2**24 numbers still have sizes that an int64 holds.
MOST = 1 << 24
LARGEST = float(np.finfo(np.float32).max)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def shown(value: Any) -> str:
    """Return a value as a sentence shows it: whole where it is short."""
    return _short.repr(value)


class Fields:
    """The values of one JSON object of a model, by their names. Raises UserError."""

    def __init__(self, name: str, values: dict[str, Any], file: str = "config.json"):
        self.name, self.file, self._values = name, file, values

    def get(self, key: str) -> Any:
        """Return a value as it stands; None where it is null or missing."""
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Return whether a value is given, be it null."""
        return key in self._values

    def refusal(self, key: str, must: str) -> UserError:
        """Return the sentence that a value must be something else."""
        return UserError(f"{self.name}: {self.file} has {key} = {shown(self.get(key))}, {must}")

    def count(self, key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """Return an integer from `least` to `most`."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise self.refusal(key, f"which must be {kind}")
        if value > most:
            raise self.refusal(key, f"but tpimpi takes at most {most:,}; config.json is wrong")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a positive number that is one in float32, too."""
        value = self.get(key)
        value = default if value is None else value
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not 0 < value <= LARGEST or not np.float32(value) > 0:
            raise self.refusal(key, "which must be a positive number that float32 can hold")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; a text or a number is neither."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refusal(key, "which must be true or false")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """Return a JSON object, empty where there is none."""
        value = self.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.refusal(key, "which must be an object")
        return value
