"""Shards that fit the checkpoint: those out of date are cut anew by rank 0, written by every rank.

Ranks of one machine and ranks across a network take the same path (see `shards.feed`).

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

from collections.abc import Iterable
from pathlib import Path

from tpimpi.checkpoint.fingerprint import TensorHashes
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import Piece, pieces
from tpimpi.progress import Waiting
from tpimpi.shards.cutting import Cutting, Wanted
from tpimpi.shards.layout import Identity, shard_name
from tpimpi.shards.seal import MEND
from tpimpi.shards.shard import Shard, open_shard


def ensure_shards(
    group: Group,
    config: ModelConfig,
    partition: Partition,
    checkpoint: Checkpoint | None,
    folder: Path,
    again: bool,
    replace: bool,
    local: str | Path | None = None,
) -> tuple[Shard, bool]:
    """Open this rank's shard, after making those that are missing (collective).

    `checkpoint` is None except on rank 0. With `replace` a shard of other content counts as
    missing; else it is refused. With `again` every shard counts as missing, and nothing that is
    left of an earlier run is used. A rank that has the checkpoint in the directory `local`, too,
    cuts its shard from there. Returns the shard, checked and verified, and whether any rank's
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
            mine = Wanted(
                path, identity, own, [encodings[piece.source] for piece in own], again, local,
                hashes.folder,
            )  # fmt: skip
            Cutting(group, checkpoint, hashes.own, hashes.of, mine, lists, missing).run()
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


class _Hashes:
    """The hashes of the checkpoint's tensors, which rank 0 knows or takes."""

    def __init__(self, group: Group, checkpoint: Checkpoint | None, folder: Path):
        self._group, self.own, self.folder = group, None, folder
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
