"""Text <-> ids: the tokenizer of a Hugging Face directory, whichever of its files it is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tpimpi.checkpoint.decoding import Decoding
from tpimpi.checkpoint.text_stream import TextStream, check_stops
from tpimpi.checkpoint.tokenizer_json import JsonTokenizer
from tpimpi.checkpoint.tokenizer_model import SentencePieceTokenizer
from tpimpi.checkpoint.tokenizer_settings import read_settings, switch
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.directory import exists

__all__ = ["TextStream", "Tokenizer", "check_stops", "load_tokenizer"]

_LONG = 1 << 16  # characters from which on it is worth knowing beforehand that they are too many


class Coder(Protocol):
    """What a kind of tokenizer file can do."""

    vocab_size: int
    special_ids: dict[str, int]

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Return the ids of `text`, after the tokenizer's own special ones if `add_bos`."""

    def decoding(self) -> Decoding:
        """Return what turns ids into text as they come."""

    def fewest(self, text: str) -> int:
        """Return how many tokens `text` has at least, without cutting it to pieces."""


class Tokenizer:
    """A directory's tokenizer: no id that it gives lies beyond the model's vocabulary.

    `special_ids` are the ids of the tokens that are no text, by how they are written in a prompt.
    """

    def __init__(self, coder: Coder, config: ModelConfig):
        self._coder, self._vocabulary = coder, config.vocab_size
        self.vocab_size, self.special_ids = coder.vocab_size, coder.special_ids
        self._special_texts = {token: text for text, token in coder.special_ids.items()}
        self._whole = coder.decoding()
        self.encode("")  # the special ones around every text

    def encode(self, text: str, add_bos: bool = True, most: int | None = None) -> list[int]:
        """Return the ids of `text`, after the tokenizer's own special ones if `add_bos`.

        A long text that certainly has more than `most` tokens is refused before it is cut to them.
        UserError for that, for what is no Unicode text, and for ids beyond the vocabulary.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text can't be encoded as UTF-8 at character {error.start + 1} "
                f"({text[error.start]!a}); correct it"
            ) from error
        if most is not None and len(text) > max(_LONG, most):
            fewest = self._coder.fewest(text)
            if fewest > most:
                raise UserError(
                    f"the text of {len(text)} characters has {fewest} tokens or more, but at most "
                    f"{most} can be taken; shorten it"
                )
        ids = self._coder.encode(text, add_bos)
        for token in (max(ids, default=0), min(ids, default=0)):
            if not 0 <= token < self._vocabulary:
                raise UserError(
                    f"the tokenizer gives id {token}, but the model's vocabulary has "
                    f"{self._vocabulary} tokens; they are of different models"
                )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens; ids beyond the vocabulary are no text."""
        decoding = self.decoding()
        return "".join([decoding.push(int(i)) for i in ids] + [decoding.finish()])

    def token_bytes(self, token: int) -> bytes:
        """Return what one id is inside a text; a special token as it is written in a prompt."""
        special = self._special_texts.get(token)
        piece = self._whole.piece(token, None) if special is None else special
        return piece if isinstance(piece, bytes) else (piece or "").encode()

    def decoding(self) -> Decoding:
        """Return what turns ids into text as they come; `decode` goes the same way."""
        return self._coder.decoding()


def load_tokenizer(directory: str | Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a Hugging Face directory. Raises UserError."""
    directory = Path(directory)
    settings = read_settings(directory, "tokenizer_config.json")
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"):
        switch(f"{directory}: tokenizer_config.json", settings, key, False)
    model = read_settings(directory, "config.json")
    kind = str(settings.get("tokenizer_class") or model.get("tokenizer_class"))
    kind, llama = kind.removesuffix("Fast"), model.get("model_type") == "llama"
    if exists(directory / "tokenizer.json"):
        return Tokenizer(JsonTokenizer(directory, kind, llama), config)
    if exists(directory / "tokenizer.model"):
        return Tokenizer(SentencePieceTokenizer(directory, config, kind, llama), config)
    raise UserError(
        f"{directory} has no tokenizer: neither tokenizer.json nor tokenizer.model; fetch one"
    )
