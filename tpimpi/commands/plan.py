"""`tpimpi plan`: every rank's memory account before anything is loaded, and what a token takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace

from tpimpi.commands import flags
from tpimpi.console import say
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.ratio import AUTO, Ratio, fixed_shares, shares_of
from tpimpi.shards.request import ShardRequest

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
    shards: ShardRequest
    link: tuple[float, float] | None  # seconds one way, bytes/s; None: as measured
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
    flags.add_ratio(parser)
    parser.add_argument(
        "--link", type=flags.link, metavar="DELAY,RATE",
        help="the network between the devices, such as 1ms,300mbit: the delay of one way, the rate "
        "(default: as it is measured between the ranks of this run)",
    )  # fmt: skip
    flags.add_memory(parser)
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    if args.model and (args.layers or args.dtype):
        raise UserError("--layers and --dtype are of a --shape; a --model has its own")
    return Options(
        args.model, args.shape, args.layers, args.dtype, args.ranks, args.context,
        ShardRequest(args.save_dir, args.ratio), args.link,
        flags.memory_request(args), args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Print the plan (collective)."""
    from tpimpi.commands import plan_table
    from tpimpi.engine.shares import Machines, take_best
    from tpimpi.memory.account import Work
    from tpimpi.memory.shares import Load
    from tpimpi.model.partition import Partition

    ranks = options.ranks or group.size
    launched = group.size == ranks
    with group.together():
        if group.size not in (1, ranks):
            raise UserError(
                f"-np {ranks} under a launcher of {group.size} ranks; leave one of them out"
            )
        shares = shares_of(fixed_shares(options.shards.ratio), ranks)
    source, tokenizer = _source(options, group, launched)
    config = source.config
    context = min(options.context or CONTEXT, config.max_positions)
    if options.context and context < options.context and group.rank == 0:
        say(f"{config.name} has a context of {context} tokens, so it is planned for those")
    work = Work(max(1, context // 2), context)
    machines = Machines(group, source, options.memory, threads, ranks)
    group.settle_sums(row=config.hidden_size)
    if options.shards.ratio == AUTO and ranks > 1 and launched:
        machines.measure()
        take_best(group, source, machines)
    partition = source.partition if launched else Partition.of(config, shares)
    plans, requests = _plans(group, source, partition, options.memory, work, threads, tokenizer)
    machines.measure()  # last, as it takes memory itself
    network = _network(options, group, config)
    if group.rank != 0:
        return
    devices = machines.devices()
    load = Load.of(config, source.encoding_of, plans[0].context)
    found = {
        "model": config.name, "shares": partition.shares, "launched": launched,
        "asked_context": work.context, "smallest_context": work.smallest_context,
        "context": plans[0].context, "prompt_chunk": plans[0].chunk,
    }  # fmt: skip
    rows = [_row(r, p, d, work) for r, p, d in zip(requests, plans, devices, strict=True)]
    for row, share in zip(rows, partition.shares, strict=True):
        row["share"] = share
    found["ranks"] = rows
    found |= _times(config, load, devices, partition, rows, network, options.shards.ratio)
    print(json.dumps(found) if options.json else plan_table.text(found))


def _source(options: Options, group, launched: bool):
    """Return what is planned for, without its weights; and the tokenizer's bytes (collective)."""
    from tpimpi.engine.opened import OpenModel
    from tpimpi.model.shapes import shape_config
    from tpimpi.shards.synthetic import SyntheticSource

    shards = options.shards if launched else ShardRequest(options.shards.folder)
    if options.model:
        model = OpenModel(group, options.model, shards)
        return model.source, model.tokenizer_bytes
    config = None
    with group.together():
        config = shape_config(options.shape, options.layers)
    dtype = options.dtype or "bf16"
    return SyntheticSource(group, config, dtype, shards), 0


def _plans(group, source, partition, request: MemoryRequest, work, threads: int, tokenizer: int):
    """Return the plans and requests of all ranks: those that run, or as if each ran here alone.

    Collective.
    """
    from tpimpi.engine.needs import needs_of
    from tpimpi.memory.plan import RankRequest, plan_ranks
    from tpimpi.memory.process import free_memory
    from tpimpi.model.tensors import pieces
    from tpimpi.shards.layout import tape_layout

    mine, needs, free = [], {}, free_memory()
    with group.together():
        for cut in partition.ranks:
            if group.size > 1 and cut.rank != group.rank:
                continue
            host = group.host if group.size > 1 else f"device {cut.rank}"
            budget = request.budgets.of(cut.rank, len(partition.ranks), host)
            if cut.sizes not in needs:  # many ranks are alike
                tape = tape_layout(pieces(source.config, cut), source.encoding_of)
                needs[cut.sizes] = needs_of(source.config, cut, tape, work, threads, tokenizer)
            mine.append(RankRequest(cut.rank, host, budget, needs[cut.sizes], free))
    requests = [r for some in group.comm.allgather(mine) for r in some]
    with group.together():
        plans = plan_ranks(requests, request, work)
    return plans, requests


def _network(options: Options, group, config):
    """Return the seconds of a token's messages over the first so many devices, as a function.

    None where nothing is known of the network (collective).
    """
    import numpy as np

    from tpimpi.bench import limits
    from tpimpi.comm import cost
    from tpimpi.comm.links import Link, measure_links

    sizes = config.num_layers, config.hidden_size, config.vocab_size
    if options.link:
        given = Link(*options.link)
        return lambda ranks: cost.token_seconds(given, ranks, *sizes)
    if group.size == 1:
        return None
    links = measure_links(group)
    one = float(np.median(limits.allreduce_seconds(group, 1, config.hidden_size, 5)))
    if group.rank != 0:
        return None
    worst = cost.worst_links(links)
    # What the model says of this run's sums is off by some factor; so will it be for fewer ranks.
    said = cost.allreduce_seconds(worst[group.size], group.size, cost.FLOAT * config.hidden_size)
    return lambda ranks: cost.token_seconds(worst[ranks], ranks, *sizes, scale=one / said)


def _row(r, found, device, work) -> dict:
    whole = replace(work, prompt=work.context - 1)
    row = {"rank": r.rank, "host": r.host}
    row |= {f.name: getattr(found, f.name) for f in fields(found) if f.name != "resident_panels"}
    compute = (found.resident + found.streamed + found.kv) / device.memory
    disk = found.streamed / device.disk
    return row | {
        "total": found.total, "smallest_budget": r.needs.advised(work),
        "smallest_budget_of_context": r.needs.advised(whole),
        "budget_of_everything": r.needs.everything(work, found.chunk),
        "disk_bytes_per_second": device.disk, "memory_bytes_per_second": device.memory,
        "compute_seconds": compute, "disk_seconds": disk, "seconds_per_token": max(compute, disk),
    }  # fmt: skip


def _times(config, load, devices, partition, rows, network, ratio: Ratio) -> dict:
    """Return what a token takes on all devices, and on the first ones alone."""
    from tpimpi.memory.shares import fastest, predict, predict_numbers
    from tpimpi.memory.solver import best_shares, gain

    def shares_for(some) -> tuple[int, ...]:
        first = partition.shares[: len(some)]
        if len(some) == len(devices) or (ratio not in (None, AUTO) and any(first)):
            return first
        return best_shares(config, load, some) if ratio == AUTO else (1,) * len(some)

    disk = tuple(row["disk_seconds"] for row in rows)  # as it is planned, not only estimated
    seconds = 0.0 if network is None else network(len(devices))
    whole = replace(predict(config, load, devices, partition, seconds), disk=disk, fits=True)
    found = {
        "halves_seconds": whole.halves, "network_seconds": None if network is None else seconds,
        "seconds_per_token": whole.seconds,
        "gain_of_best_shares": gain(config, load, devices, partition),
        "best_shares": best_shares(config, load, devices),
        "numbers": None, "best_number": None,
    }  # fmt: skip
    if network is None or len(devices) == 1:
        return found
    numbers = predict_numbers(config, load, devices, shares_for, network)
    numbers[len(devices)] = whole
    best = fastest(numbers)
    return found | {
        "numbers": [
            {"devices": number, "shares": p.shares, "seconds_per_token": p.seconds,
             "network_seconds": p.network, "fits": p.fits}
            for number, p in numbers.items()
        ],
        "best_number": best,
    }  # fmt: skip
