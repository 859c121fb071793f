"""How one rank's file is laid out: where each tensor lies, and whose it is. Pure arithmetic.

Every tensor begins with a page, so that a reader may go past the page cache (`O_DIRECT`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tpimpi.model.encoding import ENCODINGS, panel_count
from tpimpi.model.partition import Partition
from tpimpi.model.ratio import spelled
from tpimpi.model.tensors import Piece
from tpimpi.paths import cache_directory

PAGE = 4096  # what O_DIRECT asks of offsets, lengths and addresses
FORMAT_VERSION = 3  # 2: sealed, and with the hash of each tensor's source; 3: matrices in panels
SHARDS = "shards"  # the folder in the cache


def shards_folder(fingerprint: str, partition: Partition) -> Path:
    """Return the folder in the cache of the shards of a model cut by `partition`.

    A model is known there by its fingerprint, so that a copied or renamed directory is the same.
    """
    return cache_directory() / SHARDS / fingerprint / partition.key


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
    config: str  # JSON; what changes numbers in it is in the fingerprint

    def difference(self, wanted: Identity) -> str | None:
        """Return in words what of a shard is not as wanted; None where it will do."""
        for what, have, want in (
            ("was cut from a model with fingerprint", self.fingerprint, wanted.fingerprint),
            ("was cut for a number of ranks of", self.size, wanted.size),
            ("is the shard of rank", self.rank, wanted.rank),
        ):
            if have != want:
                return f"{what} {have}, but this run needs {want}"
        if self.partition != wanted.partition:
            have, want = cut_in_words(self.partition), cut_in_words(wanted.partition)
            return f"was cut in another --ratio: {have}, but this run needs {want}"
        return None


def cut_in_words(partition: str) -> str:
    """Return for people what a partition's JSON gives to each rank; itself where it is none."""
    try:
        heads, columns = (
            spelled(
                [stop - start for start, stop in (rank[what] for rank in json.loads(partition))]
            )
            for what in ("q_heads", "columns")
        )
    except (ValueError, TypeError, KeyError):  # of a program to come
        return partition
    return f"{heads} heads and {columns} MLP columns"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a shard: rows as in a checkpoint, or panels of them.

    `shape` is the tensor's own; `nbytes` what is stored of it, may be 0.
    """

    name: str
    encoding: str
    shape: tuple[int, ...]
    offset: int
    in_panels: bool = False

    @property
    def panels(self) -> int:
        """The number of panels; 0 for a matrix without rows or columns, and for what has rows."""
        return panel_count(*self.shape) if self.in_panels else 0

    @property
    def panel_bytes(self) -> int:
        """The bytes of one panel; 0 where there is none."""
        return ENCODINGS[self.encoding].panel_bytes(self.shape[1]) if self.panels else 0

    @property
    def nbytes(self) -> int:
        """The bytes of all panels, the last one's padding included, or of all rows."""
        if self.in_panels:
            return self.panels * self.panel_bytes
        return ENCODINGS[self.encoding].nbytes(*self.shape)


def stored(piece: Piece, encoding: str, offset: int = 0) -> StoredTensor:
    """Return a piece as a shard stores it: what is on the tape lies in panels."""
    return StoredTensor(piece.name, encoding, piece.shape, offset, piece.streamed)


def tape_layout(
    pieces: Iterable[Piece], encoding_of: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """Return the tensors of a tape in the order of use, laid out as a shard lays them.

    `encoding_of` gives the encoding of a tensor by its name in the checkpoint.
    """
    tape, at = {}, PAGE
    for piece in pieces:
        if piece.streamed:
            tensor = stored(piece, encoding_of(piece.source), at)
            tape[piece.name] = tensor
            at += -(-tensor.nbytes // PAGE) * PAGE
    return tape
