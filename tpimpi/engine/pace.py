"""How much of a prompt goes into a pass beside texts that are being made, so that they go on."""

from __future__ import annotations

FIRST, LEAST = 32, 16  # tokens: before anything is known; as many hardly cost more than one
SLOWER = 2.0  # times as long as without it a pass with a part of a prompt may take
_MEMORY = 0.8  # of what was known before, beside one more measurement


class Pace:
    """Learn from passes how long they take, and how much longer with tokens of prompts."""

    def __init__(self) -> None:
        self._step: float | None = None  # seconds of a pass without prompts
        self._token: float | None = None  # ... more for each token of one

    def learn(self, made: int, prompt: int, seconds: float) -> None:
        """Take note of a pass of `made` tokens of texts and `prompt` tokens of prompts."""
        if made and not prompt:
            self._step = _mixed(self._step, seconds)
        elif prompt >= LEAST:
            more = max(seconds - (self._step or 0.0) * bool(made), 1e-9) / prompt
            self._token = _mixed(self._token, more)

    def prompt_tokens(self, making: bool, most: int) -> int:
        """Return how many tokens of prompts the next pass may have, `most` at most.

        `making`: beside texts that are being made, which get on at half their pace at least.
        """
        if not making:
            return most
        if self._step is None or self._token is None:
            return min(FIRST, most)
        return min(max(int((SLOWER - 1) * self._step / self._token), LEAST), most)


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else _MEMORY * before + (1 - _MEMORY) * now
