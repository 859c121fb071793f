"""Text <-> ids: sentencepiece for tokenizer.model, tokenizers for tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what sentencepiece writes for a space
_WINDOW = 16  # ids of the past that a stream looks at


class Tokenizer(Protocol):
    """What the program asks of a tokenizer."""

    vocab_size: int

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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the tokenizer of {directory} can't be read ({reason}); fetch it again"
        ) from error
    raise UserError(
        f"{directory} has no tokenizer: neither tokenizer.json nor tokenizer.model; fetch one"
    )


def _settings(directory: Path, name: str = "tokenizer_config.json") -> dict:
    return json.loads((directory / name).read_text()) if (directory / name).exists() else {}


class JsonTokenizer:
    """tokenizer.json; its post-processor decides about special tokens."""

    def __init__(self, directory: Path):
        from tokenizers import Tokenizer as Fast

        settings, text = _settings(directory), (directory / "tokenizer.json").read_text()
        kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
        llama = _settings(directory, "config.json").get("model_type") == "llama"
        if kind == "LlamaTokenizer" and llama and '"ByteLevel"' not in text:
            text = json.dumps(json.loads(text) | _llama_pipeline(settings))
        self._fast = Fast.from_str(text)
        self._fast.no_truncation()  # some files keep what their training cut off
        self._fast.no_padding()
        self.vocab_size = self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the ids of `text`."""
        return self._fast.encode(text, add_special_tokens=add_bos).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)


def _llama_pipeline(settings: dict) -> dict:
    """Return the parts of tokenizer.json that Transformers 5 sets by tokenizer_config.json.

    The files of Llama 2 and TinyLlama still have the older ones, which give other ids to a text
    that begins with a space or has special tokens in it.
    """
    prefix = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") else "first") if prefix else "never"
    decoders: list[dict] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }  # fmt: skip


class SentencePieceTokenizer:
    """tokenizer.model; special tokens written in the text (<s>, </s>) are taken for themselves."""

    def __init__(self, directory: Path, config: ModelConfig):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(
            model_file=str(directory / "tokenizer.model")
        )
        settings = _settings(directory)
        self._size = self._pieces.get_piece_size()
        self._prefix = settings.get("add_prefix_space") is not False
        self._legacy = bool(settings.get("legacy", False))
        # Text is put after a newline, so that sentencepiece adds no space of its own to it.
        self._newline = self._pieces.encode("\n")
        if self._pieces.decode(self._newline) != "\n":
            self._newline = []  # this model writes newlines in another way: leave it alone
        self._special, self._hidden = self._specials(settings, directory)
        self.vocab_size = max([self._size - 1, *self._special.values()]) + 1
        bos = self._named(settings, "bos_token", self._pieces.bos_id())
        eos = self._named(settings, "eos_token", self._pieces.eos_id())
        bos = config.bos_token_id if bos is None else bos
        # Transformers 5 adds none to a Llama tokenizer whose settings don't ask for it.
        default = "tokenizer_class" not in settings
        self._before = [bos] if settings.get("add_bos_token", default) and bos is not None else []
        self._after = [eos] if settings.get("add_eos_token", False) and eos is not None else []

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Return the ids of `text`."""
        ids = [] if not text else self._encode(text)
        return self._before + ids + self._after if add_bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        known = [int(i) for i in ids if 0 <= i < self.vocab_size and i not in self._hidden]
        text, at = "", 0
        for index, token in enumerate([*known, -1]):
            if token in self._beyond or token < 0:
                text += self._decode(known[at:index]) + self._beyond.get(token, "")
                at = index + 1
        return text[1:] if self._prefix and self._newline and text.startswith(" ") else text

    def _decode(self, ids: list[int]) -> str:
        return self._pieces.decode(self._newline + ids)[1 if self._newline else 0 :]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        names = sorted(self._special, key=len, reverse=True)
        pattern = "(" + "|".join(re.escape(name) for name in names) + ")"
        for index, part in enumerate(re.split(pattern, text) if names else [text]):
            if index % 2:
                ids.append(self._special[part])
            elif part and not self._newline:
                ids += self._pieces.encode(part)
            elif part:
                # Transformers puts a space before the text, but not before a space, nor after a
                # special token unless the directory asks for the legacy way.
                first = self._prefix and (index == 0 or self._legacy)
                space = _SPACE if first and not part.startswith((" ", _SPACE)) else ""
                ids += self._pieces.encode("\n" + space + part)[len(self._newline) :]
        return ids

    def _named(self, settings: dict, key: str, default: int) -> int | None:
        """Return the id of a token that the settings name, or the model's own."""
        named = settings.get(key)
        named = named.get("content") if isinstance(named, dict) else named
        return self._special.get(named, default if default >= 0 else None)

    def _is_text(self, token: int) -> bool:
        return not (self._pieces.is_control(token) or self._pieces.is_unknown(token))

    def _specials(self, settings: dict, directory: Path) -> tuple[dict[str, int], set[int]]:
        """Return all tokens that are taken whole, and the ids of those that are not text."""
        ids = _marked_pieces(self._pieces.serialized_model_proto())
        special = {self._pieces.id_to_piece(i): i for i in (*ids, self._pieces.unk_id()) if i >= 0}
        hidden = {i for i in special.values() if not self._is_text(i)}
        added = {name: (i, True) for name, i in _settings(directory, "added_tokens.json").items()}
        for i, entry in settings.get("added_tokens_decoder", {}).items():
            added[entry["content"]] = int(i), bool(entry.get("special", False))
        for name, (i, is_hidden) in added.items():
            special[name] = i
            hidden |= {i} if is_hidden else set()
        self._beyond = {i: n for n, i in special.items() if i >= self._size and i not in hidden}
        return special, hidden


def _marked_pieces(model: bytes) -> list[int]:
    """Return the ids of the control and user-defined pieces of a serialized sentencepiece model.

    Its Python interface does not tell user-defined ones. A model begins with its pieces (field 1,
    length, message), and a piece ends with its type (field 3), which ordinary ones leave out
    (https://protobuf.dev/programming-guides/encoding).
    """
    found, at, index = [], 0, 0
    while at < len(model) and model[at] == 0x0A:
        at, length, shift, byte = at + 1, 0, 0, 0x80
        while byte & 0x80:
            byte = model[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
        if model[at : at + length].endswith((b"\x18\x03", b"\x18\x04")):
            found.append(index)
        at, index = at + length, index + 1
    return found


class TextStream:
    """Turn ids into text as they come: no half character, no part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        # A token's text depends on what precedes it, so a few ids are decoded with it: those that
        # gave the last text. They begin with a whole character, as tokenizers decodes a run of
        # byte tokens that begins within one to nothing but replacement characters.
        self._ids = list(prompt_ids[-_WINDOW:])
        while self._ids and tokenizer.decode(self._ids).startswith(_UNFINISHED):
            self._ids.pop(0)
        self._shown = len(self._ids)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one id; return the text that is ready."""
        self._ids.append(token)
        before, text = self._decoded()
        if text.endswith(_UNFINISHED) and len(self._ids) - self._shown < 8:
            return ""
        if text:
            del self._ids[: self._shown]
        elif before or len(self._ids) > _WINDOW:
            self._ids.pop()  # a token without text tells nothing about the next
        self._shown = len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back."""
        text = self._release(self._decoded()[1])
        self._shown = len(self._ids)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decoded(self) -> tuple[str, str]:
        """Return the text of the window that was shown, and the text after it."""
        before = self._tokenizer.decode(self._ids[: self._shown])
        return before, self._tokenizer.decode(self._ids)[len(before) :]

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
