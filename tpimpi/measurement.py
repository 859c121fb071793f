"""Time the steps and prompts of one mode, with the disk's own rate before and after."""

from __future__ import annotations

import mmap
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import numpy as np

from tpimpi import limits, report, runtime
from tpimpi.comm import Group
from tpimpi.plan import DEFAULT_WINDOW
from tpimpi.timeline import Recorder

STEPS = (1, 2, 4, 8)  # rows of one decode step
EARLY, LATE = 0.15, 0.45  # of a mode's time: what takes more is done once; is left out
DISK_SECONDS = 1.5  # of reading, before and after each mode that streams
# What each mode asks of the planner, from the smallest footprint to the largest.
MODES: dict[str, Callable[[Namespace], dict]] = {
    "window": lambda args: {"memory_window": args.memory_window or DEFAULT_WINDOW},
    "resident": lambda args: {"disable_memory_schedule": True},
}


class Progress:
    """Tell on rank 0's standard error what is being measured."""

    def __init__(self, group: Group):
        self._speaks = group.rank == 0

    def __call__(self, text: str) -> None:
        if self._speaks:
            print(f"tpimpi bench: {text}", file=sys.stderr, flush=True)


def measure_mode(args, group, source, threads, mode, context, prompts, names, say) -> dict:
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
            vocabulary = source.config.vocab_size
            measurement = _Measurement(engine, vocabulary, args, context, chunk, mode, say)
            seconds = measurement.run(prompts)
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

    def run(self, prompts: Sequence[int]) -> dict[tuple[str, int], list[float]]:
        """Return the seconds of all repeats by ("step", T) and ("prompt", tokens).

        The repeats are rounds over everything, so that a change of the machine's speed meets all.
        """
        items = [("step", rows) for rows in STEPS] + [("prompt", tokens) for tokens in prompts]
        found: dict[tuple[str, int], list[float]] = {item: [] for item in items}
        self._time(*items[0])  # loads what stays resident, and fills the ring
        end = time.perf_counter() + self._seconds
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
        for item, expected in late.items():
            if not found[item] and expected < LATE * self._seconds:
                self._measure(item, found)
        for kind, tokens in (item for item in items if not found[item]):
            self._say(f"{self._mode}: {kind} of {tokens} left out: it would take most of --seconds")
        return found

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
