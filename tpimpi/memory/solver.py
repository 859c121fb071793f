"""Which shares make the slowest rank fast: a search over true cuts, not over real numbers.

Heads are coarse: 4 of them over 3 ranks are 2, 1, 1 or 1, 2, 1, whatever real shares would be best.
Cuts lie at the multiples of one part in so many. For some time of the attention halves and some of
the rest, each rank takes as many parts as it can in that time; where all are taken in the end, the
times do. A rank's work only grows with what it takes, so this finds them wherever they can be kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain

from tpimpi.memory.shares import Device, Load, predict
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition, Units, bound, kv_heads_of
from tpimpi.model.ratio import lowest_terms

FINE = 5040  # parts of the finest cut that is looked at
PARTS = 64  # of simple shares at most, or some for each rank
TIMES = 16  # of attention that are tried for simple shares
TOLERANCES = (0.03, 0.06)  # by which simple shares may take longer than the best
REUSE = 0.15  # ... and a cut of which there are shards: two measurements never agree
PRECISION = 1e-3  # of times


def best_shares(config: ModelConfig, load: Load, devices: Sequence[Device]) -> tuple[int, ...]:
    """Return simple shares with which a token takes hardly longer than with any others.

    Equal ones where they will do, and where no cut fits into the devices' memory.
    """
    equal = (1,) * len(devices)
    if len(set(devices)) == 1:
        return equal
    search = _Search(config, load, devices)
    fine = search.least(FINE)
    if fine is None:
        return equal

    def seconds(shares: Sequence[int]) -> float:
        found = predict(config, load, devices, shares)
        return found.seconds if found.fits else float("inf")

    for tolerance in TOLERANCES:
        limit = seconds(fine) * (1 + tolerance)
        for shares in chain([equal], search.simple(limit)):
            if seconds(shares) <= limit:
                return shares
    return fine


def choose(
    config: ModelConfig, load: Load, devices: Sequence[Device], known: Sequence[Partition]
) -> Partition:
    """Return the cut to take: of those that are known the fastest, unless another clearly is."""
    best = Partition.of(config, best_shares(config, load, devices))
    least = predict(config, load, devices, best).seconds
    found = [predict(config, load, devices, cut) for cut in known]
    good = [at for at, p in enumerate(found) if p.fits and p.seconds <= least * (1 + REUSE)]
    return known[min(good, key=lambda at: found[at].seconds)] if good else best


def gain(config: ModelConfig, load: Load, devices: Sequence[Device], cut: Partition) -> float:
    """Return by what part a token would be shorter with the best shares than with a cut."""
    best = predict(config, load, devices, best_shares(config, load, devices)).seconds
    return max(1 - best / predict(config, load, devices, cut).seconds, 0.0)


class _Search:
    """Cuts of one model over some devices."""

    def __init__(self, config: ModelConfig, load: Load, devices: Sequence[Device]):
        self._config, self._load, self._devices = config, load, devices
        self._units = Units.of(config, len(devices))
        rates = sum(device.memory for device in devices)
        rest = config.intermediate_size * load.column + config.vocab_size * load.row
        weights = rest + self._weights(range(config.num_heads))
        self._rest_least = rest / rates
        # In this time any device could read the whole model from its disk.
        self._longest = max(weights / min(device.memory, device.disk) for device in devices)
        self._attention_times = self._possible(rates)

    def _possible(self, rates: float) -> list[float]:
        """Return the seconds that the slowest rank's attention may take, the shortest first."""
        found, group = set(), self._config.num_heads // self._config.num_kv_heads
        for count in range(self._units.heads, self._config.num_heads + 1, self._units.heads):
            for start in {0, group - 1 if self._units.heads == 1 else 0}:  # more or fewer kv heads
                nbytes = self._attention(range(start, start + count))
                found |= {nbytes / device.memory for device in self._devices}
        least, times = self._attention(range(self._config.num_heads)) / rates, []
        for seconds in sorted(found):
            if seconds * (1 + PRECISION) < least:
                continue
            if times and seconds < times[-1] * (1 + PRECISION):
                times[-1] = seconds
            else:
                times.append(seconds)
        return [seconds * (1 + 1e-9) for seconds in times]

    def _weights(self, q_heads: range) -> float:
        kv_heads = len(kv_heads_of(self._config, q_heads))
        return len(q_heads) * self._load.q_head + kv_heads * self._load.kv_head

    def _attention(self, q_heads: range) -> float:
        kv_heads = len(kv_heads_of(self._config, q_heads))
        return self._weights(q_heads) + kv_heads * self._load.cached

    def least(self, parts: int) -> tuple[int, ...] | None:
        """Return the shares of so many parts with which a token is the fastest; None: none fits."""
        grid = _Grid(self._config, self._load, self._units, parts)
        best, best_seconds = None, float("inf")
        for attention in self._attention_times:
            if attention + self._rest_least >= best_seconds:
                break
            low, high = 0.0, min(2 * self._longest, best_seconds * (1 - PRECISION) - attention)
            found = self._taken(grid, attention, high)
            if found is None:
                continue
            while high - low > PRECISION * high:
                middle = (low + high) / 2
                trial = self._taken(grid, attention, middle)
                if trial is None:
                    low = middle
                else:
                    high, found = middle, trial
            best, best_seconds = found, attention + high
        return best

    def simple(self, limit: float) -> Iterator[tuple[int, ...]]:
        """Yield shares that are small numbers with which a token takes at most `limit` seconds."""
        ranks = len(self._devices)
        times = [a for a in self._attention_times if a + self._rest_least <= limit]
        times = times[:: -(-len(times) // TIMES)] if times else []
        for parts in range(1, max(PARTS, 16 * ranks) + 1, max(1, ranks // 8)):
            grid = _Grid(self._config, self._load, self._units, parts)
            if any(self._taken(grid, attention, limit - attention) for attention in times):
                yield self.least(parts)

    def _taken(self, grid: _Grid, attention: float, rest: float) -> tuple[int, ...] | None:
        """Return each rank's parts if all can be taken in these seconds of the two; else None."""
        at, shares = 0, []
        for device in self._devices:
            end = self._reach(grid, device, at, attention, rest)
            shares.append(end - at)
            at = end
        return lowest_terms(shares) if at == grid.parts else None

    def _reach(self, grid: _Grid, device: Device, start: int, attention: float, rest: float) -> int:
        """Return the part up to which a device computes those from `start` in these seconds."""
        most, first, heads = attention * device.memory, grid.heads[start], self._config.num_heads
        last = bisect_right(
            range(first, heads + 1), most, key=lambda head: self._attention(range(first, head))
        )
        end = bisect_right(grid.heads, first + last - 1) - 1
        end = min(end, bisect_right(grid.rest, grid.rest[start] + rest * device.memory) - 1)

        def too_much(stop: int) -> bool:
            share = (grid.columns[stop] - grid.columns[start]) / self._config.intermediate_size
            weights = self._weights(range(first, grid.heads[stop]))
            weights += grid.rest[stop] - grid.rest[start]
            seconds = device.streamed(weights, share) / device.disk
            return not device.holds(share) or seconds > attention + rest

        if too_much(end):
            end = start + bisect_left(range(start, end), True, key=too_much) - 1
        return max(end, start)


class _Grid:
    """What the first ranks own with 0, 1, ... of so many parts together."""

    def __init__(self, config: ModelConfig, load: Load, units: Units, parts: int):
        self.parts = parts

        def owned(count: int, unit: int) -> list[int]:
            return [bound(count, part, parts, unit) for part in range(parts + 1)]

        self.heads = owned(config.num_heads, units.heads)
        self.columns = owned(config.intermediate_size, units.columns)
        rows = owned(config.vocab_size, 1)
        pairs = zip(self.columns, rows, strict=True)
        self.rest = [c * load.column + r * load.row for c, r in pairs]  # bytes of MLP and head
