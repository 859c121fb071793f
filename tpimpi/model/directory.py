"""The JSON files of a model directory, and what a path that is none may have meant."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from tpimpi.errors import UserError

_WANTS = (
    "--model wants a Hugging Face directory with config.json, *.safetensors and a tokenizer, or "
    "the id of a model on its hub, ORG/NAME"
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair of UTF-16, or alone
_MOST_BYTES = 1 << 28  # of a small file; the largest vocabularies have some 30 MB


def read_configs(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of config.json and of generation_config.json ({} where there is none).

    Raises UserError, also for a path that is no model directory.
    """
    _refuse_other(str(directory))
    directory = Path(directory)
    generation = {}
    config = read_json(directory / "config.json")
    if exists(directory / "generation_config.json"):
        generation = read_json(directory / "generation_config.json")
    return config, generation


def name_of(directory: Path) -> str:
    """Return the name of the model in a directory: its own or, in the hub's cache, the model's."""
    place = directory.resolve()
    above = place.parents[1].name if place.parent.name == "snapshots" else ""
    return above.rpartition("--")[2] if above.startswith("models--") else place.name


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; UserError where there is none."""
    return parse_json(path, read_text(path))


def parse_json(path: Path, text: str) -> dict[str, Any]:
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


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a small file, without a byte order mark; UserError as above."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} can't be read: it is no UTF-8 text ({error.reason}); fetch it again"
        ) from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a small file; UserError where it can't be one."""
    size = regular_size(path)
    if size > _MOST_BYTES:
        raise UserError(f"{path} has {size} bytes, too many for such a file; fetch it again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    refuse_pointer(path, content)
    return content


def regular_size(path: Path) -> int:
    """Return a file's bytes; UserError for a pipe or a device, which might never end."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # the second: a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read ({reason})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file; a model's files must be")
    return status.st_size


def refuse_pointer(path: Path, content: bytes) -> None:
    """Raise UserError if a file is what Git leaves in the place of a large one."""
    if content.startswith(_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself; run git lfs pull in its folder"
        )


def adapter_base(directory: Path) -> str | None:
    """Return a sentence's end about the base model if a directory holds an adapter only."""
    path = directory / "adapter_config.json"
    if not exists(path):
        return None
    base = read_json(path).get("base_model_name_or_path")
    return f"its base model ({base[:100]})" if isinstance(base, str) and base else "its base model"


def exists(path: Path) -> bool:
    """Return whether a path is there; UserError where that can't be told, or a link leads nowhere.

    Who has the link means to have the file: it is not as if there were none.
    """
    try:
        if path.exists():
            return True
        dangling = path.is_symlink()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if dangling:
        raise UserError(f"{path} is a link to a file that is not there; fetch it again")
    return False


def _refuse_other(given: str) -> None:
    """Raise UserError for a path that is no model directory: what it is, and how to get one."""
    directory = Path(given)
    if "\0" in given or not given:
        raise UserError(f"--model {given!r} is no path; {_WANTS}")
    if given.lower().endswith((".gguf", ".ggml")) and not directory.is_dir():
        raise UserError(
            f"{given} is a GGUF file, but tpimpi reads safetensors; get the original model's "
            "folder with hf download ID --local-dir DIR and give --model DIR"
        )
    if not exists(directory):
        hint = "--model wants a Hugging Face directory"
        if _HUB_ID.fullmatch(given):
            hint = (
                "if it is a model on the Hugging Face hub, get its folder with "
                f"hf download {given} --local-dir DIR and give --model DIR"
            )
        raise UserError(f"{given} does not exist; {hint}")
    if not directory.is_dir():
        raise UserError(
            f"{given} is a file; --model wants the directory with config.json and *.safetensors"
        )
    if not exists(directory / "config.json"):
        base = adapter_base(directory)
        if base:
            raise UserError(
                f"{given} is an adapter, not a model; merge it into {base} "
                "(PEFT's merge_and_unload) and save that"
            )
        gguf = sorted(directory.glob("*.gguf"))
        if gguf:
            raise UserError(
                f"{given} holds a GGUF file ({gguf[0].name}), but tpimpi reads safetensors; get "
                "the original model's folder with hf download ID --local-dir DIR and give that"
            )
        raise UserError(f"{given} has no config.json; {_WANTS}")
