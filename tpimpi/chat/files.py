"""Conversations in files: JSON that only its owner may read, replaced at once or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpimpi.errors import MachineError, UserError

FORMAT = "tpimpi conversation 1"
_MOST = 64 << 20  # bytes that are read: some hundred times the longest context


@dataclass(frozen=True)
class Saved:
    """A conversation as it lies in a file.

    `messages` have a role and a content each: a system's message first if there is one, then a
    user's and an assistant's in turn. `settings` are what was said about choosing tokens, by name.
    `kv` is the folder, beside the file, in which each rank keeps keys and values, of the first
    `kv_tokens` tokens; `kv_ids` are the ids of all of it, as the model has
    chosen them.
    """

    model: str
    fingerprint: str
    messages: list[dict[str, str]]
    settings: dict[str, Any]
    kv: str | None = None
    kv_tokens: int = 0
    kv_ids: tuple[int, ...] = ()


def write(path: Path, saved: Saved) -> None:
    """Write a conversation. Raises UserError over another kind of file, and MachineError."""
    _refuse_no_file(path)
    path = path.resolve()  # what a link leads to is replaced, and not the link
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it first, or name another file")
    if path.exists() and path.stat().st_size:
        try:
            read(path)
        except UserError:
            raise UserError(
                f"{path} is there and no conversation of tpimpi; name another file, or remove it"
            ) from None
    content = {"format": FORMAT} | asdict(saved)
    content["kv_ids"] = " ".join(map(str, saved.kv_ids))  # a line, where a list would take many
    text = json.dumps(content, indent=2, ensure_ascii=False)
    beside = None
    try:
        # Made with mode 600.
        number, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(number)
        os.replace(beside, path)
    except OSError as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        raise MachineError(f"{path} can't be written ({error.strerror})") from error


def _refuse_no_file(path: Path) -> None:
    """Raise UserError for a folder, and for a device or a pipe.

    One would be replaced by a file, as far as root may, or be read without an end.
    """
    there = True
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as error:  # it is too long, or has a null byte
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)[:80]!r} is no name of a file ({why})") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if there and not path.is_file():
        raise UserError(f"{path} is no ordinary file; name another one")


def read(path: Path) -> Saved:
    """Read a conversation. Raises UserError for what is none."""
    _refuse_no_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if len(data) > _MOST:
        raise UserError(f"{path} has more than {_MOST >> 20} MiB: it is no conversation")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "" if isinstance(error, RecursionError) else f": {error}"
        raise UserError(f"{path} is no conversation of tpimpi{why}") from None
    wrong = _wrong(content)
    if wrong:
        raise UserError(f"{path} is no conversation of tpimpi: {wrong}")
    content["kv_ids"] = tuple(map(int, content.get("kv_ids", "").split()))
    return Saved(*(content.get(name) for name in Saved.__dataclass_fields__))


def kept(path: Path) -> Path | None:
    """Return the folder of keys and values that belongs to a conversation's file alone, if any."""
    try:
        saved = read(path)
    except UserError:
        return None
    own = folder_of(path)  # of a copied file it is the other one's
    return own if saved.kv == own.name else None


def folder_of(path: Path) -> Path:
    """Return where the keys and values of a conversation in a file lie."""
    return path.with_name(f"{path.name}.kv")


def remove(folder: Path) -> bool:
    """Remove this machine's keys and values in a folder, and it, where nothing else is in it.

    Return whether there were any. Raises MachineError.
    """
    found = list(folder.glob("kv-*-of-*.h5")) if folder.is_dir() else []
    try:
        for path in found:
            path.unlink(missing_ok=True)
        if found and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise MachineError(f"{folder} can't be removed ({error.strerror})") from error
    return bool(found)


def _wrong(content: Any) -> str | None:
    """Return what is wrong with the content of a file, None if nothing."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if content.get("format") != FORMAT:
        return f"its format is {content.get('format')!r}, not {FORMAT!r}"
    for name in ("model", "fingerprint"):
        if not isinstance(content.get(name), str):
            return f"its {name} is no text"
    if not isinstance(content.get("settings"), dict):
        return "its settings are no names and values"
    kv = content.get("kv")
    if kv is not None and (not isinstance(kv, str) or Path(kv).name != kv):
        return f"its kv, {kv!r}, is no folder beside it"
    if not isinstance(content.get("kv_tokens"), int):
        return "its kv_tokens is no whole number"
    ids = content.get("kv_ids", "")
    if not isinstance(ids, str) or not all(re.fullmatch("[0-9]{1,9}", i) for i in ids.split()):
        return "its kv_ids are no ids"
    messages = content.get("messages")
    return _wrong_messages(messages) if isinstance(messages, list) else "it has no messages"


def _wrong_messages(messages: list) -> str | None:
    """Return what is wrong with the messages of a file, None if nothing."""
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return f"message {number} has no text"
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            return f"message {number} is no Unicode text"
    roles = [message.get("role") for message in messages]
    wanted = ["system"] if roles[:1] == ["system"] else []
    while len(wanted) < len(roles):
        wanted += ["user", "assistant"]
    if roles != wanted:
        return "its messages are not a user's and an assistant's in turn"
    return None
