"""`tpimpi bench`: the machine's limits and the model's times in one run, each time as a fraction.

Modes run from the smallest footprint to the largest, as a process's peak memory never falls; what
takes memory to measure (the memory's own rate) comes last.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tpimpi import __version__, card, limits, workload
from tpimpi.comm import Group
from tpimpi.errors import UserError
from tpimpi.files import check_folder
from tpimpi.flags import BENCH_MODES
from tpimpi.launch import available_cores
from tpimpi.limits import Spread
from tpimpi.measurement import STEPS, Bench, Progress
from tpimpi.plan import Work
from tpimpi.shapes import shape_config
from tpimpi.source import Source
from tpimpi.synthetic import SyntheticSource
from tpimpi.timeline import totals

PROMPTS = (8, 64, 512)


def bench(args, group: Group, threads: int) -> None:
    """Measure, then print a card and one line of JSON on rank 0 (collective)."""
    source, work, prompts = _prepare(args, group)
    source.shard(args, group)[0].close()
    args.split_bin = False
    setting = Bench(args, group, source, threads, work, prompts, Progress(group))
    encoding, found = setting.warm_up(), {}
    for mode in _by_memory(setting):
        found[mode] = setting.measure(mode)
    setting.say("limits of memory, arithmetic and sums")
    result = _result(args, group, source, threads, encoding, work.context, found)
    if group.rank != 0:
        return
    print(card.text(result))
    print(json.dumps(result), flush=True)
    if args.plot:
        from tpimpi import plot

        plot.draw(args.plot, result, {mode: m["intervals"] for mode, m in found.items()})


def _by_memory(setting: Bench) -> list[str]:
    """Return the modes to measure, from the smallest plan to the largest (collective)."""
    sizes = {}
    for mode in setting.args.modes or BENCH_MODES:
        plan = setting.plan(mode)
        if setting.args.modes or setting.fits(plan):
            sizes[mode] = max(setting.group.comm.allgather(plan.total))
        else:
            setting.say(f"{mode}: left out, as {plan.total / 2**20:.0f} MiB a rank are not free")
    if not sizes:
        raise UserError("no mode fits in the free memory; use more ranks on more machines")
    return sorted(sizes, key=sizes.get)


def _prepare(args, group: Group):
    """Check what can be checked before any work; return (source, work, prompts)."""
    with group.together():
        if args.plot:
            check_folder(args.plot, "--plot")
            _need_matplotlib()
        config = shape_config(args.shape, args.layers) if args.shape else None
        if not args.shape and (args.layers or args.dtype or args.sparse):
            raise UserError("--layers, --dtype and --sparse are for --shape, not for --model")
    if config:
        source = SyntheticSource(args, group, config, args.dtype or "bf16")
    else:
        source = Source(args, group)
    with group.together():
        most = source.config.max_positions
        if args.context and args.context > most:
            raise UserError(f"--context {args.context} is beyond the model's {most} tokens")
        context = args.context or min(most, max(args.prompts or PROMPTS))
        prompts = args.prompts or [p for p in PROMPTS if p <= context]
        if max(prompts, default=0) > context:
            raise UserError(
                f"a prompt of {max(prompts)} tokens is beyond the context of {context}; "
                "shorten --prompts or raise --context"
            )
        if context < max(STEPS):
            raise UserError(f"steps of {max(STEPS)} rows need a context of at least as many tokens")
    if getattr(source, "sparse", False) and group.rank == 0:
        why = "" if args.sparse else ", as the disk has no room for the shape"
        print(f"tpimpi: sparse files{why}: memory counts, times do not", file=sys.stderr)
    work = Work(max(prompts, default=1), context, logits=max(STEPS))
    return source, work, sorted(set(prompts))


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'tpimpi[bench]'")


def _result(args, group, source, threads, encoding, context, found) -> dict | None:
    """Measure the limits and hold the modes' times against them (collective; rank 0's result)."""
    config, partition, repeats = source.config, source.partition, args.repeats
    memory = limits.memory_rates(group, threads, repeats)  # [ranks, repeats]
    flops = limits.flop_rates(group, threads, encoding, repeats)  # [ranks, repeats]
    nodes = limits.node_of_each_rank(group)
    chunks = {p.tokens for m in found.values() for p in _all_passes(m)}
    sums = {
        tokens: limits.allreduce_seconds(group, tokens, config.hidden_size, repeats)
        for tokens in sorted(chunks)
    }
    all_threads, hosts = group.comm.allgather(threads), group.comm.allgather(group.host)
    if group.rank != 0:
        return None
    modes = {}
    for mode, measured in found.items():
        disk = np.array(measured["disk"] or [[math.inf] * group.size])  # [repeats, ranks]
        rates = workload.RankRates(
            np.median(memory, 1), np.median(flops, 1), np.median(disk, 0), nodes
        )
        figures = measured["figures"]
        streamed = [f.streamed_bytes_per_pass for f in figures]
        rows = []
        for (kind, tokens), seconds in measured["seconds"].items():
            passes = _passes(kind, tokens, figures[0].prompt_chunk, figures[0].context)
            work = workload.work_of(passes, config, partition, encoding, streamed)
            all_sums = 2 * config.num_layers * sum(np.median(sums[p.tokens]) for p in passes)
            rows.append(_row(kind, tokens, passes, seconds, work, rates, all_sums))
        modes[mode] = {
            "resident_bytes": [f.resident_bytes for f in figures],
            "streamed_bytes": streamed,
            "ring_bytes": [f.ring_bytes for f in figures],
            "budget_bytes": [f.budget_bytes for f in figures],
            "planned_memory_bytes": [f.planned_memory_bytes for f in figures],
            "peak_memory_bytes": measured["peaks"],
            "prompt_chunk": figures[0].prompt_chunk,
            "context": figures[0].context,
            "disk_bytes_per_second": asdict(Spread.of(disk.sum(1))) if measured["disk"] else None,
            "times": rows,
            "one_token": [totals(step) for step in measured["intervals"]],
        }
    disks = [sum(rates) for m in found.values() for rates in m["disk"]]
    return {
        "tpimpi": __version__,
        "model": json.loads(config.to_json()),
        "encoding": encoding,
        "sparse": getattr(source, "sparse", False),
        "ranks": group.size,
        "threads": all_threads,
        "hosts": hosts,
        "nodes": len(set(nodes)),
        "machine": machine(),
        "context": context,
        "limits": {
            "memory_bytes_per_second": asdict(Spread.of(memory.sum(0))),
            "flops_per_second": asdict(Spread.of(flops.sum(0))),
            "disk_bytes_per_second": asdict(Spread.of(disks)) if disks else None,
            "allreduce_seconds": {str(t): asdict(Spread.of(s)) for t, s in sums.items()},
        },
        "modes": modes,
    }


def _passes(kind: str, tokens: int, chunk: int, context: int) -> list[workload.Pass]:
    if kind == "step":
        return [workload.Pass(tokens, context - tokens, tokens)]
    return workload.prompt_passes(tokens, chunk)


def _all_passes(measured: dict) -> list[workload.Pass]:
    chunk, context = measured["figures"][0].prompt_chunk, measured["figures"][0].context
    return [
        p for kind, tokens in measured["seconds"] for p in _passes(kind, tokens, chunk, context)
    ]


def _row(kind, tokens, passes, seconds, work, rates, sums) -> dict:
    """Return one measured time beside its limits. Seconds, FLOPs, bytes of all ranks."""
    least = workload.seconds_at_least(work, rates, sums)
    bound_by = max(least, key=least.get)
    spread = Spread.of(seconds) if seconds else None
    return {
        "kind": kind,
        "tokens": tokens,
        "passes": len(passes),
        "seconds": asdict(spread) if spread else None,
        "least_seconds": least,
        "bound_by": bound_by,
        "fraction": least[bound_by] / spread.median if spread else None,
        "flops": float(work.flops.sum()),
        "memory_bytes": float(work.memory_bytes.sum()),
        "streamed_bytes": float(work.streamed_bytes.sum()),
    }


def machine() -> dict:
    """Return what rank 0's processor calls itself, and how many cores the process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the name above
    return {"processor": name, "cores": available_cores()}
