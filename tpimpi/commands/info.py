"""`tpimpi info`: what a model is, how it would be cut, how large each shard is."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass

from tpimpi.commands.flags import add_model, add_output, add_ranks, add_ratio
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.ratio import AUTO, fixed_shares, shares_of
from tpimpi.shards.request import ShardRequest
from tpimpi.units import size

SUMMARY = "tell what the model is and how it would be cut"


@dataclass(frozen=True)
class Options:
    """A model directory, and the ranks to cut it over (None: those of this run)."""

    model: str
    ranks: int | None
    shards: ShardRequest
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model(parser)
    add_ranks(parser)
    add_ratio(parser)
    add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(args.model, args.ranks, ShardRequest(ratio=args.ratio), args.output == "json")


def run(options: Options, group, threads: int) -> None:
    """Tell about the model on rank 0 (collective)."""
    from tpimpi.engine.shares import settle
    from tpimpi.model.partition import Partition
    from tpimpi.shards.source import Source

    source, ranks = Source(group, options.model), options.ranks or group.size
    ratio = options.shards.ratio
    with group.together():
        if ratio == AUTO and ranks != group.size:
            raise UserError(
                f"--ratio auto measures the ranks, but {group.size} run and not {ranks}; start as "
                "many with mpirun, or give the shares"
            )
        shares = shares_of(fixed_shares(ratio), ranks)
    if ratio == AUTO:
        settle(group, source, options.shards, MemoryRequest(), threads)
    if group.rank != 0:
        return
    config = source.config
    partition = source.partition if ratio == AUTO else Partition.of(config, shares)
    rows = [_row(source, mine) for mine in partition.ranks]
    parameters = sum(math.prod(tensor.shape) for tensor in source.checkpoint.tensors.values())
    encodings = sorted({t.encoding for t in source.checkpoint.tensors.values()})
    if options.json:
        what = json.loads(config.to_json())
        content = {"model": what, "parameters": parameters, "encodings": encodings}
        content |= {"fingerprint": source.checkpoint.fingerprint, "ranks": rows}
        print(json.dumps(content))
    else:
        print(f"{config.name}: {parameters / 1e6:.1f} million parameters in {', '.join(encodings)}")
        print(_table(config, rows))


def _row(source, mine) -> dict:
    """Return what one rank owns."""
    from tpimpi.model.tensors import pieces
    from tpimpi.shards.layout import stored

    nbytes = sum(
        stored(p, source.checkpoint.weight(p.source).encoding).nbytes
        for p in pieces(source.config, mine)
    )
    return {
        "rank": mine.rank,
        "query_heads": len(mine.q_heads),
        "kv_heads": len(mine.kv_heads),
        "mlp_columns": len(mine.columns),
        "vocabulary_rows": len(mine.rows),
        "shard_bytes": nbytes,
    }


def _table(config, rows: list[dict]) -> str:
    """Return the model's sizes and each rank's share for people."""
    lines = [
        f"  {config.num_layers} layers, hidden size {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.num_heads} query and {config.num_kv_heads} key/value "
        f"heads of {config.head_dim}, vocabulary {config.vocab_size}, "
        f"context {config.max_positions} tokens",
        f"cut over {len(rows)} rank{'s' if len(rows) > 1 else ''}:",
        "  rank  query heads  kv heads  MLP columns  vocabulary rows      shard",
    ]
    lines += [
        f"  {r['rank']:4d}  {r['query_heads']:11d}  {r['kv_heads']:8d}  {r['mlp_columns']:11d}"
        f"  {r['vocabulary_rows']:15d}  {size(r['shard_bytes']):>9}"
        for r in rows
    ]
    return "\n".join(lines)
