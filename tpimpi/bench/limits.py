"""What this machine can do at most: rates of memory, arithmetic and disk, an allreduce's time.

All ranks measure at once, each with its own threads, so that the rates of one node's ranks add up
to the node's. A pass can't be faster than the slowest of these allows (the roofline of Williams,
Waterman and Patterson 2009, doi:10.1145/1498765.1498785, with the disk and the network beside it).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.kernels.reading import read_memory
from tpimpi.kernels.tiling import AHEADS
from tpimpi.model.encoding import ENCODINGS
from tpimpi.tape.tape import Tape

MEMORY_BYTES = 256 << 20  # read in one repeat by each rank: far more than its caches
REPEAT_SECONDS = 0.05  # that a repeat of something short takes at least
PRODUCTS = ((96, 512, 1024), (192, 256, 512), (384, 1024, 2048))  # T, N, K: some fit the caches


@dataclass(frozen=True)
class Spread:
    """The median of repeats, and the quartiles around it."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        values = [float(value) for value in values]
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def node_of_each_rank(group: Group) -> list[int]:
    """Return the lowest rank of each rank's node (collective)."""
    return group.comm.allgather(group.node.bcast(group.rank))


def memory_rates(group: Group, threads: int, repeats: int) -> np.ndarray:
    """Return bytes/s of plain reads, far beyond the caches [ranks, repeats] (collective).

    The best of several ways to fetch ahead.
    """
    data = np.frombuffer(huge_pages(MEMORY_BYTES), np.uint64)  # as resident weights lie
    data[...] = 1
    return _best(
        data.nbytes / _seconds(group, repeats, partial(read_memory, data, threads, ahead))
        for ahead in AHEADS
    )


def flop_rates(group: Group, threads: int, encoding: str, repeats: int) -> np.ndarray:
    """Return FLOP/s of our own product where weights stay in cache [ranks, repeats] (collective).

    The best of several shapes; a product counts 2 T N K.
    """
    rates = []
    for tokens, rows, columns in PRODUCTS:
        x = np.ones((tokens, columns), np.float32)  # [T, K]
        panels = ENCODINGS[encoding].pack(ENCODINGS[encoding].zeros(rows, columns))
        out = np.empty((tokens, rows), np.float32)  # [T, N]
        product = partial(matmul, x, [(panels, out)], threads, encoding)
        rates.append(2 * tokens * rows * columns / _seconds(group, repeats, product))
    return _best(rates)


def _best(rates: Iterable[np.ndarray]) -> np.ndarray:
    """Return the rates [ranks, repeats] whose sum over the ranks is mostly the highest."""
    return max(rates, key=lambda found: np.median(found.sum(0)))


def allreduce_seconds(group: Group, tokens: int, hidden: int, repeats: int) -> np.ndarray:
    """Return the seconds of an allreduce of [T, D], on the slowest rank [repeats] (collective)."""
    if group.size == 1:
        return np.zeros(repeats)
    buffer = np.zeros((tokens, hidden), np.float32)  # [T, D]
    return _seconds(group, repeats, lambda: group.allreduce(buffer), together=True).max(0)


def lap_rate(group: Group, tape: Tape, names: Sequence[str], seconds: float) -> float:
    """Return this rank's bytes/s of whole laps of a running tape, while all read (collective).

    What is already in the ring when it begins does not count. The slowest rank's time counts for
    all, as a step needs all.
    """
    group.comm.Barrier()
    start, before, took = time.perf_counter(), tape.bytes_read, 0.0
    while took < seconds:
        with group.together():
            for name in names:
                for _ in tape.take(name):
                    pass
        took = max(group.comm.allgather(time.perf_counter() - start))
    return (tape.bytes_read - before) / took


def _seconds(
    group: Group, repeats: int, work: Callable[[], None], together: bool = False
) -> np.ndarray:
    """Return how long `work` takes, after a first call [ranks, repeats] (collective).

    A repeat makes as many calls as fill REPEAT_SECONDS; the same number on all ranks if the calls
    are collective (`together`).
    """
    work()
    start = time.perf_counter()
    work()
    calls = max(1, int(REPEAT_SECONDS / max(time.perf_counter() - start, 1e-7)))
    if together:
        calls = group.comm.bcast(calls)
    mine = []
    for _ in range(repeats):
        group.comm.Barrier()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        mine.append((time.perf_counter() - start) / calls)
    return np.array(group.comm.allgather(mine))
