"""One rank's HDF5 file: whose it is, where its tensors lie, and whether it is whole."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from tpimpi.errors import MachineError, UserError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.layout import Identity, StoredTensor

WRITTEN = 1 << 32  # added to a CRC-32, so that 0 always means "not written"
MEND = "run the command again with --split-bin to cut the shards anew"


def read_layout(path: Path) -> tuple[Identity, list[StoredTensor], int]:
    """Return who a shard is for, its tensors in tape order, and the offset of `/checksums`."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            identity = Identity(
                version=int(file.attrs["format_version"]),
                fingerprint=str(file.attrs["fingerprint"]),
                partition=str(file.attrs["partition"]),
                rank=int(file.attrs["rank"]),
                size=int(file.attrs["size"]),
                config=str(file.attrs["config"]),
            )
            stored = []
            for name in json.loads(file.attrs["tape"]):
                dataset = file[name]
                encoding = str(dataset.attrs["encoding"])
                nbytes = int(np.prod(dataset.shape)) * ENCODINGS[encoding].storage.itemsize
                offset = dataset.id.get_offset() if nbytes else 0
                stored.append(StoredTensor(name, encoding, tuple(dataset.shape), offset, nbytes))
            return identity, stored, file["checksums"].id.get_offset()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        detail = str(error).strip("'\"").splitlines()[0]
        raise MachineError(f"{path} is damaged or cut short ({detail}); {MEND}") from error


def crc_of(fd: int, tensor: StoredTensor) -> int:
    """Return the CRC-32 of a tensor's bytes in an open file, -1 if the file ends too early."""
    crc, at, end = 0, tensor.offset, tensor.offset + tensor.nbytes
    while at < end:
        data = os.pread(fd, min(8 << 20, end - at), at)
        if not data:
            return -1
        crc, at = zlib.crc32(data, crc), at + len(data)
    return crc


class Shard:
    """A finished shard, open for reading: `tensors` in tape order, by name in `[...]`."""

    def __init__(self, path: Path):
        self.path = path
        self.identity, self.tensors, self._checksums = read_layout(path)
        self._by_name = {t.name: t for t in self.tensors}
        self.fd = os.open(path, os.O_RDONLY)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def check(self, wanted: Identity) -> None:
        """Refuse a shard made for another model, cut or version, with what differs."""
        found = self.identity
        for what, have, want in (
            ("has format version", found.version, wanted.version),
            ("was cut from a model with fingerprint", found.fingerprint, wanted.fingerprint),
            ("was cut for a number of ranks of", found.size, wanted.size),
            ("is the shard of rank", found.rank, wanted.rank),
            ("was cut by the shares", found.partition, wanted.partition),
        ):
            if have != want:
                raise UserError(f"{self.path} {what} {have}, but this run needs {want}; {MEND}")

    def damaged(self) -> Iterator[tuple[StoredTensor, bool]]:
        """Recompute every checksum; yield each tensor and whether it is damaged."""
        sums = np.frombuffer(os.pread(self.fd, 8 * len(self.tensors), self._checksums), np.uint64)
        for tensor, expected in zip(self.tensors, sums, strict=True):
            yield tensor, int(expected) != WRITTEN + crc_of(self.fd, tensor)

    def verify(self) -> None:
        """Recompute every checksum and raise at the first that differs."""
        for tensor, bad in self.damaged():
            if bad:
                raise MachineError(f"{self.path}: the checksum of {tensor.name} is wrong; {MEND}")
        stamp(self.path)

    def verify_if_touched(self) -> None:
        """Verify a file that changed since its last verification; else trust it."""
        try:
            known = json.loads(_stamp_path(self.path).read_text())
        except (OSError, ValueError):
            known = None
        if known != _state(self.path):
            self.verify()

    def widened(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Read a small tensor, or rows of one, as float32 (norms, embedding rows)."""
        tensor = self._by_name[name]
        encoding = ENCODINGS[tensor.encoding]
        offset, shape = tensor.offset, tensor.shape
        if rows is not None:
            offset += rows.start * encoding.row_bytes(shape[1])
            shape = (rows.stop - rows.start, shape[1])
        nbytes = int(np.prod(shape)) * encoding.storage.itemsize
        data = os.pread(self.fd, nbytes, offset)
        if len(data) != nbytes:
            raise MachineError(f"{self.path} is cut short at {name}; {MEND}")
        return encoding.widen(np.frombuffer(data, encoding.storage)).reshape(shape)


def _state(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".verified")


def stamp(path: Path) -> None:
    """Note the state in which a shard was last known to be whole."""
    try:
        _stamp_path(path).write_text(json.dumps(_state(path)))
    except OSError:
        return  # a read-only folder: the shard is verified at each start instead
