"""Who owns which heads, columns and rows: pure arithmetic, the same on every rank, without MPI.

One rule cuts everything (`cut`): it is safe for counts that don't divide and for unequal shares.
Letters: H query heads, K key/value heads, F MLP columns, V vocabulary rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from tpimpi.model.config import ModelConfig
from tpimpi.model.ratio import lowest_terms

COLUMN_UNIT = (
    32  # MLP columns go in runs of one cache line (of two-byte numbers) where there are many
)
LONGEST_KEY = 240  # characters: file systems take 255


def cut(count: int, shares: Sequence[int], unit: int = 1) -> list[range]:
    """Cut `count` things into consecutive runs proportional to `shares`, in multiples of `unit`.

    Each boundary is the rounded cumulative share, so that the runs differ by one unit at most when
    shares are equal, every thing is owned once, and a rank may own nothing. The last run ends at
    `count` even where `unit` doesn't divide it.
    """
    total = sum(shares)
    if total <= 0 or min(shares) < 0:
        raise ValueError(f"shares must be non-negative with a positive sum, not {list(shares)}")
    bounds = [bound(count, at, total, unit) for at in accumulate(shares, initial=0)]
    return [range(a, b) for a, b in pairwise(bounds)]


def bound(count: int, share: int, total: int, unit: int = 1) -> int:
    """Return how many of `count` things the first ranks own, with `share` of `total` together."""
    units = -(-count // unit)
    return min((2 * units * share + total) // (2 * total) * unit, count)


@dataclass(frozen=True)
class RankCut:
    """What one rank owns of every layer: its heads, MLP columns and vocabulary rows."""

    rank: int
    q_heads: range
    kv_heads: range
    kv_index: tuple[int, ...]  # [H_loc] local key/value head of each local query head
    columns: range
    rows: range

    @property
    def sizes(self) -> tuple:
        """What its memory and its time depend on: ranks with the same sizes are alike."""
        owned = self.q_heads, self.kv_heads, self.columns, self.rows
        return (self.rank == 0, *map(len, owned))


@dataclass(frozen=True)
class Units:
    """In what runs heads and MLP columns are cut over so many ranks; rows go one by one."""

    heads: int
    columns: int

    @classmethod
    def of(cls, config: ModelConfig, ranks: int) -> Units:
        """Return the units: whole groups of query heads where there are enough of those."""
        group = config.num_heads // config.num_kv_heads
        many_columns = config.intermediate_size >= 8 * COLUMN_UNIT * ranks
        return cls(group if ranks <= config.num_kv_heads else 1, COLUMN_UNIT if many_columns else 1)


def kv_heads_of(config: ModelConfig, q_heads: range) -> range:
    """Return the key/value heads that some query heads need."""
    group = config.num_heads // config.num_kv_heads
    first = q_heads.start // group
    return range(first, (q_heads.stop - 1) // group + 1) if q_heads else range(first, first)


def _rank_cut(
    config: ModelConfig, rank: int, q_heads: range, columns: range, rows: range
) -> RankCut:
    kv_heads = kv_heads_of(config, q_heads)
    group = config.num_heads // config.num_kv_heads
    kv_index = tuple(head // group - kv_heads.start for head in q_heads)
    return RankCut(rank, q_heads, kv_heads, kv_index, columns, rows)


@dataclass(frozen=True)
class Partition:
    """The cut of one model over all ranks."""

    shares: tuple[int, ...]
    ranks: tuple[RankCut, ...]

    @classmethod
    def of(cls, config: ModelConfig, shares: Sequence[int]) -> Partition:
        """Cut `config` over `len(shares)` ranks in proportion to `shares`.

        Query heads stay with their key/value head while there are enough of those. With more ranks
        than key/value heads the query heads themselves are cut, and a key/value head is then
        computed on each rank that owns one of its query heads.
        """
        units = Units.of(config, len(shares))
        heads = cut(config.num_heads, shares, units.heads)
        columns = cut(config.intermediate_size, shares, units.columns)
        rows = cut(config.vocab_size, shares)
        owned = zip(heads, columns, rows, strict=True)
        ranks = tuple(_rank_cut(config, rank, *its) for rank, its in enumerate(owned))
        return cls(lowest_terms(shares), ranks)

    @classmethod
    def from_json(cls, config: ModelConfig, text: str) -> Partition:
        """Return the partition that `to_json` wrote. Raises ValueError where it is none of these.

        Its `shares` are those of the MLP columns, which may not be the ones it was cut by.
        """
        ranks = tuple(
            _rank_cut(config, rank, *(range(*one[what]) for what in ("q_heads", "columns", "rows")))
            for rank, one in enumerate(json.loads(text))
        )
        for count, runs in (
            (config.num_heads, [mine.q_heads for mine in ranks]),
            (config.intermediate_size, [mine.columns for mine in ranks]),
            (config.vocab_size, [mine.rows for mine in ranks]),
        ):
            if [i for run in runs for i in run] != list(range(count)):
                raise ValueError("the text is not that of a partition of this model")
        return cls(lowest_terms(len(mine.columns) for mine in ranks), ranks)

    def to_json(self) -> str:
        """Return every rank's shares as JSON: equal partitions give equal text."""
        return json.dumps(
            [
                {
                    "q_heads": [r.q_heads.start, r.q_heads.stop],
                    "kv_heads": [r.kv_heads.start, r.kv_heads.stop],
                    "columns": [r.columns.start, r.columns.stop],
                    "rows": [r.rows.start, r.rows.stop],
                }
                for r in self.ranks
            ]
        )

    @property
    def key(self) -> str:
        """Return the name of the folder in which shards of this partition lie."""
        return partition_key(self.shares)


def partition_key(shares: Sequence[int]) -> str:
    """Return the name of the folder of shares in lowest terms: `4-ranks`, `4-ranks-3,2,2,1`."""
    equal = f"{len(shares)}-ranks"
    if len(set(shares)) == 1:
        return equal
    key = f"{equal}-{','.join(map(str, shares))}"
    if len(key) <= LONGEST_KEY:
        return key
    return f"{equal}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def shares_of_key(key: str, ranks: int) -> tuple[int, ...] | None:
    """Return the shares of so many ranks that a folder's name tells; None where it tells none."""
    equal = f"{ranks}-ranks"
    parts = key.removeprefix(f"{equal}-").split(",")
    shares = (1,) * ranks if key == equal else tuple(int(p) for p in parts if p.isdecimal())
    if len(shares) != ranks or not any(shares) or lowest_terms(shares) != shares:
        return None
    return shares if partition_key(shares) == key else None
