"""The files of a tokenizer: read whole, and refused by what is wrong with them."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from tpimpi.errors import UserError
from tpimpi.model.directory import MOST_BYTES, exists

_POINTER = b"version https://git-lfs.github.com/spec/"
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair of UTF-16, or alone


def read_file(path: Path) -> bytes:
    """Return a file's bytes; UserError for what is no file, or stands for one elsewhere."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO would be waited for, for ever
            raise UserError(f"{path} can't be read: it is no regular file; put the file there")
        if status.st_size > MOST_BYTES:
            raise UserError(
                f"{path} can't be read: it has {status.st_size} bytes, too many for a tokenizer's "
                "file; fetch it again"
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if content.startswith(_POINTER):
        raise UserError(
            f"{path} can't be read: it is a Git LFS pointer, which only names the file; run "
            "`git lfs pull` in its folder"
        )
    return content


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text; UserError as above."""
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} can't be read: it is no UTF-8 text ({error.reason}); fetch it again"
        ) from error


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object in the text of a file; UserError where it holds none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # the second: nested too deep
        raise UserError(
            f"{path} can't be read: it is not valid JSON ({error}); fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} can't be read: it holds no JSON object; fetch it again")
    if _ESCAPED_HALF.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # which no tokenizer could take as text
            half = error.object[error.start]
            raise UserError(
                f"{path} can't be read: it has half a character ({half!a}); fetch it again"
            ) from error
    return content


def read_settings(directory: Path, name: str) -> dict[str, Any]:
    """Return the JSON object of a file, empty where there is no such file."""
    path = directory / name
    return parse_object(path, read_text(path)) if exists(path) else {}


def switch(where: str, settings: dict[str, Any], key: str, default: bool) -> bool:
    """Return a setting that is true or false; UserError for anything else, `"false"` too."""
    value = settings.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where} has {key} = {value!r}, which must be true or false (no quotes)")
    return bool(value)
