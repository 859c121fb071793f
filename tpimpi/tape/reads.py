"""From tensors in the order of use to reads of the file: pure arithmetic.

Of each tensor the first rows may be resident; the others are streamed. A read is a run of whole
pages, about READ_BYTES long. It goes on from one tensor into the next, so that many small tensors
(keys and values over many ranks) do not make many small reads. A tile is what a read holds of one
tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tpimpi.shards.layout import PAGE, StoredTensor

READ_BYTES = 2 << 20
_GAP = 64 << 10  # bytes between two tensors that are rather read along than begin another read


@dataclass(frozen=True)
class Read:
    """A run of the file that begins with a page; `needed` bytes of it must exist."""

    start: int
    needed: int
    resident: str | None = None  # the tensor whose own memory it fills; None: the ring

    @property
    def length(self) -> int:
        """Its bytes in whole pages."""
        return -(-self.needed // PAGE) * PAGE


@dataclass(frozen=True)
class Tile:
    """Rows of one tensor, `at` bytes into their read; `last`: nothing of that read is left."""

    row: int
    rows: int
    at: int
    last: bool


@dataclass(frozen=True)
class Lap:
    """The streamed reads of one trip over the tape, and each tensor's tiles in them."""

    reads: tuple[Read, ...]
    tiles: dict[str, tuple[Tile, ...]]

    @property
    def largest(self) -> int:
        """The bytes of the largest read."""
        return max((read.length for read in self.reads), default=0)

    @property
    def length(self) -> int:
        """The bytes of all reads."""
        return sum(read.length for read in self.reads)


@dataclass(frozen=True)
class _Run:
    name: str
    row: int
    rows: int
    start: int  # byte of the file
    stop: int


def streamed_lap(tensors: Sequence[StoredTensor], resident: Mapping[str, int]) -> Lap:
    """Cut what is not resident into reads; `resident` gives the number of rows kept, by name."""
    groups: list[list[_Run]] = [[]]  # what each read holds
    for tensor in tensors:
        size, row = tensor.row_bytes, resident.get(tensor.name, 0)
        if row:
            groups.append([])  # resident rows are used in between, so no read goes on past them
        while size and row < tensor.shape[0]:
            start, left = tensor.offset + row * size, tensor.shape[0] - row
            room = _room(groups[-1], start)
            if room < min(left * size, READ_BYTES // 4):
                groups.append([])
                room = _room([], start)
            rows = min(left, max(1, room // size))
            groups[-1].append(_Run(tensor.name, row, rows, start, start + rows * size))
            row += rows
    reads = []
    tiles: dict[str, list[Tile]] = {tensor.name: [] for tensor in tensors}
    for group in filter(None, groups):
        start = group[0].start // PAGE * PAGE
        reads.append(Read(start, group[-1].stop - start))
        for run in group:
            tile = Tile(run.row, run.rows, run.start - start, run is group[-1])
            tiles[run.name].append(tile)
    return Lap(tuple(reads), {name: tuple(found) for name, found in tiles.items()})


def _room(group: list[_Run], start: int) -> int:
    """Return the bytes that rows from byte `start` on may take of a read that holds `group`."""
    if not group:
        return READ_BYTES - start % PAGE
    if not 0 <= start - group[-1].stop <= _GAP:
        return 0
    return READ_BYTES - (start - group[0].start // PAGE * PAGE)


def resident_reads(tensors: Iterable[StoredTensor], resident: Mapping[str, int]) -> list[Read]:
    """Cut the resident rows into reads, tensor by tensor."""
    reads = []
    for tensor in tensors:
        stop = tensor.offset + resident.get(tensor.name, 0) * tensor.row_bytes
        for start in range(tensor.offset, stop, READ_BYTES):
            reads.append(Read(start, min(READ_BYTES, stop - start), tensor.name))
    return reads


def ring_bytes_for(blocks: Sequence[int], window: int) -> int:
    """Return the ring that holds any `window` consecutive blocks of `blocks` bytes (a circle)."""
    around = list(blocks) + list(blocks[: window - 1])
    return max(sum(around[i : i + window]) for i in range(len(blocks)))
