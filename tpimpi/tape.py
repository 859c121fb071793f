"""The weights as a tape: tiles read in the order of use, through a ring, by threads of plain reads.

Tensors that are kept (resident) are read on the first lap into memory of their own; the others pass
through the ring on every lap. All resident and all streamed are the two ends of the same code.
The reader runs on across passes: while rank 0 samples, the next token's first tiles arrive.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpimpi.encoding import ENCODINGS
from tpimpi.errors import MachineError
from tpimpi.shard import PAGE, Shard, Stored

TILE_BYTES = 2 << 20
READERS = 3  # reads in flight: one that the disk serves and two queued behind it


@dataclass(frozen=True)
class Tile:
    """A run of rows of one tensor, and the page-aligned run of the file that holds it."""

    tensor: Stored
    row: int
    rows: int
    start: int  # byte of the file, a multiple of PAGE
    length: int  # bytes to read, a multiple of PAGE

    @property
    def nbytes(self) -> int:
        """The bytes of its rows, without the rest of the last page."""
        return self.rows * self.tensor.nbytes // self.tensor.shape[0]


def tiles_of(tensor: Stored) -> list[Tile]:
    """Cut one tensor into tiles of about TILE_BYTES: whole rows, whole pages if rows allow."""
    if not tensor.nbytes:
        return []
    count, row_bytes = tensor.shape[0], tensor.nbytes // tensor.shape[0]
    unit = PAGE // math.gcd(PAGE, row_bytes)  # rows after which a page ends too
    if unit * row_bytes <= 4 * TILE_BYTES:
        step = unit * max(1, TILE_BYTES // (unit * row_bytes))
    else:
        step = count  # no tile of a reasonable size ends with a page
    tiles = []
    for row in range(0, count, step):
        rows = min(step, count - row)
        start = tensor.offset + row * row_bytes
        tiles.append(Tile(tensor, row, rows, start, -(-rows * row_bytes // PAGE) * PAGE))
    return tiles


def ring_bytes_for(blocks: Sequence[int], window: int) -> int:
    """Return the ring that holds any `window` consecutive blocks of `blocks` bytes (a circle)."""
    around = list(blocks) + list(blocks[: window - 1])
    return max(sum(around[i : i + window]) for i in range(len(blocks)))


class Tape:
    """Serve a shard's tensors in tape order, lap after lap.

    `resident` names the tensors to keep; the others pass through a ring of `ring_bytes`.
    """

    def __init__(self, shard: Shard, names: Sequence[str], resident: set[str], ring_bytes: int):
        self._names = list(names)
        self._tiles = {name: tiles_of(shard[name]) for name in names}
        self._resident = set(resident)
        self._first = [t for name in names for t in self._tiles[name]]
        self._later = [t for t in self._first if t.tensor.name not in self._resident]
        self.streamed_bytes = sum(t.nbytes for t in self._later)  # a lap
        self.resident_bytes = sum(t.nbytes for t in self._first) - self.streamed_bytes
        largest = max((t.length for t in self._later), default=0)
        lap = sum(t.length for t in self._later)
        self.ring_bytes = max(2 * largest, min(ring_bytes, lap))
        self._ring = mmap.mmap(-1, max(self.ring_bytes, PAGE))
        self._regions = {n: _region(self._tiles[n]) for n in self._resident if self._tiles[n]}
        self._file = _File(shard.path)
        self._changed = threading.Condition()
        self._next = 0  # sequence number of the tile to be read next
        self._taken = 0  # ... and of the one to be used next
        self._head = self._used = 0  # where the ring is written next; bytes of it in use
        self._spans: deque[int] = deque()  # bytes of the ring each tile in it holds, in order
        self._ready: dict[int, tuple[mmap.mmap, int]] = {}  # sequence number -> memory, offset
        self._error: BaseException | None = None
        self._closed = False
        self.wait_seconds = 0.0
        self.bytes_read = 0
        self._threads = [
            threading.Thread(target=self._read, name=f"tape-reader-{i}", daemon=True)
            for i in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, raw weights [rows, K]) of the next tensor, which must be `name`.

        The weights are valid until the next step of the iteration; then their memory is free for
        the reader. Raises MachineError where a read has failed.
        """
        tiles = self._tiles[name]
        if not tiles:
            return
        if name in self._resident and self._taken >= len(self._first):
            tensor = tiles[0].tensor
            whole = Tile(tensor, 0, tensor.shape[0], tensor.offset, 0)
            yield 0, _rows(whole, self._regions[name], 0)
            return
        for tile in tiles:
            assert self._tile(self._taken) is tile, f"{name} is not what comes next on the tape"
            memory, offset = self._wait(self._taken)
            yield tile.row, _rows(tile, memory, offset)
            with self._changed:
                if memory is self._ring:
                    self._used -= self._spans.popleft()
                    self._changed.notify_all()
                self._taken += 1

    def close(self) -> None:
        """Stop the readers and close the file."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._file.close()

    def _tile(self, sequence: int) -> Tile | None:
        if sequence < len(self._first):
            return self._first[sequence]
        if not self._later:
            return None
        return self._later[(sequence - len(self._first)) % len(self._later)]

    def _wait(self, sequence: int) -> tuple[mmap.mmap, int]:
        with self._changed:
            if sequence not in self._ready:
                start = time.perf_counter()
                while sequence not in self._ready and self._error is None:
                    self._changed.wait()
                self.wait_seconds += time.perf_counter() - start
            if self._error is not None:
                raise self._error
            return self._ready.pop(sequence)

    def _place(self, tile: Tile) -> tuple[mmap.mmap, int] | None:
        """Return where a tile is to be read to, or None while the ring has no room."""
        if tile.tensor.name in self._resident:
            first = self._tiles[tile.tensor.name][0]
            return self._regions[tile.tensor.name], tile.start - first.start
        if not self._used:
            self._head = 0
        wrap = self._head + tile.length > self.ring_bytes
        span = tile.length + (self.ring_bytes - self._head if wrap else 0)
        if self._used + span > self.ring_bytes:
            return None
        offset = 0 if wrap else self._head
        self._head = offset + tile.length
        self._used += span
        self._spans.append(span)
        return self._ring, offset

    def _read(self) -> None:
        try:
            while True:
                with self._changed:
                    place = None
                    while place is None:
                        if self._closed or self._error is not None:
                            return
                        tile = self._tile(self._next)
                        if tile is None:
                            return  # everything is resident and read
                        place = self._place(tile)
                        if place is None:
                            self._changed.wait()
                    sequence, self._next = self._next, self._next + 1
                memory, offset = place
                self._file.read(memoryview(memory)[offset : offset + tile.length], tile)
                with self._changed:
                    self._ready[sequence] = place
                    self.bytes_read += tile.nbytes
                    self._changed.notify_all()
        except BaseException as error:  # raised in the compute thread at its next wait
            with self._changed:
                self._error = error
                self._changed.notify_all()


def _region(tiles: list[Tile]) -> mmap.mmap:
    region = mmap.mmap(-1, tiles[-1].start + tiles[-1].length - tiles[0].start)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return region


def _rows(tile: Tile, memory: mmap.mmap, offset: int) -> np.ndarray:
    storage = ENCODINGS[tile.tensor.encoding].storage
    columns = tile.tensor.shape[1]
    return np.frombuffer(memory, storage, tile.rows * columns, offset).reshape(tile.rows, columns)


class _File:
    """A shard open for big reads past the page cache, or beside it where O_DIRECT is refused."""

    def __init__(self, path: Path):
        self._path = path
        self._direct = False
        if hasattr(os, "O_DIRECT"):
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
                self._direct = True
                return
            except OSError:
                pass  # a file system without it (tmpfs): the buffered way below
        self._fd = os.open(path, os.O_RDONLY)
        self._uncached()

    def _uncached(self) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(self._fd, fcntl.F_NOCACHE, 1)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, into: memoryview, tile: Tile) -> None:
        """Fill `into` with a tile; the rest of its last page may be missing at the file's end."""
        got = 0
        while got < tile.nbytes:
            try:
                count = os.preadv(self._fd, [into[got:]], tile.start + got)
            except OSError as error:
                if self._direct and error.errno == errno.EINVAL:
                    self._fd, self._direct = os.open(self._path, os.O_RDONLY), False
                    continue
                raise MachineError(
                    f"reading {tile.tensor.name} from {self._path} failed ({error.strerror})"
                ) from error
            if not count:
                raise MachineError(
                    f"{self._path} ended within {tile.tensor.name} while it was read; was it "
                    "replaced? Check it with `tpimpi verify`"
                )
            got += count
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, tile.start, tile.length, os.POSIX_FADV_DONTNEED)
