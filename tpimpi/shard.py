"""One rank's HDF5 file: where its tensors lie, how it is written so that nothing can spoil it.

All metadata is created first and the HDF5 file closed; the numbers then go to the datasets' own
offsets with plain writes. So the file is whole at every moment: a killed conversion leaves a valid
`.partial` whose `/checksums` tell which tensors are there (0: not yet).
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tpimpi.directio import PAGE
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import MachineError, UserError
from tpimpi.partition import Piece

FORMAT_VERSION = 1

WRITTEN = 1 << 32  # added to a CRC-32, so that 0 always means "not written"
MEND = "run the command again with --split-bin to cut the shards anew"


def shard_name(rank: int, size: int) -> str:
    """Return the file name of one rank's shard."""
    return f"shard-{rank}-of-{size}.h5"


@dataclass(frozen=True)
class Identity:
    """What a shard must agree on with the run that uses it."""

    fingerprint: str
    partition: str  # JSON of all ranks' shares
    rank: int
    size: int
    config: str  # JSON
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in a shard; `nbytes` may be 0."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


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


def _read_layout(path: Path) -> tuple[Identity, list[Stored], int]:
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
                stored.append(Stored(name, encoding, tuple(dataset.shape), offset, nbytes))
            return identity, stored, file["checksums"].id.get_offset()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        detail = str(error).strip("'\"").splitlines()[0]
        raise MachineError(f"{path} is damaged or cut short ({detail}); {MEND}") from error


def _crc_of(fd: int, tensor: Stored) -> int:
    crc, at, end = 0, tensor.offset, tensor.offset + tensor.nbytes
    while at < end:
        data = os.pread(fd, min(8 << 20, end - at), at)
        if not data:
            return -1  # the file ends too early
        crc, at = zlib.crc32(data, crc), at + len(data)
    return crc


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
                _, self.tensors, self._checksums = _read_layout(self.partial)
                self._reserve()
            except OSError as error:
                self.partial.unlink()
                raise self._no_room(pieces, encodings) from error
        self._running = [0] * len(self.tensors)

    def _resumes(self, identity: Identity, wanted: list[tuple]) -> bool:
        try:
            found, self.tensors, self._checksums = _read_layout(self.partial)
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
            bool(s) and int(s) == WRITTEN + _crc_of(self._fd, t)
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
        _stamp(self.path)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)


class Shard:
    """A finished shard, open for reading: `tensors` in tape order, by name in `[...]`."""

    def __init__(self, path: Path):
        self.path = path
        self.identity, self.tensors, self._checksums = _read_layout(path)
        self._by_name = {t.name: t for t in self.tensors}
        self.fd = os.open(path, os.O_RDONLY)

    def __getitem__(self, name: str) -> Stored:
        return self._by_name[name]

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

    def damaged(self) -> Iterator[tuple[Stored, bool]]:
        """Recompute every checksum; yield each tensor and whether it is damaged."""
        sums = np.frombuffer(os.pread(self.fd, 8 * len(self.tensors), self._checksums), np.uint64)
        for tensor, expected in zip(self.tensors, sums, strict=True):
            yield tensor, int(expected) != WRITTEN + _crc_of(self.fd, tensor)

    def verify(self) -> None:
        """Recompute every checksum and raise at the first that differs."""
        for tensor, bad in self.damaged():
            if bad:
                raise MachineError(f"{self.path}: the checksum of {tensor.name} is wrong; {MEND}")
        _stamp(self.path)

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


def _stamp(path: Path) -> None:
    """Note the state in which a shard was last known to be whole."""
    try:
        _stamp_path(path).write_text(json.dumps(_state(path)))
    except OSError:
        return  # a read-only folder: the shard is verified at each start instead
