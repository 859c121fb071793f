"""`tpimpi convert`: cut a checkpoint into shards on all ranks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tpimpi.commands.flags import add_model, add_ratio, add_shards, budgets, shard_request
from tpimpi.memory.request import MemoryRequest
from tpimpi.shards.request import ShardRequest
from tpimpi.units import size

SUMMARY = "cut a checkpoint into shards and stop"


@dataclass(frozen=True)
class Options:
    """A model directory, its shards, and the memory that will be allowed."""

    model: str
    shards: ShardRequest
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
    return Options(args.model, shard_request(args), MemoryRequest(args.memory_budget))


def run(options: Options, group, threads: int) -> None:
    """Cut what is missing, and tell where it lies (collective)."""
    from tpimpi.engine.shares import settle
    from tpimpi.shards.source import Source

    source = Source(group, options.model, options.shards)
    settle(group, source, options.shards, options.memory, threads)
    shard, written = source.shard(group, options.shards.again)
    sizes = group.comm.gather(sum(t.nbytes for t in shard.tensors))
    shard.close()
    if group.rank == 0:
        what = "cut" if written else "already there, checked:"
        print(f"{what} {len(sizes)} shards, {size(sum(sizes))}, in {source.folder}")
