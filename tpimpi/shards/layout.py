"""How one rank's file is laid out: where each tensor lies, and whose it is. Pure arithmetic.

Every tensor begins with a page, so that a reader may go past the page cache (`O_DIRECT`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import Piece
from tpimpi.paths import cache_directory

PAGE = 4096  # what O_DIRECT asks of offsets, lengths and addresses
FORMAT_VERSION = 2  # 2: sealed, and with the hash of each tensor's source
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
            ("was cut by the shares", self.partition, wanted.partition),
        ):
            if have != want:
                return f"{what} {have}, but this run needs {want}"
        return None


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a shard; `nbytes` may be 0."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row; 0 for a tensor without rows or columns."""
        return self.nbytes // self.shape[0] if self.nbytes else 0


def tape_layout(
    pieces: Iterable[Piece], encoding_of: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """Return the tensors of a tape in the order of use, laid out as a shard lays them.

    `encoding_of` gives the encoding of a tensor by its name in the checkpoint.
    """
    tape, at = {}, PAGE
    for piece in pieces:
        if piece.streamed:
            encoding = encoding_of(piece.source)
            nbytes = ENCODINGS[encoding].nbytes(*piece.shape)
            tape[piece.name] = StoredTensor(piece.name, encoding, piece.shape, at, nbytes)
            at += -(-nbytes // PAGE) * PAGE
    return tape
