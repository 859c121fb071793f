"""Time the steps and prompts of one mode, with the disk's own rate between them."""

from __future__ import annotations

import mmap
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpimpi import limits, memory, runtime
from tpimpi.budget import Budgets, MemoryRequest
from tpimpi.comm import Group
from tpimpi.partition import pieces
from tpimpi.plan import MARGIN_BYTES, MemoryPlan, Work
from tpimpi.shard import Shard
from tpimpi.timeline import Recorder
from tpimpi.warmup import warm_up

WINDOW = 4  # blocks, where --memory-window says nothing
BUDGET_SHARE = 0.6  # of the weights, where --memory-budget says nothing
STEPS = (1, 2, 4, 8)  # rows of one decode step
DISK_SECONDS = 0.5  # of reading at least, before, between and after the rounds of a mode
EARLY, LATE = 0.15, 0.45  # of a mode's time: what takes more is done once; is left out


class Progress:
    """Tell on rank 0's standard error what is being measured."""

    def __init__(self, group: Group):
        self._speaks = group.rank == 0

    def __call__(self, text: str) -> None:
        if self._speaks:
            print(f"tpimpi bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """What all modes have in common; its methods are collective."""

    args: Namespace
    group: Group
    source: object  # a Source or a SyntheticSource
    threads: int
    work: Work
    prompts: Sequence[int]
    say: Progress

    def warm_up(self) -> str:
        """Load the kernels, so that plans know the whole process; return the weights' encoding."""
        shard = self._shard()
        warm_up(self.group.node, {tensor.encoding for tensor in shard.tensors}, self.threads)
        shard.close()
        return shard["head"].encoding

    def request(self, mode: str) -> MemoryRequest:
        """Return what a mode asks of the planner."""
        request = MemoryRequest(chunk=self.args.prompt_chunk)
        if mode == "window":
            return replace(request, window=self.args.memory_window or WINDOW)
        if mode == "resident":
            return replace(request, everything=True)
        if self.args.memory_budget != MemoryRequest.budgets:
            return replace(request, budgets=self.args.memory_budget)
        needs = self._needs()
        least = needs.smallest(self.work, max(STEPS)) + MARGIN_BYTES
        mine = max(needs.process + int(BUDGET_SHARE * needs.weights), least)
        return replace(request, budgets=Budgets(tuple(self.group.comm.allgather(mine))))

    def plan(self, mode: str) -> MemoryPlan:
        """Plan a mode, without running it. Raises UserError for a budget that is too small."""
        return runtime.plan_memory(self.group, self._needs(), self.request(mode), self.work)

    def fits(self, plan: MemoryPlan) -> bool:
        """Tell whether all ranks of each node together would find the memory of their plans."""
        free = memory.free_memory()
        most = free.node if free.cgroup is None else min(free.node, free.cgroup)
        need = self.group.node.allreduce(plan.total - plan.process)
        return all(self.group.comm.allgather(need <= most))

    def measure(self, mode: str) -> dict:
        """Measure one mode; the intervals of one token are on rank 0 alone, the rest everywhere."""
        group = self.group
        self.say(f"{mode}: loading")
        request, shard = self.request(mode), self._shard()
        session = runtime.load(group, self.source, shard, request, self.work, self.threads)
        seconds, disk = {}, _Disk(group, session.tape, self._names(), self.sparse)
        with session:
            engine, model = session.engine, session.model
            occupy(model)
            context, chunk = model.cache.context, model.max_tokens
            if group.rank == 0:
                measurement = _Measurement(
                    engine, model.config.vocab_size, self.args, context, chunk, mode, self.say
                )
                seconds = measurement.run(self.prompts, lambda: disk.measure(engine))
                disk.end(engine)
            else:
                disk.serve(engine)
            with Recorder(group, session.tape, model) as recorder:
                if group.rank == 0:
                    for _ in range(2):
                        engine.step([1], [context - 1], [0], [0])
                figures = session.finish()
            step = recorder.last()
        figures, seconds = group.comm.bcast((figures, seconds))
        return {
            "seconds": seconds,
            "figures": figures,
            "disk": [list(rates) for rates in zip(*group.comm.allgather(disk.rates), strict=True)],
            "intervals": group.comm.gather(step),
            "peaks": group.comm.allgather(memory.peak_bytes()),
        }

    @property
    def sparse(self) -> bool:
        """Whether the weights are holes, which no disk reads."""
        return getattr(self.source, "sparse", False)

    def _shard(self) -> Shard:
        return self.source.shard(self.args, self.group)[0]

    def _names(self) -> list[str]:
        mine = self.source.partition.ranks[self.group.rank]
        return [p.name for p in pieces(self.source.config, mine) if p.streamed]

    def _needs(self):
        shard = self._shard()
        tape = {name: shard[name] for name in self._names()}
        shard.close()
        mine = self.source.partition.ranks[self.group.rank]
        return runtime.needs_of(self.source.config, mine, tape, self.work, self.threads)


class _Disk:
    """Take the disk's rate again and again between steps: the same bytes, ring and readers."""

    def __init__(self, group: Group, tape, names: Sequence[str], sparse: bool):
        self._group, self._tape, self._names = group, tape, names
        self._streams = not sparse and any(group.comm.allgather(tape.streamed_bytes))
        self.rates: list[float] = []  # of this rank, bytes/s

    def measure(self, engine) -> None:
        """Measure now (rank 0, while the others are in `serve`)."""
        if self._streams:
            engine.stop()
            self._group.comm.bcast(True)
            self._lap()

    def end(self, engine) -> None:
        """Let the others leave `serve` (rank 0)."""
        engine.stop()
        self._group.comm.bcast(False)

    def serve(self, engine) -> None:
        """Compute and measure what rank 0 says (ranks other than 0)."""
        engine.serve()
        while self._group.comm.bcast(None):
            self._lap()
            engine.serve()

    def _lap(self) -> None:
        self.rates.append(limits.lap_rate(self._group, self._tape, self._names, DISK_SECONDS))


def occupy(model) -> None:
    """Take all memory that a full context and the largest chunk would: pages and buffers."""
    cache = model.cache
    cache.reserve(np.array([cache.context - 1]), np.array([0]))
    for array in (cache.keys, cache.values, *vars(model.buffers).values()):
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] |= 0


class _Measurement:
    """Time steps and prompts on rank 0, within `args.seconds` for the whole mode."""

    def __init__(
        self, engine, vocabulary: int, args, context: int, chunk: int, mode: str, say: Progress
    ):
        self._engine, self._context, self._chunk = engine, context, chunk
        self._repeats, self._seconds, self._mode, self._say = (
            args.repeats, args.seconds, mode, say,
        )  # fmt: skip
        random = np.random.default_rng(0)
        self._ids = random.integers(0, vocabulary, context).tolist()
        self._one = 0.0  # seconds of one token
        self._each = 0.0  # seconds of one more token in the same pass, as far as is known

    def run(
        self, prompts: Sequence[int], between: Callable[[], None]
    ) -> dict[tuple[str, int], list[float]]:
        """Return the seconds of all repeats by ("step", T) and ("prompt", tokens).

        The repeats are rounds over everything, so that a change of the machine's speed meets all;
        `between` is called before and after each round that begins within the time.
        """
        items = [("step", rows) for rows in STEPS] + [("prompt", tokens) for tokens in prompts]
        found: dict[tuple[str, int], list[float]] = {item: [] for item in items}
        items = [item for item in items if item[1] <= self._most(item[0])]
        self._time(*items[0])  # loads what stays resident, and fills the ring
        end = time.perf_counter() + self._seconds
        between()
        late: dict[tuple[str, int], float] = {}  # what takes long is done once, at the end
        for number in range(1, self._repeats + 1):
            self._say(f"{self._mode}: round {number} of {self._repeats}")
            taken = 0
            for item in (item for item in items if item not in late):
                expected = min(found[item]) if found[item] else self._expected(item[1])
                if expected > EARLY * self._seconds and found[items[0]]:
                    late[item] = expected
                    end -= expected if expected < LATE * self._seconds else 0
                elif time.perf_counter() + expected < end or not found[items[0]]:
                    self._measure(item, found)
                    taken += 1
            if not taken:
                break
            between()
        for item, expected in late.items():
            if not found[item] and expected < LATE * self._seconds:
                self._measure(item, found)
                between()
        for kind, tokens in (item for item in found if not found[item]):
            why = "take most of --seconds" if (kind, tokens) in items else "not fit in the memory"
            self._say(f"{self._mode}: {kind} of {tokens} left out, as it would {why}")
        return found

    def _most(self, kind: str) -> int:
        """Return how many tokens the mode's memory allows."""
        return self._context if kind == "prompt" else min(self._context, self._chunk)

    def _measure(self, item: tuple[str, int], found: dict) -> None:
        seconds, tokens = self._time(*item), item[1]
        found[item].append(seconds)
        self._one = seconds if tokens == 1 else self._one
        passes = -(-tokens // self._chunk)
        self._each = max(0.0, seconds - passes * self._one) / tokens

    def _expected(self, tokens: int) -> float:
        return -(-tokens // self._chunk) * self._one + self._each * tokens

    def _time(self, kind: str, tokens: int) -> float:
        start = time.perf_counter()
        if kind == "prompt":
            self._engine.prefill(self._ids[:tokens]).argmax()
        else:
            positions = range(self._context - tokens, self._context)
            self._engine.step(self._ids[:tokens], positions, [0] * tokens, range(tokens))
        return time.perf_counter() - start
