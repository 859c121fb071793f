"""How a shard is written so that nothing can spoil it.

All metadata is created first and the HDF5 file closed; the numbers then go to the datasets' own
offsets with plain writes. So the file is whole at every moment: a killed conversion leaves a valid
`.partial` whose `/checksums` tell which tensors are there (0: not yet).
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from pathlib import Path

import h5py
import numpy as np

from tpimpi.errors import MachineError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import Piece
from tpimpi.shards.layout import PAGE, Identity
from tpimpi.shards.shard import WRITTEN, crc_of, read_layout, stamp


def _hdf5_type(encoding: str) -> h5py.h5t.TypeID:
    if encoding == "bf16":  # the layout of HDF5 2.0's own bfloat16: 1 sign, 8 exponent, 7 mantissa
        bf16 = h5py.h5t.IEEE_F32LE.copy()
        bf16.set_fields(15, 7, 8, 0, 7)
        bf16.set_size(2)
        bf16.set_ebias(127)
        return bf16
    return {"f32": h5py.h5t.IEEE_F32LE, "f16": h5py.h5t.IEEE_F16LE}[encoding]


def _create(path: Path, identity: Identity, pieces: list[Piece], encodings: list[str]) -> None:
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(
        path,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=PAGE,
        locking=False,
    ) as file:
        file.attrs.update(
            {
                "format_version": identity.version,
                "fingerprint": identity.fingerprint,
                "partition": identity.partition,
                "rank": identity.rank,
                "size": identity.size,
                "config": identity.config,
                "tape": json.dumps([piece.name for piece in pieces]),
            }
        )
        file.create_dataset("checksums", data=np.zeros(len(pieces), np.uint64))
        for index, (piece, encoding) in enumerate(zip(pieces, encodings, strict=True)):
            space = h5py.h5s.create_simple(piece.shape)
            kind = _hdf5_type(encoding)
            h5py.h5d.create(file.id, piece.name.encode(), kind, space, layout, links)
            file[piece.name].attrs["encoding"] = encoding
            file[piece.name].attrs["checksum_index"] = index


class ShardWriter:
    """Write one shard, beginning where an interrupted conversion stopped.

    With `sparse` no space is taken from the disk: what is never written reads as zeros.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        pieces: list[Piece],
        encodings: list[str],
        sparse: bool = False,
    ) -> None:
        self.path, self._sparse = path, sparse
        self.partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._begin(identity, pieces, encodings)
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, identity: Identity, pieces: list[Piece], encodings: list[str]) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                f"another conversion is writing {self.partial}; wait for it or choose --save-dir"
            ) from error
        wanted = [(p.name, e, p.shape) for p, e in zip(pieces, encodings, strict=True)]
        if not self._resumes(identity, wanted):
            try:
                _create(self.partial, identity, pieces, encodings)
                _, self.tensors, self._checksums = read_layout(self.partial)
                self._reserve()
            except OSError as error:
                self.partial.unlink()
                raise self._no_room(pieces, encodings) from error
        self._running = [0] * len(self.tensors)

    def _resumes(self, identity: Identity, wanted: list[tuple]) -> bool:
        try:
            found, self.tensors, self._checksums = read_layout(self.partial)
        except MachineError:
            return False  # nothing of use was written before it stopped
        return found == identity and [(t.name, t.encoding, t.shape) for t in self.tensors] == wanted

    def _reserve(self) -> None:
        """Take the whole space from the disk now, so that a full one is noticed at once."""
        size = max((t.offset + t.nbytes for t in self.tensors), default=0)
        size = max(size, os.fstat(self._fd).st_size)
        if hasattr(os, "posix_fallocate") and not self._sparse:
            os.posix_fallocate(self._fd, 0, size)
        else:
            os.ftruncate(self._fd, size)

    def _no_room(self, pieces: list[Piece], encodings: list[str]) -> MachineError:
        size = sum(
            int(np.prod(piece.shape)) * ENCODINGS[encoding].storage.itemsize
            for piece, encoding in zip(pieces, encodings, strict=True)
        )
        disk = os.statvfs(self.path.parent)
        return MachineError(
            f"{self.path} needs {size / 2**30:.3f} GiB and its disk has "
            f"{disk.f_bavail * disk.f_frsize / 2**30:.3f} GiB free; free some space or choose "
            "another folder with --save-dir"
        )

    def done(self) -> list[bool]:
        """Tell which tensors are there already; each was read again and its checksum compared."""
        sums = np.frombuffer(os.pread(self._fd, 8 * len(self.tensors), self._checksums), np.uint64)
        return [
            bool(s) and int(s) == WRITTEN + crc_of(self._fd, t)
            for s, t in zip(sums, self.tensors, strict=True)
        ]

    def write(self, index: int, at: int, data: memoryview | bytes) -> None:
        """Write bytes of tensor `index` at byte `at` of it; a tensor's bytes come in order."""
        self._running[index] = zlib.crc32(data, self._running[index] if at else 0)
        view, position = memoryview(data).cast("B"), self.tensors[index].offset + at
        while view:
            count = os.pwrite(self._fd, view, position)
            view, position = view[count:], position + count

    def complete(self, index: int) -> None:
        """Record the checksum of a tensor that was written to its end."""
        value = np.uint64(WRITTEN + self._running[index]).tobytes()
        os.pwrite(self._fd, value, self._checksums + 8 * index)

    def finish(self) -> None:
        """Make the shard durable and give it its name."""
        os.fsync(self._fd)
        os.replace(self.partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        stamp(self.path)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)
