"""What goes between the engine and those who ask it: tokens, pieces of text, what may come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Token:
    """A token that was taken.

    Its log-probability and those of the likeliest, best first, are the model's own: before
    temperature, penalties and filters. None and nothing where they were not asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came of one pass for a text: tokens, and the text that no later token can change."""

    text: str
    tokens: tuple[Token, ...]


class Constraint(Protocol):
    """What may come next in one text, such as what a grammar allows."""

    @property
    def complete(self) -> bool:
        """Whether the text may end here and nothing but its end can follow."""

    def allowed(self) -> np.ndarray | None:
        """Return which tokens may come next, bool [V]; None: any."""

    def accept(self, token: int) -> None:
        """Go on after a token that was taken; end tokens are not told."""
