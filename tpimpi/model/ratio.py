"""What `--ratio` says: each rank's share of the work, or that the machines are to be measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from tpimpi.errors import UserError

AUTO = "auto"
Ratio = tuple[int, ...] | str | None  # shares in lowest terms, AUTO, or None: equal ones

_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_SHOWN = 40  # characters of a user's text in a sentence about it


def parse_ratio(text: str) -> tuple[int, ...] | str:
    """Return what a text such as `3,2,2,1`, `1.5,1` or `auto` says. Raises ValueError."""
    word = text.strip()
    if word == AUTO:
        return AUTO
    numbers = [_number(part.strip(), word) for part in word.split(",")]
    if not any(numbers):
        raise ValueError(
            f"{_shortened(word)!r} gives no rank a share; one of them must own something"
        )
    return lowest_terms(numbers)


def _number(part: str, whole: str) -> Fraction:
    if _NUMBER.fullmatch(part):
        return Fraction(part)
    if part.startswith("-") and _NUMBER.fullmatch(part[1:]):
        raise ValueError(
            f"{_shortened(part)} is less than nothing; the share of a rank that shall own nothing "
            "is 0"
        )
    raise ValueError(
        f"{_shortened(part)!r} in {_shortened(whole)!r} is no number below a million with at most "
        "6 decimals; write one for each rank, such as 3,2,2,1 or 1.5,1, or auto"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 10]}... ({len(text)} characters)"


def lowest_terms(numbers: Iterable[int | Fraction]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the same proportion; one of them must not be 0."""
    fractions = [Fraction(number) for number in numbers]
    scale = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * scale) for f in fractions]
    divisor = math.gcd(*whole)
    return tuple(number // divisor for number in whole)


def fixed_shares(ratio: Ratio) -> tuple[int, ...] | None:
    """Return the shares that a ratio tells; None where they are equal, or to be measured."""
    return None if isinstance(ratio, str) else ratio


def shares_of(ratio: Sequence[int] | None, ranks: int) -> tuple[int, ...]:
    """Return the shares of so many ranks; equal ones where nothing is said. Raises UserError."""
    if ratio is None:
        return (1,) * ranks
    if len(ratio) != ranks:
        raise UserError(
            f"--ratio {spelled(ratio)} lists {len(ratio)} share{'s' * (len(ratio) > 1)}, but there "
            f"{'are' if ranks > 1 else 'is'} {ranks} rank{'s' * (ranks > 1)}; give one for each, "
            "or auto"
        )
    return tuple(ratio)


def spelled(shares: Sequence[int]) -> str:
    """Return shares as `--ratio` takes them, cut where they are too many to be read."""
    if len(shares) <= 20:
        return ",".join(map(str, shares))
    return ",".join(map(str, shares[:16])) + f",... ({len(shares)} shares)"
