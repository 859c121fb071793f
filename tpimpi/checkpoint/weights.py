"""A Hugging Face checkpoint, read by rank 0: every tensor checked before one is used.

The format is an 8-byte header length, a JSON header, and the numbers
(https://huggingface.co/docs/safetensors). Pieces are read with `pread`, not mapped, so that the
process's memory is bounded by the piece asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from tpimpi.checkpoint.fingerprint import quick_fingerprint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import expected_shapes

_BY_SAFETENSORS_NAME = {e.safetensors_name: e for e in ENCODINGS.values()}
_MAX_HEADER = 100_000_000  # the format's own limit
# What JSON of another form than expected raises: nested too deep, an infinite offset, ...
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: file, encoding, shape, byte offset, bytes."""

    path: Path
    encoding: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """All tensors of a model directory, checked against its config. Raises UserError."""

    def __init__(self, directory: str | Path, config: ModelConfig):
        self._tied = config.tie_word_embeddings
        self._descriptors: dict[Path, int] = {}
        found: dict[str, tuple[Path, dict, int]] = {}
        headers = hashlib.sha256()
        paths = _files(Path(directory))
        for path in paths:
            header, start, raw = _header(path)
            headers.update(raw)
            found |= {name: (path, entry, start) for name, entry in header.items()}
        self.tensors = {
            name: _tensor(name, shape, found) for name, shape in expected_shapes(config).items()
        }
        for path in paths:
            _check_format(path)  # last, as it can't name the tensor that is missing
        self.fingerprint = quick_fingerprint(
            config, headers.digest(), self.tensors.values(), self._pread
        )

    def weight(self, name: str) -> Tensor:
        """Return a tensor; the head of a tied model is its embedding."""
        return self.tensors[self._resolve(name)]

    def read(self, name: str, rows: slice | None, columns: slice | None) -> np.ndarray:
        """Return raw rows (and columns of them) in the storage dtype, contiguous."""
        tensor = self.weight(name)
        encoding = ENCODINGS[tensor.encoding]
        first, last = (rows.start, rows.stop) if rows else (0, tensor.shape[0])
        row_shape = tensor.shape[1:]
        row_bytes = tensor.nbytes // tensor.shape[0]
        data = self._pread(
            tensor.path, (last - first) * row_bytes, tensor.offset + first * row_bytes
        )
        array = np.frombuffer(data, encoding.storage).reshape(last - first, *row_shape)
        return array if columns is None else np.ascontiguousarray(array[:, columns])

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _resolve(self, name: str) -> str:
        return "model.embed_tokens.weight" if self._tied and name == "lm_head.weight" else name

    def _pread(self, path: Path, nbytes: int, offset: int) -> bytearray:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        data, got = bytearray(nbytes), 0
        while got < nbytes:
            count = os.preadv(self._descriptors[path], [memoryview(data)[got:]], offset + got)
            if not count:
                raise UserError(f"{path} became shorter while it was read; fetch it again")
            got += count
        return data


def _files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        _refuse(directory)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [directory / name for name in names]
    except _BROKEN as error:
        raise UserError(f"{index} is not a valid index ({error}); fetch it again") from error
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{index.name} names {path.name}, which is not in {directory}; fetch that file"
            )
    return paths


def _refuse(directory: Path) -> None:
    other = [
        path.name
        for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf", "*.ggml")
        for path in sorted(directory.glob(pattern))
    ]
    if other:
        raise UserError(
            f"{directory} has its weights in {other[0]}, but safetensors are needed; fetch the "
            "model's *.safetensors, or save it again with Transformers' save_pretrained"
        )
    raise UserError(
        f"{directory} has no weights: neither model.safetensors nor model.safetensors.index.json"
    )


def _header(path: Path) -> tuple[dict[str, dict], int, bytes]:
    """Return the header's entries, the byte at which the numbers start, and the raw header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path} is cut short or no safetensors file: its header would have {length} bytes "
                f"and the file has {size}; fetch it again"
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
    except _BROKEN as error:
        raise UserError(
            f"{path} has a damaged safetensors header ({error}); fetch it again"
        ) from error
    if 8 + length + end > size:
        raise UserError(f"{path} is cut short: {size} bytes of {8 + length + end}; fetch it again")
    return entries, 8 + length, raw


def _check_format(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass  # the format's own library finds what else may be wrong: holes, overlaps
    except SafetensorError as error:
        raise UserError(f"{path} is no valid safetensors file ({error}); fetch it again") from error


def _tensor(name: str, shape: tuple[int, ...], found: dict) -> Tensor:
    if name not in found:
        raise UserError(f"the checkpoint has no tensor {name}; some of its files are missing")
    path, entry, start = found[name]
    try:
        kind, have = str(entry["dtype"]), tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if not all(type(n) is int for n in (*have, first, last)):
            raise TypeError("a size or an offset is no integer")
        if first < 0:
            raise ValueError("an offset is negative")
    except _BROKEN as error:
        raise UserError(f"{path} has a damaged entry for {name}; fetch it again") from error
    if kind not in _BY_SAFETENSORS_NAME:
        raise UserError(
            f"{name} is stored as {kind}; supported are {', '.join(_BY_SAFETENSORS_NAME)}"
        )
    if have != shape:
        raise UserError(
            f"{name} has shape {list(have)}, but config.json asks for {list(shape)}; they are of "
            "different models"
        )
    encoding = _BY_SAFETENSORS_NAME[kind]
    nbytes = int(np.prod(shape)) * encoding.storage.itemsize
    if last - first != nbytes:
        raise UserError(
            f"{path} has {last - first} bytes for {name}, which needs {nbytes}; fetch it again"
        )
    return Tensor(path, encoding.name, shape, start + first, nbytes)
