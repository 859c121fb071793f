"""The tokens that a directory lists beside its vocabulary, as Transformers 5 gathers them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpimpi.checkpoint.tokenizer_settings import read_settings, switch
from tpimpi.errors import UserError

_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_EXTRA, _EXTRA_BEFORE = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before it is cut to pieces, and how it is found.

    `where` and `id` say which file gives it an id of its own; that of others is the next free one.
    """

    content: str
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    id: int | None = None
    where: str = ""


@dataclass(frozen=True)
class Listed:
    """All tokens in the order in which they get ids, and the text of those that have a name."""

    tokens: tuple[AddedToken, ...]
    named: dict[str, str]


def listed_tokens(
    directory: Path,
    settings: dict[str, Any],
    own: Iterable[AddedToken] = (),
    defaults: dict[str, str] | None = None,
) -> Listed:
    """Gather what the files of a directory list; `settings` is tokenizer_config.json's content.

    `own` are the tokenizer's special tokens where no file lists extra ones, `defaults` the names
    of its bos, eos and unk. With `added_tokens_decoder`, the other two files are not looked at.
    """
    where = f"{directory}: tokenizer_config.json"
    # A named token is a string, or an object with the way it is found.
    named = dict(defaults or {}) | {
        key: value
        for key, value in settings.items()
        if key in _NAMED or (key.endswith("_token") and isinstance(value, str | dict))
    }
    extra, more = settings.get(_EXTRA) or settings.get(_EXTRA_BEFORE), None
    if isinstance(extra, dict):
        named, extra = named | extra, None
    if "added_tokens_decoder" in settings:
        numbered = _decoder(where, settings["added_tokens_decoder"])
    else:
        where = f"{directory}: special_tokens_map.json"
        mapped = read_settings(directory, "special_tokens_map.json")
        named, extra, more = _with_map(mapped, named, extra)
        special = {_content(named.get(key)) for key in _NAMED}
        special |= {_content(token) for token in _list(where, extra)}
        numbered = _encoder(directory, special)
    by_text = {token.content: token for token in numbered}
    found = {
        key: by_text.get(_content(value)) or _token(f"{where}: {key}", value)
        for key, value in sorted(named.items(), key=_rank)
        if value is not None
    }
    others = list(own)
    if extra is not None or not others:
        chosen = _list(where, more if extra is None else extra)
        others = [_token(f"{where}: {_EXTRA}", value) for value in chosen]
    tokens = {token.content: token for token in numbered}
    for token in [*found.values(), *others]:
        tokens.setdefault(token.content, token)
    for token in found.values():
        tokens[token.content] = replace(tokens[token.content], special=True)
    tokens.pop("", None)
    return Listed(tuple(tokens.values()), {key: token.content for key, token in found.items()})


def _with_map(mapped: dict[str, Any], named: dict[str, Any], extra: Any) -> tuple:
    """Return the named and the extra tokens, and what stands in for these, after a map of them."""
    named = dict(named)
    for key, value in mapped.items():
        if key not in (_EXTRA, _EXTRA_BEFORE):
            named[key] = value
        elif key == _EXTRA and isinstance(value, dict):
            named |= value
        elif key == _EXTRA and isinstance(value, list) and isinstance(extra, list):
            extra = extra + [token for token in value if token not in extra]
        elif key == _EXTRA:
            extra = value
    return named, extra, mapped.get(_EXTRA_BEFORE)


def _rank(item: tuple[str, Any]) -> int:
    """Return the place of a named token: the usual ones first, then others as they come."""
    return _NAMED.index(item[0]) if item[0] in _NAMED else len(_NAMED)


def _content(value: Any) -> Any:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _list(where: str, value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where} has {_EXTRA} = {value!r}, which must be a list of tokens")
    return value or []


def _token(where: str, value: Any, special: bool = True) -> AddedToken:
    """Return the token that a file gives as a string or as an object."""
    content = _content(value)
    if content is None:
        raise UserError(f"{where} is {value!r}, which must be a token's text; fetch the file again")
    if not isinstance(value, dict):
        return AddedToken(content)
    special = switch(where, value, "special", special)
    return AddedToken(
        content, special, switch(where, value, "normalized", not special),
        *(switch(where, value, key, False) for key in ("single_word", "lstrip", "rstrip")),
    )  # fmt: skip


def _decoder(where: str, entries: Any) -> list[AddedToken]:
    """Return the tokens of `added_tokens_decoder`, which maps ids to them, by id."""
    where = f"{where}: added_tokens_decoder"
    if not isinstance(entries, dict):
        raise UserError(f"{where} is {entries!r}, which must be an object of ids and tokens")
    found = []
    for key, entry in entries.items():
        if not (key.isascii() and key.isdecimal()):
            raise UserError(f"{where} has the id {key!r}, which must be 0 or more")
        token = _token(f"{where}: {key}", entry, special=False)
        found.append(replace(token, id=int(key), where=where))
    return sorted(found, key=lambda token: token.id or 0)


def _encoder(directory: Path, special: set[str]) -> list[AddedToken]:
    """Return the tokens of added_tokens.json, which maps them to ids, by id."""
    where = f"{directory}: added_tokens.json"
    found = []
    for content, number in read_settings(directory, "added_tokens.json").items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise UserError(f"{where} gives {content!r} the id {number!r}, which must be 0 or more")
        is_special = content in special
        found.append(
            AddedToken(content, is_special, not is_special, id=number, where=where)
        )  # fmt: skip
    return sorted(found, key=lambda token: token.id or 0)


def check_id(token: AddedToken, given: int) -> None:
    """Refuse a token whose file gives it another id than the vocabulary has room for."""
    if token.id is not None and token.id != given:
        raise UserError(
            f"{token.where} gives {token.content!r} the id {token.id}, but the vocabulary beside "
            f"it gives it {given}; they are of different models"
        )
