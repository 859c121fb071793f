"""`tpimpi convert`: cut a checkpoint into shards on all ranks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tpimpi.commands.flags import add_model, add_ratio, add_shards, budgets
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.ratio import Ratio, fixed_shares
from tpimpi.units import size

SUMMARY = "cut a checkpoint into shards and stop"


@dataclass(frozen=True)
class Options:
    """A model directory, where its shards go, and where ranks may have the checkpoint, too."""

    model: str
    save_dir: str | None
    ratio: Ratio
    again: bool
    local: str | None
    memory: MemoryRequest


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model(parser)
    add_shards(parser)
    add_ratio(parser)
    parser.add_argument(
        "--memory-budget", type=budgets, default=MemoryRequest.budgets, metavar="BYTES",
        help="what each rank's process will be allowed, for --ratio auto (default: auto)",
    )  # fmt: skip


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(
        args.model, args.save_dir, args.ratio, args.split_bin, args.local_checkpoint,
        MemoryRequest(args.memory_budget),
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Cut what is missing, and tell where it lies (collective)."""
    from tpimpi.engine.shares import settle
    from tpimpi.shards.source import Source

    source = Source(
        group, options.model, options.save_dir, fixed_shares(options.ratio), options.local
    )
    settle(group, source, options.ratio, options.memory, threads, options.again)
    shard, written = source.shard(group, options.again)
    sizes = group.comm.gather(sum(t.nbytes for t in shard.tensors))
    shard.close()
    if group.rank == 0:
        what = "cut" if written else "already there, checked:"
        print(f"{what} {len(sizes)} shards, {size(sum(sizes))}, in {source.folder}")
