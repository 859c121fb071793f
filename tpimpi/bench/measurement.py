"""Time the steps and prompts of one mode, with the disk's own rate between them."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpimpi.bench import limits
from tpimpi.bench.settings import STEPS, Settings
from tpimpi.bench.timeline import Recorder
from tpimpi.comm.group import Group
from tpimpi.engine.needs import needs_of
from tpimpi.engine.session import load_session, plan_memory
from tpimpi.engine.warmup import warm_up
from tpimpi.memory.account import MARGIN_BYTES, MemoryPlan, Work
from tpimpi.memory.process import free_memory, peak_bytes
from tpimpi.memory.request import Budgets, MemoryRequest
from tpimpi.model.tensors import pieces
from tpimpi.progress import Progress, Waiting
from tpimpi.shards.shard import Shard
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource

BUDGET_SHARE = 0.6  # of the weights, where --memory-budget says nothing
DISK_SECONDS = 0.5  # of reading at least, before, between and after the rounds of a mode
EARLY, LATE = 0.15, 0.45  # of a mode's time: what takes more is done once; is left out


@dataclass(frozen=True)
class Bench:
    """What all modes have in common; its methods are collective."""

    group: Group
    source: Source | SyntheticSource
    settings: Settings
    work: Work
    prompts: Sequence[int]
    threads: int
    say: Callable[[str], None]

    def warm_up(self) -> str:
        """Load the kernels, so that plans know the whole process; return the weights' encoding."""
        shard = self._shard()
        warm_up(self.group, {tensor.encoding for tensor in shard.tensors}, self.threads)
        shard.close()
        return shard["head"].encoding

    def request(self, mode: str) -> MemoryRequest:
        """Return what a mode asks of the planner."""
        request = MemoryRequest(chunk=self.settings.prompt_chunk)
        if mode == "window":
            return replace(request, window=self.settings.window)
        if mode == "resident":
            return replace(request, everything=True)
        if self.settings.budgets is not None:
            return replace(request, budgets=self.settings.budgets)
        needs = self._needs()
        least = needs.smallest(self.work, max(STEPS)) + MARGIN_BYTES
        mine = max(needs.process + int(BUDGET_SHARE * needs.weights), least)
        return replace(request, budgets=Budgets(tuple(self.group.comm.allgather(mine))))

    def plan(self, mode: str) -> MemoryPlan:
        """Plan a mode, without running it. Raises UserError for a budget that is too small."""
        return plan_memory(self.group, self._needs(), self.request(mode), self.work)

    def fits(self, plan: MemoryPlan) -> bool:
        """Tell whether all ranks of each node together would find the memory of their plans."""
        free = free_memory()
        most = free.node if free.cgroup is None else min(free.node, free.cgroup)
        need = self.group.node.allreduce(plan.total - plan.process)
        return all(self.group.comm.allgather(need <= most))

    def measure(self, mode: str) -> dict:
        """Measure one mode; the intervals of one token are on rank 0 alone, the rest everywhere."""
        group = self.group
        self.say(f"{mode}: loading")
        with Waiting(f"bench: {mode}: loading", group.rank) as waiting:
            waiting.begin()
            request, shard = self.request(mode), self._shard()
            session = load_session(
                group, self.source, shard, request, self.work, self.threads,
                allreduce=self.settings.allreduce,
            )  # fmt: skip
        seconds, disk = {}, _Disk(group, session.tape, self._names(), self.source.sparse)
        with session:
            runner, model = session.runner, session.model
            occupy(model)
            context, chunk = model.cache.context, model.max_tokens
            if group.rank == 0:
                stopwatch = _Stopwatch(runner, model.config.vocab_size, context, chunk)
                rounds = _Rounds(stopwatch, self.settings, mode, self.say)
                seconds = rounds.run(self.prompts, lambda: disk.measure(runner))
                disk.end(runner)
            else:
                disk.serve(runner)
            with Recorder(group, session.tape, runner) as recorder:
                if group.rank == 0:
                    for _ in range(2):
                        runner.step([1], [context - 1], [0], [0])
                figures = session.finish()
            step = recorder.last()
        figures, seconds = group.comm.bcast((figures, seconds))
        return {
            "seconds": seconds,
            "figures": figures,
            "disk": [list(rates) for rates in zip(*group.comm.allgather(disk.rates), strict=True)],
            "intervals": group.comm.gather(step),
            "peaks": group.comm.allgather(peak_bytes()),
        }

    def _shard(self) -> Shard:
        return self.source.shard(self.group)[0]

    def _names(self) -> list[str]:
        mine = self.source.partition.ranks[self.group.rank]
        return [p.name for p in pieces(self.source.config, mine) if p.streamed]

    def _needs(self):
        shard = self._shard()
        tape = {name: shard[name] for name in self._names()}
        shard.close()
        mine = self.source.partition.ranks[self.group.rank]
        return needs_of(self.source.config, mine, tape, self.work, self.threads)


class _Disk:
    """Take the disk's rate again and again between steps: the same bytes, ring and readers."""

    def __init__(self, group: Group, tape, names: Sequence[str], sparse: bool):
        self._group, self._tape, self._names = group, tape, names
        self._streams = not sparse and any(group.comm.allgather(tape.streamed_bytes))
        self.rates: list[float] = []  # of this rank, bytes/s

    def measure(self, runner) -> None:
        """Measure now (rank 0, while the others are in `serve`)."""
        if self._streams:
            runner.stop()
            self._group.comm.bcast(True)
            self._lap()

    def end(self, runner) -> None:
        """Let the others leave `serve` (rank 0)."""
        runner.stop()
        self._group.comm.bcast(False)

    def serve(self, runner) -> None:
        """Compute and measure what rank 0 says (ranks other than 0)."""
        runner.serve()
        while self._group.comm.bcast(None):
            self._lap()
            runner.serve()

    def _lap(self) -> None:
        self.rates.append(limits.lap_rate(self._group, self._tape, self._names, DISK_SECONDS))


def occupy(model) -> None:
    """Take all memory that a full context and the largest chunk would: pages and buffers."""
    cache = model.cache
    for array in (cache.keys, cache.values, *vars(model.buffers).values()):
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] |= 0


class _Stopwatch:
    """Time one step or prompt on rank 0, and foretell how long the next will take."""

    def __init__(self, runner, vocabulary: int, context: int, chunk: int):
        self._runner, self._context, self._chunk = runner, context, chunk
        random = np.random.default_rng(0)
        self._ids = random.integers(0, vocabulary, context).tolist()
        self._one = 0.0  # seconds of one token
        self._each = 0.0  # seconds of one more token in the same pass, as far as is known

    def fits(self, kind: str, tokens: int) -> bool:
        """Tell whether the mode's memory allows so many tokens."""
        return tokens <= (self._context if kind == "prompt" else min(self._context, self._chunk))

    def expected(self, tokens: int) -> float:
        """Return the seconds that so many tokens will take, by what was timed before."""
        return -(-tokens // self._chunk) * self._one + self._each * tokens

    def time(self, kind: str, tokens: int) -> float:
        """Return the seconds of a step or a prompt."""
        start = time.perf_counter()
        if kind == "prompt":
            self._runner.prefill(self._ids[:tokens]).argmax()
        else:
            positions = range(self._context - tokens, self._context)
            self._runner.step(self._ids[:tokens], positions, [0] * tokens, range(tokens))
        seconds = time.perf_counter() - start
        self._one = seconds if tokens == 1 else self._one
        passes = -(-tokens // self._chunk)
        self._each = max(0.0, seconds - passes * self._one) / tokens
        return seconds


class _Rounds:
    """Time everything in rounds within `settings.seconds`; what takes long comes once, at the end.

    So a change of the machine's speed meets all alike.
    """

    def __init__(
        self, stopwatch: _Stopwatch, settings: Settings, mode: str, say: Callable[[str], None]
    ):
        self._stopwatch, self._mode, self._say = stopwatch, mode, say
        self._repeats, self._seconds = settings.repeats, settings.seconds

    def run(
        self, prompts: Sequence[int], between: Callable[[], None]
    ) -> dict[tuple[str, int], list[float]]:
        """Return the seconds of all repeats by ("step", T) and ("prompt", tokens).

        `between` is called before and after each round that begins within the time.
        """
        items = [("step", rows) for rows in STEPS] + [("prompt", tokens) for tokens in prompts]
        found: dict[tuple[str, int], list[float]] = {item: [] for item in items}
        items = [item for item in items if self._stopwatch.fits(*item)]
        title, most = f"bench: {self._mode}", self._repeats * len(items)
        with Progress(title, most, "measurements at most", even=False) as progress:
            self._stopwatch.time(*items[0])  # loads what stays resident, and fills the ring
            end = time.perf_counter() + self._seconds
            between()
            late: dict[tuple[str, int], float] = {}  # what takes long, and how long
            for _ in range(self._repeats):
                end, taken = self._round(items, found, late, end, progress)
                if not taken:
                    break
                between()
            for item, expected in late.items():
                if not found[item] and expected < LATE * self._seconds:
                    found[item].append(self._stopwatch.time(*item))
                    progress.update(1)
                    between()
        for kind, tokens in (item for item in found if not found[item]):
            why = "take most of --seconds" if (kind, tokens) in items else "not fit in the memory"
            self._say(f"{self._mode}: {kind} of {tokens} left out, as it would {why}")
        return found

    def _round(
        self, items: list, found: dict, late: dict, end: float, progress: Progress
    ) -> tuple[float, bool]:
        """Time what is not too long; return the new end of the time, and whether any was timed."""
        taken = False
        for item in (item for item in items if item not in late):
            expected = min(found[item]) if found[item] else self._stopwatch.expected(item[1])
            if expected > EARLY * self._seconds and found[items[0]]:
                late[item] = expected
                end -= expected if expected < LATE * self._seconds else 0
            elif time.perf_counter() + expected < end or not found[items[0]]:
                found[item].append(self._stopwatch.time(*item))
                progress.update(1)
                taken = True
        return end, taken
