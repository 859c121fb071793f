"""A model's tokens as llguidance has them: by their bytes, each of which a mask allows or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tpimpi.checkpoint.decoding import Piece
from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

_NEEDED = {chr(code) for code in range(32, 127)}  # what every JSON text may be made of
_MADE: WeakKeyDictionary[Tokenizer, dict[tuple, Vocabulary]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model: `size` of them (V), of which `end_ids` end a text.

    For llguidance the text's end is one more token, `size`, so that a model without an end token
    has one, too, and all of several ones mean the same.
    """

    size: int
    end_ids: tuple[int, ...]
    letters: dict[bytes, int]  # the token of each single byte
    blank: np.ndarray  # bool [V]: which are nothing but blanks
    tokens: Any  # llguidance's LLTokenizer of V + 1 tokens


def vocabulary_of(tokenizer: Tokenizer, config: ModelConfig) -> Vocabulary:
    """Return the tokens of a model, made once and kept as long as its tokenizer is.

    Safe in any thread. Raises UserError without llguidance, and for a tokenizer whose tokens have
    no text of their own.
    """
    key = (config.vocab_size, config.eos_token_ids)
    with _LOCK:
        made = _MADE.setdefault(tokenizer, {})
        if key not in made:
            made[key] = _made(tokenizer, *key)
        return made[key]


def token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes | None]:
    """Return the bytes of the ids 0 to `size` - 1, None for those that are no text.

    They are what the tokenizer decodes the ids to, wherever these stand, but for spaces that it
    takes from the beginning of a text. Raises UserError where they depend on other tokens.
    """
    piece = tokenizer.decoding().piece
    # A decoder by pairs takes a space from the first token of a text: so each stands behind others.
    anchors = _anchors(piece, size)
    found = [_bytes(piece(token, anchors[0])) for token in range(size)]
    for token, one in enumerate(found):
        if (other := _bytes(piece(token, anchors[1]))) != one:
            raise UserError(
                f"the tokenizer writes token {token} as {one!r} or {other!r} after other tokens, "
                "so an answer can't be kept to a structure; leave response_format and tools out"
            )
    return found


def _anchors(piece: Callable[[int, int | None], Piece], size: int) -> tuple[int | None, int | None]:
    """Return two tokens to look at others behind: the first and the last of one letter."""
    first, last = (
        next((i for i in ids if _is_plain(_bytes(piece(i, None)))), None)
        for ids in (range(size), reversed(range(size)))
    )
    return first, last


def _is_plain(piece: bytes | None) -> bool:
    return piece is not None and len(piece) == 1 and piece.isalnum()


def _bytes(piece: Piece) -> bytes | None:
    return piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece


def _made(tokenizer: Tokenizer, size: int, end_ids: tuple[int, ...]) -> Vocabulary:
    library = llguidance()
    found = token_bytes(tokenizer, size)
    for token in end_ids:
        found[token] = None
    letters = {piece: i for i, piece in enumerate(found) if piece is not None and len(piece) == 1}
    if missing := sorted(_NEEDED - {chr(letter[0]) for letter in letters}):
        raise UserError(
            f"the tokenizer has no token for {missing[0]!r} alone, so an answer can't be kept to "
            "a structure; leave response_format and tools out"
        )
    # llguidance takes what begins with 0xff for no text; an empty one is never allowed.
    tokens = [_special(i) if piece is None else piece for i, piece in enumerate(found)]
    none = [i for i, piece in enumerate(found) if piece is None] + [size]
    wrapped = library.TokenizerWrapper(_Tokens([*tokens, _special(size)], none, size))
    made = library.LLTokenizer(wrapped, n_vocab=size + 1, eos_token=[size])
    blank = np.array([bool(piece) and not piece.strip() for piece in found])
    return Vocabulary(size, end_ids, letters, blank, made)


def _special(token: int) -> bytes:
    return b"\xff<|%d|>" % token


class _Tokens:
    """What llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int):
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end

    def __call__(self, text: str) -> list[int]:
        """Cut a text to tokens: only for a grammar that forces them, which none of ours does."""
        raise NotImplementedError("grammars have no_forcing")


def llguidance() -> Any:
    """Return the library; UserError says how to install it."""
    try:
        import llguidance as library
    except ImportError as error:
        raise UserError(
            f"response_format and tools need the library llguidance ({error}); install it: "
            "pip install 'tpimpi[serve]'"
        ) from error
    return library
