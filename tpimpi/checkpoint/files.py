"""Which files of a model directory hold its weights, and what their safetensors headers say.

The format is an 8-byte header length, a JSON header, and the numbers
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tpimpi.errors import UserError
from tpimpi.model.directory import adapter_base, exists, read_json, refuse_pointer, regular_size
from tpimpi.model.fields import shown

INDEX = "model.safetensors.index.json"
# What JSON of another form than expected raises: nested too deep, an infinite offset, ...
BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_MAX_HEADER = 100_000_000  # the format's own limit
_FARTHEST = 1 << 63  # byte of a file
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def weight_files(directory: Path) -> list[Path]:
    """Return the files that hold a directory's weights, symbolic links allowed. UserError if none.

    One file, or those that the index names, or shards that are all there without their index.
    """
    single, index = directory / "model.safetensors", directory / INDEX
    if exists(single):
        return [single]
    if exists(index):
        return _indexed(directory, index)
    return _scanned(directory) or _refuse(directory)


def named_in(index: Path) -> list[str]:
    """Return the names of the files that an index tells of, in order. Raises UserError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} is not a valid index (no weight_map); fetch it again")
    for name in weight_map.values():
        # A name is a file beside the index: an index from elsewhere mustn't lead out of its folder.
        if not isinstance(name, str) or not name or set(name) & set("/\\\0"):
            raise UserError(
                f"{index} is not a valid index ({shown(name)} is no file's name); fetch it again"
            )
    return sorted(set(weight_map.values()))


def _indexed(directory: Path, index: Path) -> list[Path]:
    names = named_in(index)
    for name in names:
        if name in (".", "..") or not exists(directory / name):
            raise UserError(
                f"{index.name} names {name}, which is not in {directory}; fetch that file"
            )
    return [directory / name for name in names]


def _scanned(directory: Path) -> list[Path]:
    """Return all shards of a model whose index is missing, in order; UserError if one lacks."""
    parts: dict[int, dict[int, Path]] = {}
    for path in directory.iterdir():
        if match := _SHARD.fullmatch(path.name):
            parts.setdefault(int(match[2]), {})[int(match[1])] = path
    if len(parts) > 1:
        counts = " and ".join(str(count) for count in sorted(parts))
        raise UserError(
            f"{directory} has weights in {counts} files side by side and no {INDEX} that tells "
            "which are the model's; fetch that file"
        )
    for count, found in parts.items():
        missing = next((part for part in range(1, count + 1) if part not in found), None)
        if missing is not None:
            raise UserError(
                f"{directory} has no {INDEX}, and of its {count} files with weights number "
                f"{missing} is missing; fetch both"
            )
        return [found[part] for part in range(1, count + 1)]
    return []


def _refuse(directory: Path) -> list[Path]:
    other = [
        path.name
        for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf", "*.ggml")
        for path in sorted(directory.glob(pattern))
        if not path.name.startswith("adapter_")
    ]
    if other:
        raise UserError(
            f"{directory} has its weights in {other[0]}, but safetensors are needed; fetch the "
            "model's *.safetensors, or save it again with Transformers' save_pretrained"
        )
    base = adapter_base(directory)
    if base:
        raise UserError(
            f"{directory} has an adapter's weights only; merge it into {base} (PEFT's "
            "merge_and_unload) and save that"
        )
    raise UserError(f"{directory} has no weights: neither model.safetensors nor {INDEX}")


def open_weights(path: Path) -> int:
    """Return the descriptor of a file of weights; UserError where it can't be read."""
    regular_size(path)
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error


def read_header(path: Path, fd: int) -> tuple[dict[str, dict], int, bytes]:
    """Return the header's entries, the byte at which the numbers start, and the raw header.

    `fd` is the open file, `path` its name.
    """
    size = os.fstat(fd).st_size
    try:
        first = os.pread(fd, 200, 0)
        refuse_pointer(path, first)
        length = int.from_bytes(first[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path} is cut short or no safetensors file: its header would have {length} "
                f"bytes and the file has {size}; fetch it again"
            )
        raw = os.pread(fd, length, 8)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
        if end > _FARTHEST:
            raise ValueError("an offset is beyond any file")
    except BROKEN as error:
        raise UserError(
            f"{path} has a damaged safetensors header ({shown(str(error))}); fetch it again"
        ) from error
    if 8 + length + end > size:
        raise UserError(f"{path} is cut short: {size} bytes of {8 + length + end}; fetch it again")
    return entries, 8 + length, raw


def check_format(path: Path) -> None:
    """Raise UserError for what the format's own library finds wrong: holes, overlaps."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is no valid safetensors file ({error}); fetch it again") from error
