"""How a shard is written so that nothing can spoil it.

All metadata is created first, sealed, and the HDF5 file closed; the numbers then go to the
datasets' own offsets with plain writes, those of matrices as panels. So the file is whole at
every moment: a killed conversion leaves a valid `.partial` whose `/checksums` tell which tensors
are there (0: not yet), and whose `/sources` tell of which content they are.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.errors import MachineError, UserError, describe
from tpimpi.model.encoding import ENCODINGS, Encoding
from tpimpi.model.tensors import Piece
from tpimpi.paths import free_disk
from tpimpi.progress import Progress
from tpimpi.shards.gather import Gatherer
from tpimpi.shards.layout import FORMAT_VERSION, PAGE, Identity, StoredTensor, stored
from tpimpi.shards.seal import write_seal
from tpimpi.shards.shard import WRITTEN, Layout, crc_of, parse, read_layout, read_tables, stamp
from tpimpi.units import size

NO_SOURCE = bytes(HASH_BYTES)  # of weights that were cut from no checkpoint


def _hdf5_type(encoding: Encoding) -> h5py.h5t.TypeID:
    """Return the type of the encoding's numbers: a sign, the exponent, the mantissa."""
    bits = 1 + encoding.exponent + encoding.mantissa
    kind = h5py.h5t.IEEE_F32LE.copy()  # of bf16 it becomes the layout of HDF5 2.0's own
    kind.set_fields(bits - 1, encoding.mantissa, encoding.exponent, 0, encoding.mantissa)
    kind.set_size(bits // 8)
    kind.set_ebias((1 << encoding.exponent - 1) - 1)
    return kind


def _dataset(tensor: StoredTensor) -> tuple[h5py.h5t.TypeID, tuple[int, ...]]:
    """Return type and shape of what a tensor is in HDF5: its rows, or its panels."""
    encoding = ENCODINGS[tensor.encoding]
    if not tensor.in_panels:
        return _hdf5_type(encoding), tensor.shape
    kind = h5py.h5t.STD_U8LE if encoding.packed else _hdf5_type(encoding)
    return kind, (tensor.panels, *encoding.panel_shape(tensor.shape[1]))


def _create(path: Path, identity: Identity, pieces: list[Piece], encodings: list[str]) -> Layout:
    """Create the file with all that describes it, HDF5's structures before all tensors."""
    groups = {above for piece in pieces for above in PurePosixPath(piece.name).parents}
    pages = len(pieces) + len(groups) + 16  # each object takes one, as all is aligned for tensors
    while True:
        _create_with(path, identity, pieces, encodings, pages * PAGE)
        layout = parse(path)
        if _tensors_lie_together(layout.tensors, path.stat().st_size):
            return layout
        pages += pages // 8


def _tensors_lie_together(tensors: list[StoredTensor], end: int) -> bool:
    stored = sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset)
    starts = [t.offset for t in stored[1:]] + [end]
    # Whatever else lay between would begin a page of its own.
    return all(at - t.offset - t.nbytes < PAGE for t, at in zip(stored, starts, strict=True))


def _create_with(
    path: Path, identity: Identity, pieces: list[Piece], encodings: list[str], structures: int
) -> None:
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
        userblock_size=PAGE,
        meta_block_size=structures,
        alignment_threshold=1,
        alignment_interval=PAGE,
        locking=False,
    ) as file:
        file.attrs.update(
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": np.bytes_(identity.fingerprint),
                "partition": np.bytes_(identity.partition),
                "rank": identity.rank,
                "size": identity.size,
                "config": np.bytes_(identity.config),
            }
        )
        file.create_dataset("tape", data=np.array([piece.name.encode() for piece in pieces]))
        file.create_dataset("checksums", data=np.zeros(len(pieces), np.uint64))
        file.create_dataset("sources", data=np.zeros((len(pieces), HASH_BYTES), np.uint8))
        for index, (piece, encoding) in enumerate(zip(pieces, encodings, strict=True)):
            tensor = stored(piece, encoding)
            kind, shape = _dataset(tensor)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, piece.name.encode(), kind, space, layout, links)
            about = {"encoding": np.bytes_(encoding), "checksum_index": index}
            if tensor.in_panels:
                about |= dict(zip(("rows", "columns"), tensor.shape, strict=True))
            file[piece.name].attrs.update(about)


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
        self._fd = self._open()
        try:
            self._begin(identity, pieces, encodings)
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> int:
        """Open the `.partial` and lock it, so that nobody else writes it."""
        for path in (self.path, self.partial):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is no file; remove it or choose another with --save-dir")
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(
                    f"{self.path.parent} can't be written to ({describe(error)}); choose another "
                    "folder with --save-dir"
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who had the lock may have finished, and given the locked file its final name.
                if os.path.samestat(os.fstat(fd), os.stat(self.partial)):
                    return fd
            except BlockingIOError as error:
                os.close(fd)
                raise MachineError(
                    f"another conversion is writing {self.partial}; wait for it or choose "
                    "--save-dir"
                ) from error
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _begin(self, identity: Identity, pieces: list[Piece], encodings: list[str]) -> None:
        wanted = [(p.name, e, p.shape) for p, e in zip(pieces, encodings, strict=True)]
        layout = self._resumes(identity, wanted)
        if layout is None:
            try:
                layout = _create(self.partial, identity, pieces, encodings)
                self._reserve(layout.tensors)
            except (OSError, RuntimeError, MachineError) as error:  # as HDF5 puts it
                length = os.fstat(self._fd).st_size  # of all, once all is laid out
                self.partial.unlink()
                raise self._no_room(pieces, encodings, length) from error
        self._layout, self.tensors = layout, layout.tensors
        self._sums = [0] * len(self.tensors)  # CRC-32 of what is written of each
        self._ends = [tensor.offset for tensor in self.tensors]  # the byte where each goes on
        self._gatherers = {
            index: Gatherer(tensor) for index, tensor in enumerate(self.tensors) if tensor.panels
        }
        self._seal(finished=False)

    def _resumes(self, identity: Identity, wanted: list[tuple]) -> Layout | None:
        try:
            found = read_layout(self.partial, finished=False)
        except (MachineError, UserError):
            return None  # nothing of use was written before it stopped
        have = [(t.name, t.encoding, t.shape) for t in found.tensors]
        return None if found.identity.difference(identity) or have != wanted else found

    def _reserve(self, tensors: list[StoredTensor]) -> None:
        """Take the whole space from the disk now, so that a full one is noticed at once."""
        end = max((t.offset + t.nbytes for t in tensors), default=0)
        end = max(end, os.fstat(self._fd).st_size)
        if hasattr(os, "posix_fallocate") and not self._sparse:
            os.posix_fallocate(self._fd, 0, end)
        else:
            os.ftruncate(self._fd, end)

    def _seal(self, finished: bool) -> None:
        end = os.fstat(self._fd).st_size
        first = min((t.offset for t in self.tensors if t.nbytes), default=end)
        write_seal(self._fd, end, first, self._layout.tables, finished)

    def _no_room(self, pieces: list[Piece], encodings: list[str], length: int) -> MachineError:
        need = sum(stored(p, e).nbytes for p, e in zip(pieces, encodings, strict=True))
        free = size(free_disk(self.path))
        return MachineError(
            f"{self.path} needs {size(max(need, length))} and its disk has {free} free; free some "
            "space or choose another folder with --save-dir"
        )

    def done(self, speaks: bool = False) -> list[bytes | None]:
        """Tell of what content the tensors are that are there; None: it isn't there.

        Each was read again and its checksum compared.
        """
        sums, sources = read_tables(self._fd, self._layout)
        there = [t.nbytes for t, s in zip(self.tensors, sums, strict=True) if s]
        with Progress("checking what is there already", sum(there), speaks=speaks) as bar:
            return [
                source if s and int(s) == WRITTEN + crc_of(self._fd, t, bar) else None
                for s, t, source in zip(sums, self.tensors, sources, strict=True)
            ]

    def write(self, index: int, rows: np.ndarray) -> None:
        """Write the next raw rows of tensor `index`, [n, K] or of a vector [n].

        They come in order, in runs of any length; a matrix's are packed into panels.
        """
        gatherer = self._gatherers.get(index)
        if gatherer is None:
            self._append(index, rows)
        else:
            for panels in gatherer.panels(rows):
                self._append(index, panels)

    def _append(self, index: int, data: np.ndarray) -> None:
        view = memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        self._sums[index] = zlib.crc32(view, self._sums[index])
        while view:
            count = os.pwrite(self._fd, view, self._ends[index])
            self._ends[index] += count
            view = view[count:]

    def complete(self, index: int, source: bytes = NO_SOURCE) -> None:
        """Record the checksum of a tensor written to its end, and the hash of what it is from."""
        os.pwrite(self._fd, source, self._layout.sources + HASH_BYTES * index)
        value = np.uint64(WRITTEN + self._sums[index]).tobytes()
        os.pwrite(self._fd, value, self._layout.checksums + 8 * index)

    def finish(self) -> None:
        """Make the shard durable and give it its name."""
        self._seal(finished=True)
        os.fsync(self._fd)
        os.replace(self.partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        stamp(self.path, self._fd)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)
