"""The result of a benchmark: what was measured beside the limits that bind it, in JSON's types."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tpimpi import __version__
from tpimpi.bench import workload
from tpimpi.bench.limits import Spread
from tpimpi.bench.measurement import Bench
from tpimpi.bench.timeline import totals
from tpimpi.kernels.tiling import SIZES, tiling_for
from tpimpi.launch import available_cores


@dataclass(frozen=True)
class Limits:
    """What all ranks can do at most, measured at once."""

    memory: np.ndarray  # bytes/s [ranks, repeats]
    flops: np.ndarray  # FLOP/s [ranks, repeats]
    allreduces: dict[int, np.ndarray]  # seconds [repeats] by tokens
    nodes: list[int]  # a number of each rank's node


def tokens_of_passes(found: dict[str, dict]) -> list[int]:
    """Return how many tokens the passes of all modes had, each number once."""
    return sorted({p.tokens for measured in found.values() for p in _all_passes(measured)})


def assemble(bench: Bench, encoding: str, found: dict[str, dict], limits: Limits) -> dict | None:
    """Put the modes' times beside the limits (collective); return it on rank 0, None on others."""
    group, config = bench.group, bench.source.config
    memory, flops, nodes = limits.memory, limits.flops, limits.nodes
    threads, hosts = group.comm.allgather(bench.threads), group.comm.allgather(group.host)
    if group.rank != 0:
        return None
    modes = {}
    for mode, measured in found.items():
        disk = np.array(measured["disk"] or [[math.inf] * group.size])  # [repeats, ranks]
        rates = workload.RankRates(
            np.median(memory, 1), np.median(flops, 1), np.median(disk, 0), nodes
        )
        rows = _times(bench, encoding, measured, rates, limits.allreduces)
        modes[mode] = _mode(measured, disk, rows)
    disks = [sum(rates) for m in found.values() for rates in m["disk"]]
    return {
        "tpimpi": __version__,
        "model": json.loads(config.to_json()),
        "encoding": encoding,
        "sparse": bench.source.sparse,
        "ranks": group.size,
        "threads": threads,
        "hosts": hosts,
        "nodes": len(set(nodes)),
        "machine": machine(),
        "tiles": _tiles(encoding, bench.threads),
        "context": bench.work.context,
        "limits": {
            "memory_bytes_per_second": asdict(Spread.of(memory.sum(0))),
            "flops_per_second": asdict(Spread.of(flops.sum(0))),
            "disk_bytes_per_second": asdict(Spread.of(disks)) if disks else None,
            "allreduce_seconds": {
                str(t): asdict(Spread.of(s)) for t, s in limits.allreduces.items()
            },
        },
        "modes": modes,
    }


def _tiles(encoding: str, threads: int) -> dict[str, dict[str, int]]:
    """Return which tiles rank 0's products use for some numbers of tokens."""
    return {str(tokens): tiling_for(tokens, threads, encoding)._asdict() for tokens in SIZES}


def _mode(measured: dict, disk: np.ndarray, rows: list[dict]) -> dict:
    """Return one mode's memory and times; disk [repeats, ranks]."""
    figures = measured["figures"]
    return {
        "resident_bytes": [f.resident_bytes for f in figures],
        "streamed_bytes": [f.streamed_bytes_per_pass for f in figures],
        "ring_bytes": [f.ring_bytes for f in figures],
        "budget_bytes": [f.budget_bytes for f in figures],
        "planned_memory_bytes": [f.planned_memory_bytes for f in figures],
        "peak_memory_bytes": measured["peaks"],
        "prompt_chunk": figures[0].prompt_chunk,
        "context": figures[0].context,
        "disk_bytes_per_second": asdict(Spread.of(disk.sum(1))) if measured["disk"] else None,
        "times": rows,
        "allreduce": figures[0].allreduce,
        "one_token": [totals(step) for step in measured["intervals"]],
    }


def _times(bench: Bench, encoding: str, measured: dict, rates, allreduces: dict) -> list[dict]:
    """Return a row for each step and prompt that was measured."""
    config, partition = bench.source.config, bench.source.partition
    figures, rows = measured["figures"], []
    streamed = [f.streamed_bytes_per_pass for f in figures]
    for (kind, tokens), seconds in measured["seconds"].items():
        passes = _passes(kind, tokens, figures[0].prompt_chunk, figures[0].context)
        work = workload.work_of(passes, config, partition, encoding, streamed)
        network = 2 * config.num_layers * sum(np.median(allreduces[p.tokens]) for p in passes)
        rows.append(_row(kind, tokens, passes, seconds, work, rates, network))
    return rows


def _passes(kind: str, tokens: int, chunk: int, context: int) -> list[workload.Pass]:
    if kind == "step":
        return [workload.Pass(tokens, context - tokens, tokens)]
    return workload.prompt_passes(tokens, chunk)


def _all_passes(measured: dict) -> list[workload.Pass]:
    chunk, context = measured["figures"][0].prompt_chunk, measured["figures"][0].context
    return [
        p for kind, tokens in measured["seconds"] for p in _passes(kind, tokens, chunk, context)
    ]


def _row(kind, tokens, passes, seconds, work, rates, allreduces) -> dict:
    """Return one measured time beside its limits. Seconds, FLOPs, bytes of all ranks."""
    least = workload.seconds_at_least(work, rates, allreduces)
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
