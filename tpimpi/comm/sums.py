"""The allreduce of a group: which strategy merges a buffer of which length, chosen by the clock."""

from __future__ import annotations

import statistics
import time

import numpy as np
from mpi4py import MPI

from tpimpi.comm.allreduce import STRATEGIES, SUM_BYTES, Exchange, most_at_once

AUTO = "auto"
ROUNDS, IN_A_ROW = 3, 4  # timed rounds of a strategy; sums of a round
PATIENCE = 0.2  # seconds: a strategy whose first sum takes longer is not timed again
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
        self._limit = SUM_BYTES // 8  # bytes up to which a buffer is short
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
        token, and with the longest buffer, as in a prompt. Either way MPI then has the memory that
        sums need.
        """
        if self._size == 1:
            return
        row = min(row, SUM_BYTES // 8)
        times: list[tuple[str, float]] = []
        for length, candidates in ((row, SHORT), (SUM_BYTES // 4, LONG)):
            names = candidates if strategy == AUTO else (strategy,)
            times.append(min(((n, self._time(n, length)) for n in names), key=lambda one: one[1]))
        (self.short, short), (self.long, long) = times
        self._limit = 4 * int((row * (SUM_BYTES // 4)) ** 0.5)
        self.alone = [(4 * row, short), (SUM_BYTES, long)]

    def seconds_alone(self, nbytes: int) -> float:
        """Return how long the sum of a buffer takes where no rank is late, as `settle` saw it.

        Between and beyond the two lengths that were timed it is taken as linear.
        """
        if not self.alone:
            return 0.0
        (short, begin), (long, end) = self.alone
        slope = max(end - begin, 0.0) / (long - short)
        return max(begin + slope * (nbytes - short), 0.0)

    def _time(self, strategy: str, length: int) -> float:
        """Return the seconds of a sum on the slowest rank, the median of rounds (collective)."""
        x = np.zeros(length, np.float32)
        merge, most = STRATEGIES[strategy], most_at_once(strategy, self._size)

        def seconds(count: int) -> float:
            self._exchange.meet()
            self._exchange.comm.Barrier()
            start = time.perf_counter()
            for _ in range(count):
                for at in range(0, length, most):
                    merge(self._exchange, x[at : at + most])
            mine = (time.perf_counter() - start) / count
            return self._exchange.comm.allreduce(mine, MPI.MAX)

        first = seconds(1)
        if first > PATIENCE:
            return first
        return statistics.median(seconds(IN_A_ROW) for _ in range(ROUNDS))
