"""`tpimpi plan`: every rank's memory account before anything is loaded, and what a token takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tpimpi.commands import flags
from tpimpi.console import say
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.paths import cache_directory
from tpimpi.units import MIB, rate, size

CONTEXT = 2048  # tokens
SUMMARY = "tell beforehand what memory holds and a token takes"


@dataclass(frozen=True)
class Options:
    """A model or a shape, over how many ranks, in what context, within what memory."""

    model: str | None
    shape: str | None
    layers: int | None
    dtype: str | None
    ranks: int | None
    context: int | None  # None: CONTEXT
    save_dir: str | None
    memory: MemoryRequest
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model_or_shape(parser)
    flags.add_ranks(parser)
    parser.add_argument(
        "--context", type=flags.tokens(2), metavar="N",
        help="tokens of prompt and text together; half of them are taken as the prompt "
        "(default: 2048, or the model's context if that is shorter)",
    )  # fmt: skip
    parser.add_argument(
        "--save-dir", metavar="DIR", help="where the shards lie or will lie: the disk to measure"
    )
    flags.add_memory(parser)
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    if args.model and (args.layers or args.dtype):
        raise UserError("--layers and --dtype are of a --shape; a --model has its own")
    return Options(
        args.model, args.shape, args.layers, args.dtype, args.ranks, args.context, args.save_dir,
        flags.memory_request(args), args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Print the plan (collective)."""
    import numpy as np

    from tpimpi.bench import limits
    from tpimpi.bench.rates import read_rates
    from tpimpi.engine.warmup import warm_up
    from tpimpi.memory.account import Work
    from tpimpi.model.partition import Partition
    from tpimpi.model.tensors import pieces
    from tpimpi.shards.layout import tape_layout

    config, encoding_of, folder, tokenizer = _model(options, group)
    ranks = options.ranks or group.size
    if group.size not in (1, ranks):
        with group.together():
            raise UserError(
                f"-np {ranks} under a launcher of {group.size} ranks; leave one of them out"
            )
    partition = Partition.of(config, [1] * ranks)
    context = min(options.context or CONTEXT, config.max_positions)
    if options.context and context < options.context and group.rank == 0:
        say(f"{config.name} has a context of {context} tokens, so it is planned for those")
    work = Work(max(1, context // 2), context)
    tapes = [tape_layout(pieces(config, mine), encoding_of) for mine in partition.ranks]
    encodings = {tensor.encoding for tape in tapes for tensor in tape.values()}
    warm_up(group, encodings, threads)
    group.settle_sums(row=config.hidden_size)
    plans, requests = _plans(
        group, config, partition, tapes, options.memory, work, threads, tokenizer
    )
    # Last, as it takes memory itself.
    rates = group.comm.gather(read_rates(group, folder, list(tapes[0]), threads))
    repeats = limits.allreduce_seconds(group, 1, config.hidden_size, 5)
    if group.rank != 0:
        return
    rates = rates if group.size > 1 else rates * ranks
    rows = [_row(r, p, rate, work) for r, p, rate in zip(requests, plans, rates, strict=True)]
    allreduce = 2 * config.num_layers * float(np.median(repeats))
    found = {
        "model": config.name, "ranks": rows, "launched": group.size == ranks,
        "asked_context": work.context, "smallest_context": work.smallest_context,
        "context": plans[0].context, "prompt_chunk": plans[0].chunk,
        "allreduce_seconds": allreduce if group.size == ranks else None,
        "seconds_per_token": max(row["seconds_per_token"] for row in rows) + allreduce,
    }  # fmt: skip
    print(json.dumps(found) if options.json else _table(found))


def _plans(
    group, config, partition, tapes, request: MemoryRequest, work, threads: int, tokenizer: int
):  # fmt: skip
    """Return the plans and requests of all ranks: those that run, or as if each ran here alone.

    Collective.
    """
    from tpimpi.engine.needs import needs_of
    from tpimpi.memory.plan import RankRequest, plan_ranks
    from tpimpi.memory.process import free_memory

    mine = []
    with group.together():
        for cut, tape in zip(partition.ranks, tapes, strict=True):
            if group.size > 1 and cut.rank != group.rank:
                continue
            host = group.host if group.size > 1 else f"device {cut.rank}"
            budget = request.budgets.of(cut.rank, len(tapes), host)
            needs = needs_of(config, cut, tape, work, threads, tokenizer)
            mine.append(RankRequest(cut.rank, host, budget, needs, free_memory()))
    requests = [r for some in group.comm.allgather(mine) for r in some]
    with group.together():
        plans = plan_ranks(requests, request, work)
    return plans, requests


def _model(options: Options, group):
    """Return config, encodings by source, the shards' folder, and the tokenizer's bytes."""
    from tpimpi.engine.llm import OpenModel
    from tpimpi.model.shapes import shape_config

    if options.shape:
        with group.together():
            config = shape_config(options.shape, options.layers)
        folder = Path(options.save_dir or cache_directory())
        return config, lambda source: options.dtype or "bf16", folder, 0
    model, found = OpenModel(group, options.model, options.save_dir), None
    source = model.source
    if source.checkpoint:
        found = {name: tensor.encoding for name, tensor in source.checkpoint.tensors.items()}
    encodings = group.comm.bcast(found)
    return source.config, encodings.__getitem__, source.folder, model.tokenizer_bytes


def _row(r, found, rates, work) -> dict:
    whole = replace(work, prompt=work.context - 1)
    row = {"rank": r.rank, "host": r.host} | asdict(found)
    del row["resident_panels"]
    return row | {
        "total": found.total, "smallest_budget": r.needs.advised(work),
        "smallest_budget_of_context": r.needs.advised(whole),
        "budget_of_everything": r.needs.everything(work, found.chunk),
        "disk_bytes_per_second": rates.disk, "memory_bytes_per_second": rates.memory,
        "seconds_per_token": rates.seconds(found),
    }  # fmt: skip


_COLUMNS = (
    ("budget", "budget"), ("process", "process"), ("tokenizer", "tokenizer"),
    ("KV pages", "kv"), ("buffers", "activations"),
    ("margin", "margin"), ("ring", "ring"), ("resident", "resident"), ("total", "total"),
    ("streamed", "streamed"),
)  # fmt: skip


def _table(found: dict) -> str:
    """Return the plan for people: a line a rank, in MiB."""
    rows = found["ranks"]
    where = "" if found["launched"] else ", as if each ran on a device like this one"
    lines = [
        f"{found['model']} over {len(rows)} rank{'s' * (len(rows) > 1)}{where}",
        f"context of {found['context']} tokens, prompts in chunks of {found['prompt_chunk']}; MiB, "
        "streamed: a token",
        "rank" + "".join(f"{title:>10}" for title, _ in _COLUMNS) + "  ms a token",
    ]
    for row in rows:
        cells = ("-" if row[key] is None else f"{row[key] / MIB:.0f}" for _, key in _COLUMNS)
        took = row["seconds_per_token"] * 1e3
        lines.append(f"{row['rank']:4d}" + "".join(f"{c:>10}" for c in cells) + f"{took:12.1f}")
    slowest = max(rows, key=lambda row: row["seconds_per_token"])
    disk = slowest["streamed"] / slowest["disk_bytes_per_second"]
    binds = "disk" if disk >= slowest["seconds_per_token"] else "memory"
    allreduce = found["allreduce_seconds"]
    network = (
        "allreduces over the network not counted"
        if allreduce is None
        else f"allreduces {allreduce * 1e3:.1f} ms"
    )
    smallest, whole, everything = (
        size(max(row[key] for row in rows))
        for key in ("smallest_budget", "smallest_budget_of_context", "budget_of_everything")
    )
    lines += [
        f"a token takes {found['seconds_per_token'] * 1e3:.0f} ms or more ({network}), bound by "
        f"the {binds} of rank {slowest['rank']}, which reads "
        f"{rate(slowest['disk_bytes_per_second'])} from disk and "
        f"{rate(slowest['memory_bytes_per_second'])} from memory",
        f"budgets a rank: at least {smallest} (for {found['smallest_context']} tokens), {whole} "
        f"for all {found['asked_context']}, {everything} with everything in memory",
    ]
    return "\n".join(lines)
