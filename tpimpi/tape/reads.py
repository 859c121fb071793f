"""From tensors in the order of use to reads of the file: pure arithmetic.

Of each tensor the first panels may be resident; the others are streamed. A read is a run of whole
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
    """Panels of one tensor, `at` bytes into their read; `last`: nothing of that read is left."""

    panel: int
    panels: int
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
    panel: int
    panels: int
    start: int  # byte of the file
    stop: int


def streamed_lap(tensors: Sequence[StoredTensor], resident: Mapping[str, int]) -> Lap:
    """Cut what is not resident into reads; `resident` gives the number of panels kept, by name."""
    groups: list[list[_Run]] = [[]]  # what each read holds
    for tensor in tensors:
        count, size, panel = tensor.panels, tensor.panel_bytes, resident.get(tensor.name, 0)
        if panel:
            groups.append([])  # resident panels are used in between, so no read goes on past them
        while panel < count:
            start, left = tensor.offset + panel * size, count - panel
            room = _room(groups[-1], start)
            if room < min(left * size, max(size, READ_BYTES // 4)):
                groups.append([])
                room = _room([], start)
            panels = min(left, max(1, room // size))
            groups[-1].append(_Run(tensor.name, panel, panels, start, start + panels * size))
            panel += panels
    reads = []
    tiles: dict[str, list[Tile]] = {tensor.name: [] for tensor in tensors}
    for group in filter(None, groups):
        start = group[0].start // PAGE * PAGE
        reads.append(Read(start, group[-1].stop - start))
        for run in group:
            tile = Tile(run.panel, run.panels, run.start - start, run is group[-1])
            tiles[run.name].append(tile)
    return Lap(tuple(reads), {name: tuple(found) for name, found in tiles.items()})


def _room(group: list[_Run], start: int) -> int:
    """Return the bytes that panels from byte `start` on may take of a read that holds `group`."""
    if not group:
        return READ_BYTES - start % PAGE
    if not 0 <= start - group[-1].stop <= _GAP:
        return 0
    return READ_BYTES - (start - group[0].start // PAGE * PAGE)


def resident_reads(tensors: Iterable[StoredTensor], resident: Mapping[str, int]) -> list[Read]:
    """Cut the resident panels into reads, tensor by tensor."""
    reads = []
    for tensor in tensors:
        stop = tensor.offset + resident.get(tensor.name, 0) * tensor.panel_bytes
        for start in range(tensor.offset, stop, READ_BYTES):
            reads.append(Read(start, min(READ_BYTES, stop - start), tensor.name))
    return reads


def ring_bytes_for(blocks: Sequence[int], window: int) -> int:
    """Return the ring that holds any `window` consecutive blocks of `blocks` bytes (a circle)."""
    around = list(blocks) + list(blocks[: window - 1])
    return max(sum(around[i : i + window]) for i in range(len(blocks)))
