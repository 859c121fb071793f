"""How a shard is written so that nothing can spoil it.

All metadata is created first, sealed, and the HDF5 file closed; the numbers then go to the
datasets' own offsets with plain writes, those of matrices as panels. So the file is whole at
every moment: a killed conversion leaves a valid `.partial` whose `/checksums` tell which tensors
are there (0: not yet), and whose `/sources` tell of which content they are; of a matrix that is
being written, how many of its rows are there (see `begun`).
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path

import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.errors import MachineError, UserError, describe
from tpimpi.model.tensors import Piece
from tpimpi.paths import free_disk
from tpimpi.progress import Progress
from tpimpi.shards.begun import BEGUN, Begun, bytes_of_rows, rows_of_bytes
from tpimpi.shards.creation import create
from tpimpi.shards.gather import Gatherer
from tpimpi.shards.layout import Identity, StoredTensor, stored
from tpimpi.shards.seal import write_seal
from tpimpi.shards.shard import WRITTEN, Layout, crc_of, read_layout, read_tables, stamp
from tpimpi.units import size

FLUSH_BYTES = 16 << 20  # after which the disk is told to take what is written
NO_SOURCE = bytes(HASH_BYTES)  # of weights that were cut from no checkpoint


def _start_writing(fd: int) -> None:
    """Let the disk begin to take what is written, so that little is left for the end to wait for.

    Of Linux; this also takes what is on the disk out of the page cache, where nobody reads it.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class ShardWriter:
    """Write one shard, beginning where an interrupted conversion stopped.

    With `anew` it begins with nothing all the same. With `sparse` no space is taken from the disk:
    what is never written reads as zeros.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        pieces: list[Piece],
        encodings: list[str],
        sparse: bool = False,
        anew: bool = False,
    ) -> None:
        self.path, self._sparse, self._anew = path, sparse, anew
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
        layout = None if self._anew else self._resumes(identity, wanted)
        if layout is None:
            try:
                layout = create(self.partial, identity, pieces, encodings)
                self._reserve(layout.tensors)
            except (OSError, RuntimeError, MachineError) as error:  # as HDF5 puts it
                length = os.fstat(self._fd).st_size  # of all, once all is laid out
                self.partial.unlink()
                raise self._no_room(pieces, encodings, length) from error
        self._layout, self.tensors = layout, layout.tensors
        self._sums = [0] * len(self.tensors)  # CRC-32 of what is written of each
        self._ends = [0] * len(self.tensors)  # the byte where each goes on
        self._gatherers: dict[int, Gatherer] = {}
        self._whole: set[int] = set()  # tensors that are there
        self._noted: dict[int, int] = {}  # bytes of those of which some rows are
        self.begun: dict[int, Begun] = {}  # found of an earlier run
        self._flushed = 0  # bytes written since the disk was last told to take them
        for index in range(len(self.tensors)):
            self.restart(index)
        self._begun_with = os.fstat(self._fd)
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
        end = self._begun_with.st_size
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

        `begun` then tells of those of which some rows are. All was read again and its checksums
        compared.
        """
        sums, sources = read_tables(self._fd, self._layout)
        table = list(zip(self.tensors, map(int, sums), sources, strict=True))
        begun = {
            index: note for index, (tensor, crc, data) in enumerate(table)
            if crc == BEGUN and (note := Begun.from_bytes(data, tensor))
        }  # fmt: skip
        parts = {i: bytes_of_rows(self.tensors[i], note.rows) for i, note in begun.items()}
        total = sum(t.nbytes for t, crc, _ in table if crc & WRITTEN) + sum(parts.values())
        with Progress("checking what is there already", total, speaks=speaks) as bar:
            found = [
                source if crc & WRITTEN and crc == WRITTEN + crc_of(self._fd, t, bar) else None
                for t, crc, source in table
            ]
            self.begun = {
                index: note for index, note in begun.items()
                if crc_of(self._fd, self.tensors[index], bar, parts[index]) == note.crc
            }  # fmt: skip
        self._whole = {index for index, source in enumerate(found) if source is not None}
        return found

    @property
    def kept(self) -> int:
        """The bytes that are there, with which an interrupted conversion goes on."""
        whole = sum(self.tensors[index].nbytes for index in self._whole)
        return whole + sum(self._noted.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def restart(self, index: int) -> None:
        """Let tensor `index` be written from its first row on."""
        tensor = self.tensors[index]
        self._sums[index], self._ends[index] = 0, tensor.offset
        if tensor.panels:
            self._gatherers[index] = Gatherer(tensor)
        self._whole.discard(index)
        self._noted.pop(index, None)

    def resume(self, index: int) -> int:
        """Let a tensor that was `begun` be written from its next row on; return which that is."""
        tensor, note = self.tensors[index], self.begun[index]
        self.restart(index)
        self._noted[index] = bytes_of_rows(tensor, note.rows)
        self._sums[index], self._ends[index] = note.crc, tensor.offset + self._noted[index]
        if tensor.panels:
            self._gatherers[index] = Gatherer(tensor, note.rows)
        return note.rows

    def write(self, index: int, rows: np.ndarray, origin: bytes = b"") -> None:
        """Write the next raw rows of tensor `index`, [n, K] or of a vector [n].

        They come in order, in runs of any length; a matrix's are packed into panels. With their
        `origin` another run can go on from there.
        """
        gatherer = self._gatherers.get(index)
        if gatherer is None:
            self._append(index, rows)
        else:
            for panels in gatherer.panels(rows):
                self._append(index, panels)
        if origin:
            self._note(index, origin)

    def _append(self, index: int, data: np.ndarray) -> None:
        view = memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        self._sums[index] = zlib.crc32(view, self._sums[index])
        while view:
            count = os.pwrite(self._fd, view, self._ends[index])
            self._ends[index] += count
            view = view[count:]
            self._flushed += count
        if self._flushed >= FLUSH_BYTES:
            self._flushed = 0
            _start_writing(self._fd)

    def _note(self, index: int, origin: bytes) -> None:
        """Note how many rows of a tensor are there."""
        tensor = self.tensors[index]
        nbytes = self._ends[index] - tensor.offset
        rows = rows_of_bytes(tensor, nbytes)
        if rows:
            note = Begun(rows, self._sums[index], origin).to_bytes()
            os.pwrite(self._fd, note, self._layout.sources + HASH_BYTES * index)
            if index not in self._noted:
                value = np.uint64(BEGUN).tobytes()
                os.pwrite(self._fd, value, self._layout.checksums + 8 * index)
            self._noted[index] = nbytes

    def complete(self, index: int, source: bytes = NO_SOURCE) -> None:
        """Record the checksum of a tensor written to its end, and the hash of what it is from."""
        os.pwrite(self._fd, source, self._layout.sources + HASH_BYTES * index)
        value = np.uint64(WRITTEN + self._sums[index]).tobytes()
        os.pwrite(self._fd, value, self._layout.checksums + 8 * index)
        self._whole.add(index)
        self._noted.pop(index, None)

    def failure(self, error: OSError) -> MachineError:
        """Return in a sentence that writing failed, and what comes of what is written."""
        kept = f"{size(self.kept)} of {size(self.nbytes)} are kept, and the same command"
        if not self._anew:
            then = f"{kept} goes on from there"
        elif self.path.exists():
            then = f"{self.path} is still what it was"
        else:
            then = f"{kept} without --split-bin goes on from there"
        return MachineError(f"writing {self.partial} failed ({describe(error)}); {then}")

    def finish(self) -> None:
        """Make the shard durable and give it its name."""
        self._seal(finished=True)
        os.fsync(self._fd)
        try:
            os.replace(self.partial, self.path)
        except FileNotFoundError as error:
            raise MachineError(
                f"{self.partial} was removed while it was written; the same command writes it again"
            ) from error
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if self._is_untouched():  # else it is read again before it is used
            stamp(self.path, self._fd)

    def _is_untouched(self) -> bool:
        """Whether nobody has cut it short meanwhile: that leaves holes, or another length."""
        now, then = os.fstat(self._fd), self._begun_with
        return now.st_size == then.st_size and (self._sparse or now.st_blocks >= then.st_blocks)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)
