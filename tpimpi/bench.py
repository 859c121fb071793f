"""`tpimpi bench`: the machine's limits and the model's times in one run, each time as a fraction.

Modes run from the smallest footprint to the largest, as a process's peak memory never falls; what
takes memory to measure (the memory's own rate) comes last.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tpimpi import __version__, card, limits, report, runtime, workload
from tpimpi.comm import Group
from tpimpi.errors import UserError
from tpimpi.files import check_folder
from tpimpi.launch import available_cores
from tpimpi.limits import Spread
from tpimpi.partition import pieces
from tpimpi.plan import DEFAULT_WINDOW, PROCESS_BYTES, free_memory
from tpimpi.shapes import shape_config
from tpimpi.source import Source
from tpimpi.synthetic import SyntheticSource
from tpimpi.timeline import Recorder, totals

STEPS = (1, 2, 4, 8)  # rows of one decode step
PROMPTS = (8, 64, 512)
DISK_SECONDS = 1.5  # of reading, before and after each mode that streams
# What each mode asks of the planner, from the smallest footprint to the largest.
MODES: dict[str, Callable[[Namespace], dict]] = {
    "window": lambda args: {"memory_window": args.memory_window or DEFAULT_WINDOW},
    "resident": lambda args: {"disable_memory_schedule": True},
}


def bench(args, group: Group, threads: int) -> None:
    """Measure, then print a card and one line of JSON on rank 0 (collective)."""
    source, context, prompts, modes = _prepare(args, group)
    shard, _ = source.shard(args, group)
    args.split_bin = False
    encoding = next(t.encoding for t in shard.tensors if t.name == "head")
    say = _Progress(group)
    found, names = {}, _streamed_names(source, group)
    shard.close()
    for mode in modes:
        if mode == "resident" and args.modes is None and not _fits(group, source, encoding):
            say(f"{mode}: left out, as the weights don't fit in the free memory")
            continue
        found[mode] = _measure_mode(
            args, group, source, threads, mode, context, prompts, names, say
        )
    say("limits of memory, arithmetic and sums")
    result = _result(args, group, source, threads, encoding, context, found)
    if group.rank != 0:
        return
    if args.plot:
        from tpimpi import plot

        plot.draw(args.plot, result, {mode: m["intervals"] for mode, m in found.items()})
    print(card.text(result))
    print(json.dumps(result), flush=True)


def _prepare(args, group: Group):
    """Check what can be checked before any work; return (source, context, prompts, modes)."""
    with group.together():
        if args.plot:
            check_folder(args.plot, "--plot")
            _need_matplotlib()
        modes = list(MODES) if args.modes is None else [m for m in MODES if m in args.modes]
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
    return source, context, sorted(set(prompts)), modes


def _need_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'tpimpi[bench]'")


def _streamed_names(source, group: Group) -> list[str]:
    mine = source.partition.ranks[group.rank]
    return [p.name for p in pieces(source.config, mine) if p.streamed]


def _fits(group: Group, source, encoding: str) -> bool:
    whole = workload.work_of(
        [workload.Pass(1, 0, 1)], source.config, source.partition, encoding, [0] * group.size
    )
    need = group.node.allreduce(whole.memory_bytes[group.rank] + PROCESS_BYTES)
    return all(group.comm.allgather(need <= free_memory()))


def _result(args, group, source, threads, encoding, context, found) -> dict | None:
    """Measure the limits and hold the modes' times against them (collective; rank 0's result)."""
    config, partition, repeats = source.config, source.partition, args.repeats
    memory = limits.memory_rates(group, threads, repeats)  # [ranks, repeats]
    flops = limits.flop_rates(group, threads, encoding, repeats)  # [ranks, repeats]
    nodes = limits.node_of_each_rank(group)
    chunks = {p.tokens for m in found.values() for p in _all_passes(m, context)}
    sums = {
        tokens: limits.allreduce_seconds(group, tokens, config.hidden_size, repeats)
        for tokens in sorted(chunks)
    }
    all_threads, hosts = group.comm.allgather(threads), group.comm.allgather(group.host)
    if group.rank != 0:
        return None
    modes = {}
    for mode, measured in found.items():
        disk = np.array(measured["disk"] or [[0.0] * group.size])  # [before and after, ranks]
        rates = workload.Rates(np.median(memory, 1), np.median(flops, 1), disk.mean(0), nodes)
        figures = measured["figures"]
        streamed = [f.streamed_bytes_per_pass for f in figures]
        rows = []
        for (kind, tokens), seconds in measured["seconds"].items():
            passes = _passes(kind, tokens, measured["chunk"], context)
            work = workload.work_of(passes, config, partition, encoding, streamed)
            all_sums = 2 * config.num_layers * sum(np.median(sums[p.tokens]) for p in passes)
            rows.append(_row(kind, tokens, passes, seconds, work, rates, all_sums))
        modes[mode] = {
            "resident_bytes": [f.resident_bytes for f in figures],
            "streamed_bytes": streamed,
            "ring_bytes": [f.ring_bytes for f in figures],
            "peak_memory_bytes": measured["peaks"],
            "prompt_chunk": measured["chunk"],
            "disk_bytes_per_second": disk.sum(1).tolist() if measured["disk"] else None,
            "times": rows,
            "one_token": [totals(step) for step in measured["intervals"]],
        }
    disks = [rate for m in modes.values() for rate in m["disk_bytes_per_second"] or []]
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


def _all_passes(measured: dict, context: int) -> list[workload.Pass]:
    chunk, seconds = measured["chunk"], measured["seconds"]
    return [p for kind, tokens in seconds for p in _passes(kind, tokens, chunk, context)]


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


class _Progress:
    """Tell on rank 0's standard error what is being measured."""

    def __init__(self, group: Group):
        self._speaks = group.rank == 0

    def __call__(self, text: str) -> None:
        if self._speaks:
            print(f"tpimpi bench: {text}", file=sys.stderr, flush=True)


def _measure_mode(args, group, source, threads, mode, context, prompts, names, say) -> dict:
    """Measure one mode (collective); the raw seconds are on rank 0, the rest everywhere."""
    settings = Namespace(**vars(args))
    settings.memory_window, settings.disable_memory_schedule = None, False
    vars(settings).update(MODES[mode](args))
    streams = mode != "resident"
    disk = []

    def read_disk() -> None:
        if streams:
            say(f"{mode}: disk rate")
            shard, _ = source.shard(args, group)
            disk.append(limits.disk_rate(group, shard, names, min(DISK_SECONDS, args.seconds)))
            shard.close()

    read_disk()
    say(f"{mode}: loading")
    shard, _ = source.shard(args, group)
    session = runtime.load(group, source, shard, settings, threads, context, max(STEPS))
    seconds = {}
    with session:
        engine, model, tape = parts(session)
        occupy(model)
        chunk = model.max_tokens
        if group.rank == 0:
            seconds = _Measurement(engine, source.config, args, context, chunk, mode, say).run(
                prompts
            )
            engine.stop()
        else:
            engine.serve()
        with Recorder(group, tape, model) as recorder:
            if group.rank == 0:
                for _ in range(2):
                    engine.step([1], [context - 1], [0], [0])
            figures = session.finish()
        step = recorder.last()
    figures, seconds = group.comm.bcast((figures, seconds))
    read_disk()
    return {
        "seconds": seconds,
        "figures": figures,
        "chunk": chunk,
        "disk": [group.comm.allgather(rate) for rate in disk],
        "intervals": group.comm.gather(step),
        "peaks": group.comm.allgather(report.peak_memory_bytes()),
    }


def parts(session):
    """Return (engine, model, tape) of a session."""
    return session.engine, session.engine._model, session._tape


def occupy(model) -> None:
    """Take all memory that a full context and the largest chunk would: pages and buffers."""
    cache = model.cache
    cache.reserve(np.array([cache.context - 1]), np.array([0]))
    for array in (*vars(model).values(), cache.keys, cache.values):
        if isinstance(array, np.ndarray):
            array.reshape(-1).view(np.uint8)[:: limits.mmap.PAGESIZE] |= 0


class _Measurement:
    """Time steps and prompts on rank 0, within `args.seconds` for the whole mode."""

    def __init__(self, engine, config, args, context: int, chunk: int, mode: str, say):
        self._engine, self._context, self._chunk = engine, context, chunk
        self._repeats, self._mode, self._say = args.repeats, mode, say
        self._end = time.perf_counter() + args.seconds
        random = np.random.default_rng(0)
        self._ids = random.integers(0, config.vocab_size, context).tolist()
        self._one = self._last = 0.0  # seconds of one token, and of the last thing measured
        self._last_tokens = 1

    def run(self, prompts: Sequence[int]) -> dict[tuple[str, int], list[float]]:
        """Return the seconds of all repeats by ("step", T) and ("prompt", tokens)."""
        found: dict[tuple[str, int], list[float]] = {}
        left = len(STEPS) + len(prompts)
        self._one = self._last = self._time(self._step, 1)  # also loads what stays resident
        for rows in STEPS:
            found["step", rows] = self._repeat(f"step of {rows}", rows, left, self._step)
            left -= 1
        self._engine.release(0)
        for tokens in prompts:
            found["prompt", tokens] = self._repeat(
                f"prompt of {tokens}", tokens, left, self._prompt
            )
            left -= 1
        return found

    def _repeat(self, what: str, tokens: int, left: int, work) -> list[float]:
        """Time `work` up to all repeats while its share of the time lasts; one token at least."""
        now = time.perf_counter()
        share = (self._end - now) / left
        optional = work == self._prompt or tokens > 1
        if optional and now + self._expected(tokens) > self._end:
            self._say(f"{self._mode}: {what} left out, as it would take longer than --seconds")
            return []
        self._say(f"{self._mode}: {what}")
        taken = [self._time(work, tokens)]
        while len(taken) < self._repeats and sum(taken) + taken[-1] <= share:
            taken.append(self._time(work, tokens))
        self._last, self._last_tokens = min(taken), tokens
        if work == self._step and tokens == 1:
            self._one = min(taken)
        return taken

    def _expected(self, tokens: int) -> float:
        """Guess from what was measured: each pass takes a time of its own, and each token."""
        passes = -(-self._last_tokens // self._chunk)
        each = max(0.0, self._last - passes * self._one) / self._last_tokens
        return -(-tokens // self._chunk) * self._one + each * tokens

    @staticmethod
    def _time(work: Callable[[int], None], tokens: int) -> float:
        start = time.perf_counter()
        work(tokens)
        return time.perf_counter() - start

    def _step(self, rows: int) -> None:
        first = self._context - rows
        positions = range(first, self._context)
        self._engine.step(self._ids[:rows], positions, [0] * rows, range(rows))

    def _prompt(self, tokens: int) -> None:
        self._engine.prefill(self._ids[:tokens]).argmax()
        self._engine.release(0)
