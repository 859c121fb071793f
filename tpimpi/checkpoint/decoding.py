"""Ids to text, one at a time: a character is held back until all its bytes have come."""

from __future__ import annotations

import codecs
from collections.abc import Callable

Piece = str | bytes | None
_BAD = "\N{REPLACEMENT CHARACTER}"


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """Put one replacement character for each byte of no character, as sentencepiece does."""
    assert isinstance(error, UnicodeDecodeError)
    return _BAD * (error.end - error.start), error.end


codecs.register_error("tpimpi-each-byte", _each_byte)


class Decoding:
    """Turn ids into text as they come. `Tokenizer.decode` goes the same way, so both agree always.

    `piece(id, before)` is the text or the bytes of an id that follows `before` (None: the first),
    None where it has no text. `strip` spaces are taken from the beginning of the whole text.
    """

    def __init__(
        self, piece: Callable[[int, int | None], Piece], strip: int = 0, each_byte: bool = True
    ):
        self._piece, self._strip = piece, strip
        errors = "tpimpi-each-byte" if each_byte else "replace"
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors)
        self._before: int | None = None

    def piece(self, token: int, before: int | None) -> Piece:
        """Return the text or the bytes of an id that follows `before`, None where it has none."""
        return self._piece(token, before)

    def push(self, token: int) -> str:
        """Add one id; return the text that no later id can change."""
        piece = self._piece(token, self._before)
        if piece is None:
            return ""
        self._before = token
        if isinstance(piece, bytes):
            return self._stripped(self._bytes.decode(piece))
        return self._stripped(self._bytes.decode(b"", final=True) + piece)

    def finish(self) -> str:
        """Return the text of a character that was never completed."""
        return self._stripped(self._bytes.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(" "):
                self._strip = 0
                break
            self._strip, text = self._strip - 1, text[1:]
        return text
