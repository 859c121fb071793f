"""A Hugging Face checkpoint, read by rank 0: every tensor checked before one is used.

Pieces are read with `pread`, not mapped, so that the process's memory is bounded by the piece asked
for.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tpimpi.checkpoint.files import (
    BROKEN,
    check_format,
    open_weights,
    read_header,
    weight_files,
)
from tpimpi.checkpoint.fingerprint import file_state, quick_fingerprint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.fields import shown
from tpimpi.model.tensors import EMBEDDING, HEAD, expected_shapes

_BY_SAFETENSORS_NAME = {e.safetensors_name: e for e in ENCODINGS.values()}
_SAMPLES, _SAMPLE = 64, 1 << 18  # places at which two matrices are compared, bytes at each


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: file, encoding, shape, byte offset, bytes."""

    path: Path
    encoding: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """All tensors of a model directory, checked against its config. Raises UserError.

    `tensors` has them by the names that a whole model gives them, `config` says whether the head
    is the embedding, `warnings` what a user should know of them. `descriptors` are the open files,
    `states` those that they were in before anything of them was read.
    """

    def __init__(self, directory: str | Path, config: ModelConfig):
        self.warnings: list[str] = []
        self.descriptors: dict[Path, int] = {}
        self.states: dict[Path, str] = {}
        try:
            self._read(Path(directory), config)
        except BaseException:
            self.close()
            raise

    def _read(self, directory: Path, config: ModelConfig) -> None:
        found: dict[str, tuple[Path, dict, int]] = {}
        headers = hashlib.sha256()
        paths = weight_files(directory)
        for path in paths:
            fd = self.descriptors[path] = open_weights(path)
            self.states[path] = file_state(os.fstat(fd))
            header, start, raw = read_header(path, fd)
            headers.update(raw)
            found |= {name: (path, entry, start) for name, entry in header.items()}
        self.tensors = _tensors(config, _with_prefix(found))
        self.config = replace(config, tie_word_embeddings=HEAD not in self.tensors)
        for path in paths:
            check_format(path)  # last, as it can't name the tensor that is missing
        if config.tie_word_embeddings and HEAD in self.tensors and not self._same_head():
            self.warnings.append(
                f"{directory} has a {HEAD} of its own, other than {EMBEDDING}, though config.json "
                "says tie_word_embeddings; it is used, as Transformers uses it"
            )
        self.fingerprint = quick_fingerprint(
            config, headers.digest(), self.tensors.values(), self._pread
        )

    def weight(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        return self.tensors[name]

    def read(
        self, name: str, rows: slice | None, columns: slice | None, into: np.ndarray | None = None
    ) -> np.ndarray:
        """Return raw rows (and columns of them) in the storage dtype, contiguous.

        They are read into the bytes of `into`, where that is given.
        """
        tensor = self.weight(name)
        first, last = (rows.start, rows.stop) if rows else (0, tensor.shape[0])
        row_bytes = tensor.nbytes // tensor.shape[0]
        data = self._pread(
            tensor.path, (last - first) * row_bytes, tensor.offset + first * row_bytes, into
        )
        array = ENCODINGS[tensor.encoding].raw(data, (last - first, *tensor.shape[1:]))
        return array if columns is None else np.ascontiguousarray(array[:, columns])

    def close(self) -> None:
        """Close the files."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def _same_head(self) -> bool:
        """Return whether head and embedding have the same bytes, looking at places over both.

        A difference in between costs a user the warning and nothing else, a whole comparison would
        cost every start.
        """
        head, embedding = self.tensors[HEAD], self.tensors[EMBEDDING]
        if head.encoding != embedding.encoding:
            return False
        last = max(head.nbytes - _SAMPLE, 0)
        for at in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
            count = min(_SAMPLE, head.nbytes - at)
            pair = [self._pread(t.path, count, t.offset + at) for t in (head, embedding)]
            if pair[0] != pair[1]:
                return False
        return True

    def _pread(
        self, path: Path, nbytes: int, offset: int, into: np.ndarray | None = None
    ) -> bytearray | np.ndarray:
        data, got = bytearray(nbytes) if into is None else into[:nbytes], 0
        while got < nbytes:
            count = os.preadv(self.descriptors[path], [memoryview(data)[got:]], offset + got)
            if not count:
                raise UserError(f"{path} became shorter while it was read; fetch it again")
            got += count
        return data


def _with_prefix(found: dict) -> dict:
    """Give the tensors of a LlamaModel or its kin, saved alone, the names of a whole model."""
    bare = [name for name in found if not name.startswith(("model.", "lm_head."))]
    return {f"model.{name}": found[name] for name in bare} | found


def _tensors(config: ModelConfig, found: dict) -> dict[str, Tensor]:
    """Return the tensors that the model needs. Which matrix is the head, those there decide.

    As in Transformers, `tie_word_embeddings` ties a head or an embedding that isn't stored to the
    other; a head that is stored beside the embedding is the head.
    """
    shapes = expected_shapes(config)
    if config.tie_word_embeddings:
        if HEAD in found and EMBEDDING not in found:
            found = found | {EMBEDDING: found[HEAD]}
        elif HEAD in found:
            shapes[HEAD] = shapes[EMBEDDING]
    return {name: _tensor(name, shape, found) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], found: dict) -> Tensor:
    if name not in found and name == HEAD:
        raise UserError(
            f"the checkpoint has no tensor {HEAD}, and config.json doesn't tie it to the "
            "embedding; it was saved without its head, or some of its files are missing"
        )
    if name not in found:
        raise UserError(f"the checkpoint has no tensor {name}; some of its files are missing")
    path, entry, start = found[name]
    try:
        kind, have = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if not all(type(n) is int for n in (*have, first, last)):
            raise TypeError("a size or an offset is no integer")
        if not 0 <= first <= last:
            raise ValueError("an offset is negative, or before its tensor's first")
    except BROKEN as error:
        raise UserError(f"{path} has a damaged entry for {name}; fetch it again") from error
    if not isinstance(kind, str) or kind not in _BY_SAFETENSORS_NAME:
        stored = kind[:60] if isinstance(kind, str) else shown(kind)
        raise UserError(
            f"{name} is stored as {stored}; supported are {', '.join(_BY_SAFETENSORS_NAME)}"
        )
    if have != shape:
        raise UserError(
            f"{name} has shape {shown(list(have))}, but config.json asks for {list(shape)}; they "
            "are of different models"
        )
    encoding = _BY_SAFETENSORS_NAME[kind]
    nbytes = encoding.nbytes(*shape)
    if last - first != nbytes:
        raise UserError(
            f"{path} has {last - first} bytes for {name}, which needs {nbytes}; fetch it again"
        )
    return Tensor(path, encoding.name, shape, start + first, nbytes)
