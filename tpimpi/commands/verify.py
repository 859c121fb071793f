"""`tpimpi verify`: recompute every checksum of all ranks' shards."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tpimpi.commands.flags import add_model, add_ratio, add_save_dir
from tpimpi.errors import UserError
from tpimpi.model.ratio import AUTO
from tpimpi.progress import Waiting
from tpimpi.shards.request import ShardRequest

SUMMARY = "recompute every checksum of the shards"


@dataclass(frozen=True)
class Options:
    """A model directory and where its shards lie."""

    model: str
    shards: ShardRequest


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model(parser)
    add_save_dir(parser)
    add_ratio(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(args.model, ShardRequest(args.save_dir, args.ratio))


def run(options: Options, group, threads: int) -> None:
    """Verify every rank's shard (collective)."""
    from tpimpi.shards.cuts import known_cuts
    from tpimpi.shards.layout import shard_name
    from tpimpi.shards.shard import Shard
    from tpimpi.shards.source import Source

    source = Source(group, options.model, options.shards)
    if options.shards.ratio == AUTO:
        for cut in known_cuts(group, source)[:1]:  # as they were cut, whatever the machines do now
            source.keep(cut)
    count = 0
    waiting = Waiting("waiting for ranks that verify their shards", group.rank)
    with waiting, group.together():
        path = source.folder / shard_name(group.rank, group.size)
        if not path.exists():
            raise UserError(f"{path} does not exist; `tpimpi convert` makes the shards")
        shard = Shard(path)
        try:
            shard.check(source.identity(group))
            shard.verify(speaks=group.rank == 0)
        finally:
            shard.close()
        count = len(shard.tensors)
        waiting.begin()
    counts = group.comm.gather(count)
    if group.rank == 0:
        print(f"{sum(counts)} tensors in {len(counts)} shards are whole, in {source.folder}")
