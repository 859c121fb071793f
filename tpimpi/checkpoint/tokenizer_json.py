"""tokenizer.json, by the tokenizers library; its post-processor decides about special tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tpimpi.checkpoint.decoding import Decoding, Piece
from tpimpi.checkpoint.tokenizer_added import check_id, listed_tokens
from tpimpi.checkpoint.tokenizer_settings import read_settings, switch
from tpimpi.errors import UserError
from tpimpi.model.directory import parse_json, read_text

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what sentencepiece writes for a space
LLAMA_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")


class JsonTokenizer:
    """The tokenizer of a directory with a tokenizer.json."""

    def __init__(self, directory: Path, kind: str, llama: bool):
        """Read it; `kind` is the tokenizer's class, `llama` whether the model is of that type."""
        settings = read_settings(directory, "tokenizer_config.json")
        path = directory / "tokenizer.json"
        text = read_text(path)
        as_llama = kind == "LlamaTokenizer" and llama and '"ByteLevel"' not in text
        if as_llama:
            text = json.dumps(parse_json(path, text) | _llama_pipeline(directory, settings))
        self._fast = _parsed(path, text)
        self._fast.no_truncation()  # some files keep what their training cut off
        self._fast.no_padding()
        self._add(directory, settings, LLAMA_NAMES if as_llama else {})
        added = self._fast.get_added_tokens_decoder()
        self.special_ids = {token.content: i for i, token in added.items() if token.special}
        self._strips = any(token.lstrip or token.rstrip for token in added.values())
        size = self._fast.get_vocab_size(with_added_tokens=True)
        self.vocab_size = max([size - 1, *added]) + 1
        self._decoding = _decoding(self._fast, set(self.special_ids.values()))

    def _add(self, directory: Path, settings: dict[str, Any], names: dict[str, str]) -> None:
        """Add the tokens that only the files beside tokenizer.json know."""
        from tokenizers import AddedToken as Fast

        own = {token.content: token for token in self._fast.get_added_tokens_decoder().values()}
        listed = listed_tokens(directory, settings, defaults=names)
        for token in listed.tokens:
            known = own.get(token.content)
            flags = {key: value for key, value in asdict(token).items() if key in _FLAGS}
            if known is not None and "added_tokens_decoder" not in settings:
                if known.special or token.content not in listed.named.values():
                    continue  # the file's own way of finding it is newer than the other files
                flags = {key: getattr(known, key) for key in _FLAGS} | {"special": True}
            elif known is not None and token.id is None:
                continue
            self._fast.add_tokens([Fast(token.content, **flags)])
            check_id(token, self._fast.token_to_id(token.content))

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Return the ids of `text`."""
        return self._fast.encode(text, add_special_tokens=add_bos).ids

    def decoding(self) -> Decoding:
        """Return what turns ids into text as they come."""
        return self._decoding()

    def fewest(self, text: str) -> int:
        """Return how many tokens `text` has at least, without cutting it to pieces."""
        if not self._covers_all:
            return 0
        normalizer = self._fast.normalizer
        if normalizer is not None:
            text = min(text, normalizer.normalize_str(text), key=len)
        text = "".join(text.split()) if self._strips else text
        return len(text) // self._longest

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._fast.get_vocab(with_added_tokens=True)), default=1) or 1

    @cached_property
    def _covers_all(self) -> bool:
        """Whether each character comes out in a token: none is dropped, no run is one unknown."""
        model = self._fast.model
        before, norms = _steps(self._fast.pre_tokenizer), _steps(self._fast.normalizer)
        kinds = {step.get("type") for step in before}
        known = kinds <= {"ByteLevel", "Metaspace", "Split", "Digits"} and all(
            step.get("type") in ("NFC", "Replace", "Prepend") for step in norms
        )
        drops = any(step.get("behavior") == "Removed" for step in before)
        whole = type(model).__name__ == "BPE" and ("ByteLevel" in kinds or model.byte_fallback)
        return known and whole and not drops


def _parsed(path: Path, text: str) -> Any:
    """Return the library's tokenizer; UserError says what to upgrade or to fetch."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        content = parse_json(path, text)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(content.get("model"), dict):
            raise UserError(f"{path} can't be read ({reason}); fetch it again") from error
        raise UserError(
            f"{path} can't be read by tokenizers {tokenizers.__version__} ({reason}); it may be "
            "newer: upgrade the library (pip install --upgrade tokenizers), or fetch the file again"
        ) from error


def _llama_pipeline(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of tokenizer.json that Transformers 5 sets by tokenizer_config.json.

    The files of Llama 2 and TinyLlama still have the older ones, which give other ids to a text
    that begins with a space or has special tokens in it.
    """
    where = f"{directory}: tokenizer_config.json"
    prefix = settings.get("add_prefix_space") is None or switch(
        where, settings, "add_prefix_space", True
    )
    legacy = switch(where, settings, "legacy", False)
    scheme = ("always" if legacy else "first") if prefix else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }  # fmt: skip


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return what a normalizer, pre-tokenizer or decoder does, one after the other."""
    if part is None:
        return []
    content = json.loads(part.__getstate__())
    lists = [content.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
    return next((steps for steps in lists if steps is not None), [content])


def _decoding(fast: Any, hidden: set[int]) -> Callable[[], Decoding]:
    """Return a function that makes a Decoding as the tokenizer's decoder says."""
    steps = _steps(fast.decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return partial(Decoding, partial(_byte_level, fast, hidden, _alphabet()), each_byte=False)
    if "ByteFallback" in kinds:
        first = kinds.index("ByteFallback")
        swaps = [(s.get("pattern", {}).get("String"), s.get("content")) for s in steps[:first]]
        strip = steps[first + 2] if kinds[first + 1 :] == ["Fuse", "Strip"] else {}
        known = kinds[:first] == ["Replace"] * first and all(old for old, _ in swaps)
        known &= bool(strip) or kinds[first + 1 :] == ["Fuse"]
        if known and strip.get("content", " ") == " " and strip.get("stop", 0) == 0:
            piece = partial(_byte_fallback, fast, hidden, swaps)
            return partial(Decoding, piece, strip.get("start", 0))
    return partial(Decoding, partial(_pair, fast, hidden))


def _name(fast: Any, hidden: set[int], token: int) -> str | None:
    return fast.id_to_token(token) if 0 <= token < 1 << 32 and token not in hidden else None


def _byte_level(
    fast: Any, hidden: set[int], alphabet: dict[str, int], token: int, before: int | None
) -> Piece:
    """Return the bytes of a token that is written in GPT-2's letters for bytes."""
    name = _name(fast, hidden, token)
    if name is None:
        return None
    if all(letter in alphabet for letter in name):
        return bytes(alphabet[letter] for letter in name)
    return name.encode()


def _byte_fallback(
    fast: Any, hidden: set[int], swaps: list[tuple[str, str]], token: int, before: int | None
) -> Piece:
    """Return the text of a token, or the byte of one such as <0x0A>."""
    name = _name(fast, hidden, token)
    if name is None:
        return None
    for old, new in swaps:
        name = name.replace(old, new)
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            return name
    return name


def _pair(fast: Any, hidden: set[int], token: int, before: int | None) -> Piece:
    """Return what a token adds to the text of the one before it, for any other decoder."""
    if _name(fast, hidden, token) is None:
        return None
    if before is None:
        return fast.decode([token])
    return fast.decode([before, token])[len(fast.decode([before])) :]


def _alphabet() -> dict[str, int]:
    """Return the byte of each letter: itself where it is printed, else the next from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = [*printed, *range(256, 256 + len(others))]
    return {chr(letter): byte for letter, byte in zip(letters, [*printed, *others], strict=True)}
