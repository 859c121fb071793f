"""`tpimpi plan`: every rank's memory account before anything is loaded, and what a token takes."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tpimpi import limits, memory, runtime
from tpimpi.budget import MemoryRequest
from tpimpi.comm import Group
from tpimpi.directio import PAGE
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import MachineError, UserError
from tpimpi.files import free_disk
from tpimpi.flags import memory_request
from tpimpi.launch import cache_directory
from tpimpi.partition import Partition, RankCut, pieces
from tpimpi.plan import MemoryPlan, RankRequest, Rates, Work, plan_ranks
from tpimpi.shapes import shape_config
from tpimpi.shard import Shard, Stored, shard_name
from tpimpi.source import Source
from tpimpi.warmup import warm_up

PROBE_BYTES, PROBE_SECONDS = 128 << 20, 0.5  # a file that is written to time the disk's reads
MIB = 1 << 20


def plan(args, group: Group, threads: int) -> None:
    """Print the plan of `args` (collective)."""
    config, encoding_of, folder = _model(args, group)
    ranks = args.ranks or group.size
    if group.size not in (1, ranks):
        with group.together():
            raise UserError(
                f"-np {ranks} under a launcher of {group.size} ranks; leave one of them out"
            )
    partition = Partition.of(config, [1] * ranks)
    context = min(args.context, config.max_positions)
    work = Work(max(1, context // 2), context)
    tapes = [_tape(config, mine, encoding_of) for mine in partition.ranks]
    encodings = {tensor.encoding for tape in tapes for tensor in tape.values()}
    warm_up(group.node, encodings, threads)
    group.warm_up()
    request = memory_request(args)
    plans, everyone = _plans(group, config, partition, tapes, request, work, threads)
    rates = group.comm.gather(_rates(group, folder, threads))  # last: it takes memory of its own
    repeats = limits.allreduce_seconds(group, 1, config.hidden_size, 5)
    if group.rank != 0:
        return
    rates = rates if group.size > 1 else rates * ranks
    rows = [_row(r, p, rate, work) for r, p, rate in zip(everyone, plans, rates, strict=True)]
    sums = 2 * config.num_layers * float(np.median(repeats))
    found = {
        "model": config.name, "ranks": rows, "launched": group.size == ranks,
        "context": plans[0].context, "prompt_chunk": plans[0].chunk,
        "sums_seconds": sums if group.size == ranks else None,
        "seconds_per_token": max(row["seconds_per_token"] for row in rows) + sums,
    }  # fmt: skip
    print(json.dumps(found) if args.output == "json" else _table(found))


def _plans(
    group: Group, config, partition, tapes, request: MemoryRequest, work: Work, threads: int
):
    """Return the plans and requests of all ranks: those that run, or as if each ran here alone.

    Collective.
    """
    mine = []
    with group.together():
        for cut, tape in zip(partition.ranks, tapes, strict=True):
            if group.size > 1 and cut.rank != group.rank:
                continue
            host = group.host if group.size > 1 else f"device {cut.rank}"
            budget = request.budgets.of(cut.rank, len(tapes), host)
            needs = runtime.needs_of(config, cut, tape, work, threads)
            mine.append(RankRequest(cut.rank, host, budget, needs, memory.free_memory()))
    everyone = [r for some in group.comm.allgather(mine) for r in some]
    with group.together():
        plans = plan_ranks(everyone, request, work)
    return plans, everyone


def _model(args, group: Group):
    """Return the config, the encoding of each tensor by its source, and a folder on the disk."""
    if args.shape:
        with group.together():
            config = shape_config(args.shape, args.layers)
        folder = Path(args.save_dir) if args.save_dir else cache_directory()
        return config, lambda source: args.dtype or "bf16", folder
    with group.together():
        if args.layers or args.dtype:
            raise UserError("--layers and --dtype are of a --shape; a --model has its own")
    source, found = Source(args, group), None
    if source.checkpoint:
        found = {name: tensor.encoding for name, tensor in source.checkpoint.tensors.items()}
    encodings = group.comm.bcast(found)
    tied = encodings["model.embed_tokens.weight"]  # what a head that is not there has
    return source.config, lambda name: encodings.get(name, tied), source.folder


def _tape(config, mine: RankCut, encoding_of) -> dict[str, Stored]:
    """Return one rank's tensors in the order of use, laid out as a shard lays them."""
    tape, at = {}, PAGE
    for piece in pieces(config, mine):
        if piece.streamed:
            encoding = encoding_of(piece.source)
            nbytes = math.prod(piece.shape) * ENCODINGS[encoding].storage.itemsize
            tape[piece.name] = Stored(piece.name, encoding, piece.shape, at, nbytes)
            at += -(-nbytes // PAGE) * PAGE
    return tape


class _Probe:
    """A file of zeros on a disk, read like a shard of one tensor."""

    def __init__(self, folder: Path):
        while not folder.is_dir():
            folder = folder.parent
        free = free_disk(folder)
        nbytes = min(PROBE_BYTES, free // 4 // 2**20 * 2**20)
        if not nbytes:
            raise MachineError(
                f"the disk of {folder} has {free / 2**20:.1f} MiB free, too few to time its reads; "
                "free some space or name another folder with --save-dir"
            )
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tpimpi-probe-", delete=False) as file:
            self.path = Path(file.name)
            try:
                for _ in range(0, nbytes, 1 << 20):
                    file.write(bytes(1 << 20))
                os.fsync(file.fileno())
            except OSError:
                self.path.unlink()
                raise
        rows = nbytes // PAGE
        self.tensor = Stored("probe", "f32", (rows, PAGE // 4), 0, rows * PAGE)

    def __getitem__(self, _name: str) -> Stored:
        return self.tensor

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink()


def _rates(group: Group, folder: Path, threads: int) -> Rates:
    """Measure what this rank can read while all others read too (collective)."""
    rates = limits.memory_rates(group, threads, 3)[group.rank]
    source, names = None, ["probe"]
    with group.together():
        path = folder / shard_name(group.rank, group.size)
        if path.exists():
            source = Shard(path)
            names = [t.name for t in source.tensors if len(t.shape) == 2 and t.name != "embed"]
        else:
            source = _Probe(folder)
    try:
        disk = limits.disk_rate(group, source, names, PROBE_SECONDS)
    finally:
        source.close()
    return Rates(disk, float(np.median(rates)))


def _row(r: RankRequest, found: MemoryPlan, rates: Rates, work: Work) -> dict:
    row = {"rank": r.rank, "host": r.host} | asdict(found)
    del row["resident_rows"]
    return row | {
        "total": found.total, "smallest_budget": r.needs.smallest(work),
        "budget_of_everything": r.needs.everything(work, found.chunk),
        "disk_bytes_per_second": rates.disk, "memory_bytes_per_second": rates.memory,
        "seconds_per_token": rates.seconds(found),
    }  # fmt: skip


_COLUMNS = (
    ("budget", "budget"), ("process", "process"), ("KV pages", "kv"), ("buffers", "activations"),
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
    sums = found["sums_seconds"]
    network = "sums over the network not counted" if sums is None else f"sums {sums * 1e3:.1f} ms"
    smallest, everything = (
        max(row[key] for row in rows) / MIB for key in ("smallest_budget", "budget_of_everything")
    )
    lines += [
        f"a token takes {found['seconds_per_token'] * 1e3:.0f} ms or more ({network}), bound by "
        f"the {binds} of rank {slowest['rank']}, which reads "
        f"{slowest['disk_bytes_per_second'] / 1e9:.2f} GB/s from disk and "
        f"{slowest['memory_bytes_per_second'] / 1e9:.1f} GB/s from memory",
        f"smallest budget {smallest:.0f} MiB, everything in memory {everything:.0f} MiB a rank",
    ]
    return "\n".join(lines)
