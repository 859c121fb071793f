"""Text <-> ids: sentencepiece for tokenizer.model, tokenizers for tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tpimpi.config import ModelConfig
from tpimpi.errors import UserError

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What the program asks of a tokenizer."""

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the ids of `text`, after the tokenizer's own special ones if `add_bos`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens; ids beyond the vocabulary are no text."""


def load_tokenizer(directory: str | Path, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a Hugging Face directory. Raises UserError."""
    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").exists():
            return JsonTokenizer(directory)
        if (directory / "tokenizer.model").exists():
            return SentencePieceTokenizer(directory, config)
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare Exception and RuntimeError
        raise UserError(
            f"the tokenizer of {directory} can't be read ({str(error).splitlines()[0]}); fetch it "
            "again"
        ) from error
    raise UserError(
        f"{directory} has no tokenizer: neither tokenizer.json nor tokenizer.model; fetch one"
    )


class JsonTokenizer:
    """tokenizer.json; its post-processor decides about special tokens."""

    def __init__(self, directory: Path):
        from tokenizers import Tokenizer as Fast

        self._fast = Fast.from_file(str(directory / "tokenizer.json"))
        self._size = self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the ids of `text`."""
        return self._fast.encode(text, add_special_tokens=add_bos).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._fast.decode([i for i in ids if i < self._size], skip_special_tokens=True)


class SentencePieceTokenizer:
    """tokenizer.model; special tokens written in the text (<s>, </s>) are taken for themselves."""

    def __init__(self, directory: Path, config: ModelConfig):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(
            model_file=str(directory / "tokenizer.model")
        )
        settings = {}
        if (directory / "tokenizer_config.json").exists():
            settings = json.loads((directory / "tokenizer_config.json").read_text())
        self._size = self._pieces.get_piece_size()
        self._legacy = bool(settings.get("legacy", False))
        bos, eos = self._pieces.bos_id(), self._pieces.eos_id()
        bos = bos if bos >= 0 else config.bos_token_id
        self._before = [bos] if settings.get("add_bos_token", True) and bos is not None else []
        self._after = [eos] if settings.get("add_eos_token", False) and eos >= 0 else []
        self._special = {
            self._pieces.id_to_piece(i): i
            for i in (self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id())
            if i >= 0
        }
        self._hidden = set(self._special.values())

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the ids of `text`."""
        ids = [] if not text else self._encode(text)
        return self._before + ids + self._after if add_bos else ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        pattern = "(" + "|".join(re.escape(piece) for piece in self._special) + ")"
        for index, part in enumerate(re.split(pattern, text)):
            if index % 2:
                ids.append(self._special[part])
            elif part:
                # Transformers puts a space before the text, but not before a space, nor after a
                # special token unless the directory asks for the legacy way.
                spaced = (index == 0 or self._legacy) and not part.startswith(" ")
                ids += self._pieces.encode(part) if spaced else self._continued(part)
        return ids

    def _continued(self, text: str) -> list[int]:
        anchor = self._pieces.encode("\n")
        return self._pieces.encode("\n" + text)[len(anchor) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        known = [int(i) for i in ids if i < self._size and i not in self._hidden]
        return self._pieces.decode(known)


class TextStream:
    """Turn ids into text as they come: no half character, no part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        # Text is decoded from a little before, as a token's text depends on what precedes it.
        self._ids = list(prompt_ids[-8:])
        self._start, self._shown = 0, len(self._ids)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one id; return the text that is ready."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        now = self._tokenizer.decode(self._ids[self._start :])
        if now.endswith(_UNFINISHED) and len(self._ids) - self._shown < 8:
            return ""
        text = now[len(before) :]
        self._start, self._shown = max(self._shown - 8, 0), len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back."""
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        rest = self._tokenizer.decode(self._ids[self._start :])[len(before) :]
        self._shown = len(self._ids)
        text = self._release(rest)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
