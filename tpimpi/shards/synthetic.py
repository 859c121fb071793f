"""Random weights of a shape, written as shards by every rank for itself: no checkpoint is needed.

One block of normal numbers is drawn and laid over all tensors, each beginning at another place of
it. So an element's value depends on its place in the whole tensor alone: however many ranks it is
cut over, the model is the same. Writing goes at the disk's speed.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS, Encoding
from tpimpi.model.partition import Partition
from tpimpi.model.ratio import fixed_shares, shares_of
from tpimpi.model.tensors import Kind, Piece, pieces
from tpimpi.paths import free_disk
from tpimpi.progress import Progress, Waiting
from tpimpi.shards.layout import Identity, shard_name, shards_folder, stored
from tpimpi.shards.request import DEFAULT, ShardRequest
from tpimpi.shards.seal import OtherFormatError
from tpimpi.shards.shard import Shard, open_shard, read_layout
from tpimpi.shards.source import check_folder
from tpimpi.shards.writer import ShardWriter

BLOCK = (1 << 20) - 3  # numbers drawn: a prime, so that no row length falls into step with it
SPARE_BYTES = 1 << 30  # room that is left on a disk
SEED = 0
VERSION = 1  # of the rule that makes the numbers


class RandomWeights:
    """The values of any piece of any tensor of a shape, in one encoding."""

    def __init__(self, hidden_size: int, encoding: Encoding):
        self._encoding = encoding
        scale = np.float32(1 / math.sqrt(hidden_size))
        values = np.random.default_rng(SEED).standard_normal(BLOCK, dtype=np.float32) * scale
        self._values = values  # [BLOCK]
        raw = encoding.narrow(values)
        self._twice = np.concatenate((raw, raw))  # [2 BLOCK]: a run from anywhere in the first half

    def vector(self, piece: Piece) -> np.ndarray:
        """Return raw numbers [N] of a norm, around 1, or of a bias, around 0."""
        at = np.arange(piece.rows.start, piece.rows.stop) + self._start(piece.source)
        mean = np.float32(piece.tensor.kind is Kind.NORM)
        return self._encoding.narrow(self._values[at % BLOCK] + mean)

    def rows(self, piece: Piece, first: int, count: int) -> np.ndarray:
        """Return raw rows [n, K] of a piece from its row `first` on, n at most `count`.

        A row of the whole tensor has at most BLOCK numbers.
        """
        columns = piece.tensor.shape[1]
        count = max(1, min(count, BLOCK // columns))
        row = piece.rows.start + first
        start = (self._start(piece.source) + row * columns) % BLOCK
        whole = self._twice[start : start + count * columns].reshape(count, columns)
        return np.ascontiguousarray(whole[:, piece.columns] if piece.columns else whole)

    @staticmethod
    def _start(source: str) -> int:
        return zlib.crc32(source.encode()) % BLOCK


class SyntheticSource:
    """A named shape in place of a model directory: what `source.Source` is for one (collective).

    `sparse` files take no room on the disk and read as zeros; they stand for memory, not for time.
    A shape larger than what some node's disk has free becomes sparse whether asked or not.
    """

    checkpoint = None

    def __init__(
        self, group: Group, config: ModelConfig, encoding: str,
        request: ShardRequest = DEFAULT, sparse: bool = False,
    ):  # fmt: skip
        self.config, self.encoding, self._sparse = config, encoding, sparse
        self.save_dir = Path(request.folder) if request.folder else None
        self._group, self._again, shares = group, request.again, ()
        with group.together():
            shares = shares_of(fixed_shares(request.ratio), group.size)
        self.cut(shares)

    def cut(self, shares: Sequence[int]) -> None:
        """Cut the model in this proportion from now on (collective)."""
        self.keep(Partition.of(self.config, shares))

    def keep(self, partition: Partition) -> None:
        """Let the model be cut like this from now on (collective)."""
        group, self.partition = self._group, partition
        self._pieces = pieces(self.config, partition.ranks[group.rank])
        self.sparse = False
        whole = self._folder()
        with group.together():
            check_folder(whole)
        self.sparse = self._sparse or not self._fits(group, whole, self._again)
        self.folder = self._folder()

    def encoding_of(self, source: str) -> str:
        """Return the encoding of a tensor by its name in a checkpoint: all have the same."""
        return self.encoding

    @property
    def nbytes(self) -> int:
        """The bytes of this rank's weights."""
        return sum(stored(piece, self.encoding).nbytes for piece in self._pieces)

    def _fits(self, group: Group, folder: Path, again: bool) -> bool:
        need, free = 0, 0
        path = folder / shard_name(group.rank, group.size)
        with group.together():
            free = free_disk(folder)
            if again or not _is_there(path):
                need = self.nbytes
        need = group.node.allreduce(need)
        return all(group.comm.allgather(not need or need + SPARE_BYTES <= free))

    @property
    def fingerprint(self) -> str:
        """What stands for the fingerprint of a checkpoint."""
        fields = json.loads(self.config.to_json()) | {"encoding": self.encoding, "seed": SEED}
        text = json.dumps(fields | {"version": VERSION}, sort_keys=True)
        kind = "sparse" if self.sparse else "random"
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _folder(self) -> Path:
        return self.save_dir or shards_folder(self.fingerprint, self.partition)

    def shard(self, group: Group, again: bool = False) -> tuple[Shard, bool]:
        """Open this rank's shard, writing it where it is missing (collective).

        Returns the shard and whether any rank's was written now.
        """
        identity = Identity(
            self.fingerprint, self.partition.to_json(), group.rank, group.size,
            self.config.to_json(),
        )  # fmt: skip
        path = self.folder / shard_name(group.rank, group.size)
        shard, missing = None, False
        waiting = Waiting("waiting for ranks that write their shards", group.rank)
        with waiting, group.together():
            shard = None if again else open_shard(path, identity, replace=self.save_dir is None)
            missing = shard is None
            if missing:
                self._write(path, identity, group.rank == 0)
                shard = Shard(path)
                shard.check(identity)
            if not self.sparse:  # nothing was written, so there is nothing to verify
                shard.verify_if_touched(speaks=group.rank == 0)
            waiting.begin()
        return shard, any(group.comm.allgather(missing))

    def _write(self, path: Path, identity: Identity, progress: bool) -> None:
        kind, encodings = ENCODINGS[self.encoding], [self.encoding] * len(self._pieces)
        writer = ShardWriter(path, identity, self._pieces, encodings, self.sparse)
        try:
            if not self.sparse:
                with Progress("writing random weights", self.nbytes, speaks=progress) as bar:
                    write_random(writer, self._pieces, self.config.hidden_size, kind, bar)
            writer.finish()
        finally:
            writer.close()


def _is_there(path: Path) -> bool:
    try:
        read_layout(path, finished=False)
    except (FileNotFoundError, OtherFormatError):
        return False
    return True


def write_random(
    writer: ShardWriter, mine: list[Piece], hidden_size: int, encoding: Encoding, bar: Progress
) -> None:
    """Fill what is still missing of one rank's shard; OSError where the disk fails."""
    weights, done = RandomWeights(hidden_size, encoding), writer.done()
    for index, piece in enumerate(mine):
        if not done[index]:
            if len(piece.shape) == 1:
                writer.write(index, weights.vector(piece))
            else:
                _write_rows(writer, index, piece, weights)
            writer.complete(index)
        bar.update(writer.tensors[index].nbytes)


def _write_rows(writer, index: int, piece: Piece, weights: RandomWeights) -> None:
    row = 0
    while row < piece.shape[0] and piece.shape[1]:
        rows = weights.rows(piece, row, piece.shape[0] - row)  # [n, K]
        writer.write(index, rows)
        row += len(rows)
