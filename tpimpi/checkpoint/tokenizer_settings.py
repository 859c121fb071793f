"""The settings in the files of a tokenizer, each checked for its kind as it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpimpi.errors import UserError
from tpimpi.model.directory import exists, read_json


def read_settings(directory: Path, name: str) -> dict[str, Any]:
    """Return the JSON object of a file, empty where there is no such file."""
    path = directory / name
    return read_json(path) if exists(path) else {}


def switch(where: str, settings: dict[str, Any], key: str, default: bool) -> bool:
    """Return a setting that is true or false; UserError for anything else, `"false"` too."""
    value = settings.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where} has {key} = {value!r}, which must be true or false (no quotes)")
    return bool(value)
