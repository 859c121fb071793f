"""What each subcommand does on all ranks; rank 0 alone reads the user's files and speaks."""

from __future__ import annotations

import json
import math

from tpimpi.checkpoint import expected_shapes
from tpimpi.comm import Group
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import UserError
from tpimpi.partition import Partition, pieces
from tpimpi.shard import Shard, shard_name
from tpimpi.source import Source


def run(args, group: Group, threads: int) -> None:
    """Run the subcommand of `args` (collective)."""
    if args.command == "generate":
        from tpimpi.generate import generate  # numba loads with it: not for the other commands

        generate(args, group, threads)
    elif args.command == "perplexity":
        from tpimpi.perplexity import perplexity

        perplexity(args, group, threads)
    elif args.command == "plan":
        from tpimpi.planning import plan

        plan(args, group, threads)
    elif args.command == "bench":
        from tpimpi.bench import bench

        bench(args, group, threads)
    else:
        {"convert": _convert, "verify": _verify, "info": _info}[args.command](args, group)


def _convert(args, group: Group) -> None:
    source = Source(args, group)
    shard, written = source.shard(args, group)
    sizes = group.comm.gather(sum(t.nbytes for t in shard.tensors))
    shard.close()
    if group.rank == 0:
        what = "cut" if written else "already there, checked:"
        total = sum(sizes) / 2**30
        print(f"{what} {len(sizes)} shards, {total:.3f} GiB, in {source.folder}")


def _verify(args, group: Group) -> None:
    source = Source(args, group)
    count = 0
    with group.together():
        path = source.folder / shard_name(group.rank, group.size)
        if not path.exists():
            raise UserError(f"{path} does not exist; `tpimpi convert` makes the shards")
        shard = Shard(path)
        shard.verify()
        count = len(shard.tensors)
        shard.close()
    counts = group.comm.gather(count)
    if group.rank == 0:
        print(f"{sum(counts)} tensors in {len(counts)} shards are whole, in {source.folder}")


def _info(args, group: Group) -> None:
    source = Source(args, group)
    if group.rank != 0:
        return
    config = source.config
    ranks = args.ranks or group.size
    partition = Partition.of(config, [1] * ranks)
    rows = []
    for mine in partition.ranks:
        size = sum(
            math.prod(p.shape)
            * ENCODINGS[source.checkpoint.weight(p.source).encoding].storage.itemsize
            for p in pieces(config, mine)
        )
        rows.append(
            {
                "rank": mine.rank,
                "query_heads": len(mine.q_heads),
                "kv_heads": len(mine.kv_heads),
                "mlp_columns": len(mine.columns),
                "vocabulary_rows": len(mine.rows),
                "shard_bytes": size,
            }
        )
    parameters = sum(math.prod(shape) for shape in expected_shapes(config).values())
    encodings = sorted({t.encoding for t in source.checkpoint.tensors.values()})
    if args.output == "json":
        what = json.loads(config.to_json())
        content = {"model": what, "parameters": parameters, "encodings": encodings}
        content |= {"fingerprint": source.checkpoint.fingerprint, "ranks": rows}
        print(json.dumps(content))
        return
    print(f"{config.name}: {parameters / 1e6:.1f} million parameters in {', '.join(encodings)}")
    print(
        f"  {config.num_layers} layers, hidden size {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.num_heads} query and {config.num_kv_heads} key/value "
        f"heads of {config.head_dim}, vocabulary {config.vocab_size}, "
        f"context {config.max_positions} tokens"
    )
    print(f"cut over {ranks} rank{'s' if ranks > 1 else ''}:")
    print("  rank  query heads  kv heads  MLP columns  vocabulary rows  shard MiB")
    for r in rows:
        print(
            f"  {r['rank']:4d}  {r['query_heads']:11d}  {r['kv_heads']:8d}  {r['mlp_columns']:11d}"
            f"  {r['vocabulary_rows']:15d}  {r['shard_bytes'] / 2**20:9.1f}"
        )
