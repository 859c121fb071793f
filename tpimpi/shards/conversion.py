"""Checkpoint -> shards: rank 0 reads each tensor once, every rank writes its own piece.

Ranks of one machine and ranks across a network take the same path. Memory stays bounded by `CHUNK`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import CHUNK, Group
from tpimpi.errors import MachineError, describe
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import Piece, pieces
from tpimpi.progress import Progress
from tpimpi.shards.layout import Identity, shard_name
from tpimpi.shards.shard import Shard
from tpimpi.shards.writer import ShardWriter

TAG = 7


def ensure_shards(
    group: Group,
    config: ModelConfig,
    partition: Partition,
    checkpoint: Checkpoint | None,
    folder: Path,
    again: bool,
) -> tuple[Shard, bool]:
    """Open this rank's shard, after making those that are missing (collective).

    `checkpoint` is None except on rank 0. Returns the shard, checked and verified, and whether any
    rank's shard was written now. Raises UserError or MachineError on all ranks alike.
    """
    lists = [pieces(config, mine) for mine in partition.ranks]
    sources = {piece.source for piece in lists[0]}  # rank 0 uses them all
    fingerprint, encodings = group.comm.bcast(
        (checkpoint.fingerprint, {s: checkpoint.weight(s).encoding for s in sources})
        if checkpoint
        else None
    )
    identity = Identity(fingerprint, partition.to_json(), group.rank, group.size, config.to_json())
    path = folder / shard_name(group.rank, group.size)
    missing = group.comm.allgather(again or not path.exists())
    if any(missing):
        mine = lists[group.rank]
        writer, done = None, [True] * len(mine)
        with group.together():
            if missing[group.rank]:
                writer = ShardWriter(path, identity, mine, [encodings[p.source] for p in mine])
                done = writer.done()
        try:
            _fill(group, checkpoint, writer, _pending(lists, group.comm.allgather(done)), missing)
            with group.together():
                if writer:
                    writer.finish()
        finally:
            if writer:
                writer.close()
    shard = None
    with group.together():
        shard = Shard(path)
        shard.check(identity)
        shard.verify_if_touched()
    return shard, any(missing)


def _pending(lists: list[list[Piece]], done: list[list[bool]]) -> dict[str, list[tuple]]:
    """Group what is missing by source tensor: {source: [(rank, index, piece), ...]}, tape order."""
    jobs: dict[str, list[tuple]] = {piece.source: [] for piece in lists[0]}  # rank 0 uses them all
    for rank, (rank_pieces, there) in enumerate(zip(lists, done, strict=True)):
        for index, piece in enumerate(rank_pieces):
            if not there[index]:
                jobs[piece.source].append((rank, index, piece))
    return {source: jobs_ for source, jobs_ in jobs.items() if jobs_}


def _fill(group: Group, checkpoint, writer, jobs: dict[str, list[tuple]], missing) -> None:
    """Bring what is pending from rank 0's checkpoint to the writers of all ranks (collective)."""
    if group.rank != 0:
        if writer:
            _receive_all(group, writer)
        return
    post = _Post(group, writer)
    total = sum(checkpoint.weight(source).nbytes for source in jobs)
    with Progress("cutting the checkpoint", total) as bar:
        for source in jobs:
            _send_pieces(checkpoint, post, source, jobs[source], bar)
    for rank in range(1, group.size):
        if missing[rank]:
            post.end(rank)


def _send_pieces(checkpoint, post, source, jobs, bar) -> None:
    """Read one tensor in chunks of rows and hand each rank what it owns of each chunk."""
    tensor = checkpoint.weight(source)
    count = tensor.shape[0]
    step = max(1, CHUNK // max(tensor.nbytes // count, 1))
    at = [0] * len(jobs)
    for start in range(0, count, step):
        stop = min(start + step, count)
        data = checkpoint.read(source, slice(start, stop), None)
        for job, (rank, index, piece) in enumerate(jobs):
            mine = piece.rows or slice(0, count)
            part = data[max(mine.start - start, 0) : max(min(mine.stop, stop) - start, 0)]
            if piece.columns is not None:
                part = part[:, piece.columns]
            part = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            if part.nbytes:
                post.deliver(rank, index, at[job], part)
                at[job] += part.nbytes
        bar.update(data.nbytes)
    for rank, index, _ in jobs:
        post.complete(rank, index)


class _Post:
    """Hand bytes to the rank that owns them: a header (tensor, byte, length), then the bytes."""

    def __init__(self, group: Group, writer: ShardWriter | None):
        self._comm, self._writer = group.comm, writer

    def deliver(self, rank: int, index: int, at: int, data: np.ndarray) -> None:
        """Write `data` at byte `at` of a rank's tensor `index`."""
        if rank == 0:
            _write(self._writer, index, at, data)
        else:
            self._comm.Send(np.array([index, at, data.nbytes], np.int64), dest=rank, tag=TAG)
            self._comm.Send(data, dest=rank, tag=TAG)

    def complete(self, rank: int, index: int) -> None:
        """Say that a tensor has come to its end."""
        if rank == 0:
            self._writer.complete(index)
        else:
            self._comm.Send(np.array([index, 0, 0], np.int64), dest=rank, tag=TAG)

    def end(self, rank: int) -> None:
        """Say that nothing more will come."""
        self._comm.Send(np.array([-1, 0, 0], np.int64), dest=rank, tag=TAG)


def _receive_all(group: Group, writer: ShardWriter) -> None:
    header, data = np.empty(3, np.int64), np.empty(0, np.uint8)
    while True:
        group.comm.Recv(header, source=0, tag=TAG)
        index, at, nbytes = (int(value) for value in header)
        if index < 0:
            return
        if nbytes == 0:
            writer.complete(index)
            continue
        if data.nbytes < nbytes:
            data = np.empty(nbytes, np.uint8)
        group.comm.Recv(data[:nbytes], source=0, tag=TAG)
        _write(writer, index, at, data[:nbytes])


def _write(writer: ShardWriter, index: int, at: int, data: np.ndarray) -> None:
    try:
        writer.write(index, at, data)
    except OSError as error:
        raise MachineError(
            f"writing {writer.partial} failed ({describe(error)}); what is written is kept, and "
            "the same command goes on from there"
        ) from error
