"""The allreduce of a group: which strategy merges a buffer of which length, chosen by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from tpimpi.comm.allreduce import STRATEGIES, SUM_BYTES, Exchange, most_at_once

AUTO = "auto"
LONG_BYTES = (
    256 << 10
)  # of a long buffer that is timed: a prompt's are longer, and take in proportion
ROUNDS, IN_A_ROW = 3, 4  # timed rounds of a strategy; sums of a round
HOPELESS = 2.0  # how many times as long as the fastest in a first round
# Which strategies may be the fastest of those that give the same bits: with long buffers star and
# mesh send n / 2 times as much over one link as a scatter does.
SHORT = ("mpi", "star", "mesh", "recursive-doubling", "scatter")
LONG = ("mpi", "recursive-doubling", "scatter")


class Sums:
    """Merge float32 buffers over the ranks of an exchange, in place (collective).

    Before `settle` by MPI's own.
    """

    def __init__(self, exchange: Exchange):
        self._exchange, self._size = exchange, exchange.comm.size
        self.short = self.long = "mpi"
        self._limit = LONG_BYTES // 2  # bytes up to which a buffer is short
        self.alone: list[tuple[int, float]] = []  # bytes, seconds of a sum that waits for nobody

    def __call__(self, x: np.ndarray) -> None:
        """Sum a flat buffer over all ranks (collective)."""
        name = self.short if x.nbytes <= self._limit else self.long
        merge, most = STRATEGIES[name], most_at_once(name, self._size)
        for at in range(0, len(x), most):
            merge(self._exchange, x[at : at + most])

    def settle(self, strategy: str, row: int) -> None:
        """Use a strategy for all lengths, or with `auto` the fastest ones (collective).

        They are timed over the real links: with one row of `row` numbers, as in a step of one
        token, and with a long buffer, as in a prompt. Either way MPI then has the memory that sums
        need.
        """
        if self._size == 1:
            return
        row = min(row, LONG_BYTES // 8)
        found = []
        for length, candidates in ((row, SHORT), (LONG_BYTES // 4, LONG)):
            names = candidates if strategy == AUTO else (strategy,)
            found.append(self._fastest(names, length))
        (self.short, short), (self.long, long) = found
        self._limit = 4 * int((row * (LONG_BYTES // 4)) ** 0.5)
        self.alone = [(4 * row, short), (LONG_BYTES, long)]
        self(np.zeros(SUM_BYTES // 4, np.float32))

    def seconds_alone(self, nbytes: int) -> float:
        """Return how long the sum of a buffer takes where no rank is late, as `settle` saw it.

        Between and beyond the two lengths that were timed it is taken as linear.
        """
        if not self.alone:
            return 0.0
        (short, begin), (long, end) = self.alone
        slope = max(end - begin, 0.0) / (long - short)
        return max(begin + slope * (nbytes - short), 0.0)

    def _fastest(self, names: Sequence[str], length: int) -> tuple[str, float]:
        """Return the fastest of some strategies, and its seconds (collective).

        On the slowest rank, the median of rounds. All ranks see the same times.
        """
        for name in names:
            self._seconds(name, length, 1)  # connects ranks, takes memory
        times = {name: [self._seconds(name, length, IN_A_ROW)] for name in names}
        best = min(first for (first,) in times.values())
        times = {name: times[name] for name in names if times[name][0] <= HOPELESS * best}
        for _ in range(ROUNDS - 1):
            for name, taken in times.items():
                taken.append(self._seconds(name, length, IN_A_ROW))
        return min(((n, statistics.median(t)) for n, t in times.items()), key=lambda one: one[1])

    def _seconds(self, strategy: str, length: int, count: int) -> float:
        """Return the seconds of one of `count` sums in a row on the slowest rank (collective)."""
        x, merge = np.zeros(length, np.float32), STRATEGIES[strategy]
        most = most_at_once(strategy, self._size)
        self._exchange.meet()
        self._exchange.comm.Barrier()
        start = time.perf_counter()
        for _ in range(count):
            for at in range(0, length, most):
                merge(self._exchange, x[at : at + most])
        mine = (time.perf_counter() - start) / count
        return self._exchange.comm.allreduce(mine, MPI.MAX)
