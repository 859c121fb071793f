"""Shards that fit the checkpoint: those out of date are cut anew by rank 0, written by every rank.

Ranks of one machine and ranks across a network take the same path. Memory stays bounded by `CHUNK`.

Which pieces are needed is asked of each piece: it carries the hash of the whole tensor that it was
cut from, whether in a finished shard or in a `.partial` that a kill left. Rank 0 tells what the
hashes of the checkpoint's tensors are. It knows them by heart where the files are in a state that
it has noted (see `checkpoint.fingerprint`); else it reads them again, and only those of which some
rank has a piece at all. The others are hashed as they are sent. So a first run reads a checkpoint
once, and goes on after a kill without another look at what was cut; a touched or copied one is read
and not cut; one whose numbers changed is cut anew.

In the cache a shard of other content, or of an older format, is replaced. In a folder that the user
named it is refused: it may be all that he has of another model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpimpi.checkpoint.fingerprint import TensorHashes, new_hash
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import CHUNK, Group
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import Piece, pieces
from tpimpi.progress import Progress, Waiting
from tpimpi.shards.layout import Identity, shard_name
from tpimpi.shards.post import Post, receive_all
from tpimpi.shards.seal import MEND
from tpimpi.shards.shard import Shard, open_shard
from tpimpi.shards.writer import ShardWriter

AHEAD = 2  # chunks that wait to be hashed


def ensure_shards(
    group: Group,
    config: ModelConfig,
    partition: Partition,
    checkpoint: Checkpoint | None,
    folder: Path,
    again: bool,
    replace: bool,
) -> tuple[Shard, bool]:
    """Open this rank's shard, after making those that are missing (collective).

    `checkpoint` is None except on rank 0. With `replace` a shard of other content counts as
    missing; else it is refused. Returns the shard, checked and verified, and whether any rank's
    shard was written now. Raises UserError or MachineError on all ranks alike.
    """
    lists = [pieces(config, mine) for mine in partition.ranks]
    fingerprint, encodings = group.comm.bcast(
        (checkpoint.fingerprint, {n: t.encoding for n, t in checkpoint.tensors.items()})
        if checkpoint
        else None
    )
    identity = Identity(fingerprint, partition.to_json(), group.rank, group.size, config.to_json())
    path = folder / shard_name(group.rank, group.size)
    # In the cache all cuts of a model lie in one folder, and share what is noted.
    own = lists[group.rank]
    hashes = _Hashes(group, checkpoint, folder.parent if replace else folder)
    shard = None
    try:
        with group.together():
            shard = None if again else open_shard(path, identity, replace)
        shard = _current(group, shard, hashes, own, replace)
        missing = group.comm.allgather(shard is None)
        if any(missing):
            mine = _Wanted(path, identity, own, [encodings[piece.source] for piece in own])
            _cut(group, checkpoint, hashes, mine, lists, missing)
        verifying = Waiting("waiting for ranks that verify their shards", group.rank)
        with verifying, group.together():
            if shard is None:
                shard = Shard(path)
                shard.check(identity)
            shard.verify_if_touched(speaks=group.rank == 0)
            verifying.begin()
        if any(missing):  # another conversion may have put its own there meanwhile
            _current(group, shard, hashes, own, replace=False)
    except BaseException:
        if shard is not None:
            shard.close()
        raise
    return shard, any(missing)


@dataclass(frozen=True)
class _Wanted:
    """The shard that this rank is to have: where it lies, whose it is, what is in it."""

    path: Path
    identity: Identity
    pieces: list[Piece]
    encodings: list[str]  # of the pieces


class _Hashes:
    """The hashes of the checkpoint's tensors, which rank 0 knows or takes."""

    def __init__(self, group: Group, checkpoint: Checkpoint | None, folder: Path):
        self._group, self.own = group, None
        syncing = Waiting("waiting for the disk to take the checkpoint", group.rank)
        with syncing, group.together():
            syncing.begin()
            if checkpoint:
                self.own = TensorHashes(checkpoint, folder)

    def of(self, sources: Iterable[str]) -> dict[str, bytes]:
        """Return the hashes of the tensors that any rank asks for (collective)."""
        wanted = sorted(set().union(*self._group.comm.allgather(set(sources))))
        found = None
        with self._group.together():
            if self.own:
                self.own.fill(wanted)
                found = {source: self.own.get(source) for source in wanted}
        return self._group.comm.bcast(found)


def _current(group, shard: Shard | None, hashes: _Hashes, mine: list[Piece], replace: bool):
    """Return the shard, None if it was cut from other numbers than there are now (collective)."""
    true = hashes.of([piece.source for piece in mine] if shard else [])
    with group.together():
        if shard:
            for piece, source in zip(mine, shard.sources, strict=True):
                if source == true[piece.source]:
                    continue
                if replace:
                    shard.close()
                    return None
                raise UserError(
                    f"{shard.path} was cut from another {piece.source} than the model has now; "
                    f"{MEND}"
                )
    return shard


def _cut(group: Group, checkpoint, hashes: _Hashes, mine: _Wanted, lists, missing) -> None:
    """Write the shards that are missing, as far as that is still to be done (collective)."""
    writer, found = None, [None] * len(mine.pieces)
    first = missing.index(True)
    try:
        # One before the others: of two conversions at once that one goes on which has the first.
        for turn in (True, False):
            with group.together():
                if missing[group.rank] and (group.rank == first) == turn:
                    writer = ShardWriter(mine.path, mine.identity, mine.pieces, mine.encodings)
        checking = Waiting("waiting for ranks that check what they have", group.rank)
        with checking, group.together():
            if writer:
                found = writer.done(speaks=group.rank == 0)
            checking.begin()
        there = {p.source for p, source in zip(mine.pieces, found, strict=True) if source}
        true = hashes.of(there)
        done = [
            not missing[group.rank] or (source is not None and source == true[piece.source])
            for piece, source in zip(mine.pieces, found, strict=True)
        ]
        jobs = _pending(lists, group.comm.allgather(done))
        _fill(group, checkpoint, hashes.own, writer, jobs, missing)
        with group.together():
            if hashes.own:
                hashes.own.check_unchanged()
        syncing = Waiting("waiting for the disks to take the shards", group.rank)
        with syncing, group.together():
            syncing.begin()
            if writer:
                writer.finish()
    finally:
        if hashes.own:
            hashes.own.save()
        if writer:
            writer.close()


def _pending(lists: list[list[Piece]], done: list[list[bool]]) -> dict[str, list[tuple]]:
    """Group what is missing by source tensor: {source: [(rank, index, piece), ...]}, tape order."""
    jobs: dict[str, list[tuple]] = {piece.source: [] for piece in lists[0]}  # rank 0 uses them all
    for rank, (rank_pieces, there) in enumerate(zip(lists, done, strict=True)):
        for index, piece in enumerate(rank_pieces):
            if not there[index]:
                jobs[piece.source].append((rank, index, piece))
    return {source: jobs_ for source, jobs_ in jobs.items() if jobs_}


def _fill(group: Group, checkpoint, hashes, writer, jobs: dict[str, list[tuple]], missing) -> None:
    """Bring what is pending from rank 0's checkpoint to the writers of all ranks (collective)."""
    if group.rank != 0:
        if writer:
            receive_all(group, writer)
        return
    post = Post(group, writer)
    total = sum(checkpoint.weight(source).nbytes for source in jobs)
    with Progress("cutting the checkpoint", total) as bar, _Hasher() as hasher:
        for source in jobs:
            known = hashes.get(source)
            _send_pieces(checkpoint, post, source, jobs[source], bar, None if known else hasher)
            hasher.end(source, known)
            _complete(post, jobs, hashes, hasher.ended(all_of_them=False))
        _complete(post, jobs, hashes, hasher.ended(all_of_them=True))
    for rank in range(1, group.size):
        if missing[rank]:
            post.end(rank)


class _Hasher:
    """Hash tensors on another core, while they are written and sent."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._digest, self._running, self._ended = new_hash(), deque(), deque()

    def __enter__(self) -> _Hasher:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown()

    def take(self, data: np.ndarray) -> None:
        """Hash the next bytes of a tensor, which stay as they are."""
        if len(self._running) == AHEAD:
            self._running.popleft().result()
        self._running.append(self._pool.submit(self._digest.update, data))

    def end(self, source: str, known: bytes | None) -> None:
        """Say that a tensor has come to its end; `known` is its hash if it was not taken."""
        # In its turn: when it runs, the bytes before it are hashed.
        digest = self._digest
        self._ended.append((source, self._pool.submit(lambda: known or digest.digest())))
        self._digest = new_hash()

    def ended(self, all_of_them: bool) -> Iterator[tuple[str, bytes]]:
        """Yield the tensors whose hash is ready, or wait for all that have come to their end."""
        while self._ended and (all_of_them or self._ended[0][1].done()):
            source, digest = self._ended.popleft()
            yield source, digest.result()


def _complete(post: Post, jobs: dict[str, list[tuple]], hashes, ended: Iterable) -> None:
    for source, digest in ended:
        if hashes.get(source) is None:
            hashes.put(source, digest)
        for rank, index, _ in jobs[source]:
            post.complete(rank, index, digest)


def _send_pieces(checkpoint, post, source, jobs, bar, hasher: _Hasher | None) -> None:
    """Read one tensor in chunks of rows and hand each rank what it owns of each chunk."""
    tensor = checkpoint.weight(source)
    count = tensor.shape[0]
    step = max(1, CHUNK // max(tensor.nbytes // count, 1))
    for start in range(0, count, step):
        stop = min(start + step, count)
        data = checkpoint.read(source, slice(start, stop), None)
        if hasher:
            hasher.take(data.reshape(-1).view(np.uint8))
        for rank, index, piece in jobs:
            rows = piece.rows
            part = data[max(rows.start - start, 0) : max(min(rows.stop, stop) - start, 0)]
            if piece.columns is not None:
                part = part[:, piece.columns]
            if part.size:
                post.deliver(rank, index, part)
        bar.update(data.nbytes)
