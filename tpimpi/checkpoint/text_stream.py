"""Text as it is generated, held back while it may be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpimpi.errors import UserError

if TYPE_CHECKING:
    from tpimpi.checkpoint.tokenizer import Tokenizer


def check_stops(stops: Sequence[str]) -> None:
    """Refuse a stop string that every text would begin with."""
    if "" in stops:
        raise UserError("--stop is empty; give the text to stop before, or leave the flag out")


class TextStream:
    """Turn ids into text as they come, up to the first place where a stop string begins.

    A stop that is a special token of the tokenizer ends the text where that token comes, though it
    has no text itself. Where the text ends does not depend on how it was cut into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()):
        check_stops(stops)
        self._stops = tuple(stops)
        special = tokenizer.special_ids
        self._stop_ids = {special[stop] for stop in stops if stop in special}
        self._decoding = tokenizer.decoding()
        for token in prompt_ids:
            self._decoding.push(int(token))  # its text decides about spaces and half characters
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one id; return the text that is ready."""
        if self.stopped:
            return ""
        if token in self._stop_ids:
            text = self.finish()
            self.stopped = True
            return text
        return self._release(self._decoding.push(int(token)), False)

    def finish(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._release(self._decoding.finish(), True)

    def _release(self, text: str, last: bool) -> str:
        if not text and not last:
            return ""
        self._held += text
        end = len(self._held)
        cut = min((at for s in self._stops if (at := self._held.find(s)) >= 0), default=end)
        # A stop that may have begun before the one found would cut earlier: wait for its end.
        begun = (
            end if last else min((_begin(self._held, stop) for stop in self._stops), default=end)
        )
        self.stopped = cut < end and cut <= begun
        ready = self._held[: min(cut, begun)]
        self._held = "" if self.stopped else self._held[len(ready) :]
        return ready


def _begin(text: str, stop: str) -> int:
    """Return where at the end of `text` a beginning of `stop` begins; its length if nowhere."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return len(text) - length
    return len(text)
