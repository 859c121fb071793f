"""tokenizer.model, by the sentencepiece library, with the tokens listed in the files beside it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tpimpi.checkpoint.decoding import Decoding, Piece
from tpimpi.checkpoint.tokenizer_added import AddedToken, check_id, listed_tokens
from tpimpi.checkpoint.tokenizer_json import SPACE
from tpimpi.checkpoint.tokenizer_settings import read_settings, switch
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.directory import read_bytes

# Text is put after one of these, so that sentencepiece adds no space of its own to it: one that no
# piece has in it, or, where bytes are no pieces, a newline.
_GUARDS = ("\ue000", "\n")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_BLANKS = re.compile("[ \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")
_BLANKS_BUT_SPACE = re.compile(_BLANKS.pattern.replace(" ", ""))


class SentencePieceTokenizer:
    """The tokenizer of a directory with a tokenizer.model and no tokenizer.json.

    Transformers has two ways with such a file: that of its Llama class, which puts a space before
    the text unless there is one, and sentencepiece's own for all others (Mistral).
    """

    def __init__(self, directory: Path, config: ModelConfig, kind: str, llama: bool):
        """Read it; `kind` is the tokenizer's class, `llama` whether the model is of that type."""
        self._pieces = _parsed(directory / "tokenizer.model")
        settings = read_settings(directory, "tokenizer_config.json")
        where = f"{directory}: tokenizer_config.json"
        self._size = self._pieces.get_piece_size()
        self._llama = llama and kind == "LlamaTokenizer"
        self._legacy = switch(where, settings, "legacy", not self._llama)
        self._own_way = self._legacy and not self._llama
        dummy = self._pieces.normalize("x").startswith(SPACE)
        prefix = switch(where, settings, "add_prefix_space", True)
        prefix = prefix or settings.get("add_prefix_space") is None
        self._prefix = prefix if self._llama else dummy
        self._guard, self._guard_ids = "", []
        for guard in _GUARDS:
            ids = self._pieces.encode(guard)
            if not self._guard and self._pieces.decode(ids) == guard:
                self._guard, self._guard_ids = guard, ids
        self._strip = int(self._prefix if self._guard else dummy)
        named = self._add(directory, settings)
        bos = self._ids.get(named.get("bos_token", ""), config.bos_token_id)
        eos = self._ids.get(named.get("eos_token", ""))
        # Transformers 5 adds none to a Llama tokenizer whose settings don't ask for it.
        default = "tokenizer_class" not in settings
        bos = bos if switch(where, settings, "add_bos_token", default) else None
        eos = eos if switch(where, settings, "add_eos_token", False) else None
        self._before = [] if bos is None else [bos]
        self._after = [] if eos is None else [eos]

    def _add(self, directory: Path, settings: dict[str, Any]) -> dict[str, str]:
        """Give all tokens that are taken whole their ids; return the text of the named ones."""
        own = self._pieces
        ids = {"bos_token": own.bos_id(), "eos_token": own.eos_id(), "unk_token": own.unk_id()}
        names = {key: own.id_to_piece(i) for key, i in ids.items() if i >= 0}
        marked = _marked_pieces(own.serialized_model_proto())
        # sentencepiece itself finds the pieces that its users defined.
        marked = [i for i in marked if own.is_control(i) or not self._own_way]
        pieces = [AddedToken(own.id_to_piece(i), own.is_control(i)) for i in marked]
        listed = listed_tokens(directory, settings, pieces, names)
        tokens = listed.tokens
        if not self._llama and self._prefix:  # each text between these begins anew, with a space
            tokens = [t if t.id is None else replace(t, normalized=False) for t in tokens]
        self._tokens = {token.content: token for token in tokens}
        self._ids: dict[str, int] = {}
        end = self._size
        for token in tokens:
            given = own.piece_to_id(token.content)
            if own.id_to_piece(given) != token.content:
                # The file may name a piece anew that the model only keeps a place for.
                given = end if token.id is None or token.id >= self._size else token.id
                end += given == end
            check_id(token, given)
            self._ids[token.content] = given
        self._texts = {i: name for name, i in self._ids.items()}
        self.vocab_size = end
        self.special_ids = {name: i for name, i in self._ids.items() if self._tokens[name].special}
        self._hidden = set(self.special_ids.values())
        self._patterns = [
            "|".join(
                re.escape(token.content)
                for token in sorted(tokens, key=lambda t: len(t.content), reverse=True)
                if token.normalized == normalized
            )
            for normalized in (False, True)
        ]
        return listed.named

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Return the ids of `text`."""
        ids = [i for at, part in self._split(text) for i in self._part(at, part)]
        return self._before + ids + self._after if add_bos else ids

    def _split(self, text: str) -> list[tuple[int, str | int]]:
        """Return the parts of a text and where they begin: pieces of it, ids of added tokens."""
        parts: list[tuple[int, str | int]] = [(0, text)] if text else []
        for pattern in self._patterns:  # those that are normalized are looked for in the rest
            if pattern:
                parts = [
                    (at + start, found)
                    for at, part in parts
                    for start, found in (
                        [(0, part)] if isinstance(part, int) else self._found(pattern, part)
                    )
                ]
        return parts

    def _found(self, pattern: str, text: str) -> Iterator[tuple[int, str | int]]:
        """Yield the parts of a text between and at added tokens, as the tokenizers library does."""
        end = 0
        for match in re.finditer(pattern, text):
            token, (start, stop) = self._tokens[match[0]], match.span()
            beside = (text[start - 1 : start], text[stop : stop + 1])
            if token.single_word and any(map(_is_word, beside)):
                continue
            # Outside the Llama class, a normalized token is looked for when spaces are pieces.
            blanks = _BLANKS_BUT_SPACE if token.normalized and not self._llama else _BLANKS
            if token.lstrip:
                while start > end and blanks.fullmatch(text, start - 1, start):
                    start -= 1
            if token.rstrip:
                stop = blanks.match(text, stop).end()
            if start > end:
                yield end, text[end:start]
            yield start, self._ids[token.content]
            end = stop
        if end < len(text):
            yield end, text[end:]

    def _part(self, at: int, part: str | int) -> list[int]:
        if isinstance(part, int):
            return [part]
        if self._own_way or not self._guard:
            return self._pieces.encode(part)
        # Transformers puts a space before the text, but not before a space, nor after a special
        # token unless the directory asks for the legacy way.
        first = self._prefix and (at == 0 or self._legacy)
        space = SPACE if first and not part.startswith((" ", SPACE)) else ""
        return self._pieces.encode(self._guard + space + part)[len(self._guard_ids) :]

    def decoding(self) -> Decoding:
        """Return what turns ids into text as they come."""
        return Decoding(self._piece, self._strip)

    def _piece(self, token: int, before: int | None) -> Piece:
        text = self._texts.get(token)
        if token in self._hidden or (text is None and not 0 <= token < self._size):
            return None
        if text is None:
            if self._pieces.is_control(token) or self._pieces.is_unknown(token):
                return None
            text = self._pieces.id_to_piece(token)
            if self._pieces.is_byte(token):
                return bytes([int(text[3:5], 16)])
        return text.replace(SPACE, " ")

    def fewest(self, text: str) -> int:
        """Return how many tokens `text` has at least, without cutting it to pieces."""
        if not self._longest:
            return 0
        text = min(text, self._pieces.normalize(text), key=len)
        if any(token.lstrip or token.rstrip for token in self._tokens.values()):
            text = "".join(text.replace(SPACE, " ").split())
        return len(text) // self._longest

    @cached_property
    def _longest(self) -> int:
        """The characters of the longest piece; 0 where one unknown token may stand for many."""
        if not any(self._pieces.is_byte(i) for i in range(self._size)):
            return 0
        pieces = (self._pieces.id_to_piece(i) for i in range(self._size))
        return max(map(len, [*pieces, *self._tokens]))


def _parsed(path: Path) -> Any:
    """Return the library's model; UserError says which file is needed where it is another's."""
    import sentencepiece

    content = read_bytes(path)
    if re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n", content):
        raise UserError(
            f"{path} can't be read: it is a tiktoken vocabulary (Llama 3's original format); fetch "
            "tokenizer.json and tokenizer_config.json of the Hugging Face folder"
        )
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        # The library looks at a piece's text no earlier than it is asked for.
        pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        wrong = [p for i, p in enumerate(pieces) if model.is_byte(i) and not _BYTE.fullmatch(p)]
        if pieces and not wrong:
            return model
        reason = f"it has a byte {wrong[0]!r}" if wrong else "it has no pieces"
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f"{path} can't be read ({reason}); fetch it again")


def _is_word(letter: str) -> bool:
    """Whether a character is one of a word, as regular expressions of Unicode have it."""
    kind = unicodedata.category(letter) if letter else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or letter in ("\u200c", "\u200d")


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
