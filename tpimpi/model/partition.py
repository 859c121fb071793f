"""Who owns which heads, columns and rows: pure arithmetic, the same on every rank, without MPI.

One rule cuts everything (`cut`): it is safe for counts that don't divide and for unequal shares.
Letters: H query heads, K key/value heads, F MLP columns, V vocabulary rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tpimpi.model.config import ModelConfig

COLUMN_UNIT = (
    32  # MLP columns go in runs of one cache line (of two-byte numbers) where there are many
)


def cut(count: int, shares: Sequence[int], unit: int = 1) -> list[range]:
    """Cut `count` things into consecutive runs proportional to `shares`, in multiples of `unit`.

    Each boundary is the rounded cumulative share, so that the runs differ by one unit at most when
    shares are equal, every thing is owned once, and a rank may own nothing. The last run ends at
    `count` even where `unit` doesn't divide it.
    """
    total = sum(shares)
    if total <= 0 or min(shares) < 0:
        raise ValueError(f"shares must be non-negative with a positive sum, not {list(shares)}")
    units = -(-count // unit)
    bounds, cumulative = [0], 0
    for share in shares:
        cumulative += share
        bound = int(Fraction(units * cumulative, total) + Fraction(1, 2))
        bounds.append(min(bound * unit, count))
    return [range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class RankCut:
    """What one rank owns of every layer: its heads, MLP columns and vocabulary rows."""

    rank: int
    q_heads: range
    kv_heads: range
    kv_index: tuple[int, ...]  # [H_loc] local key/value head of each local query head
    columns: range
    rows: range


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
        group = config.num_heads // config.num_kv_heads
        whole_groups = len(shares) <= config.num_kv_heads
        heads = cut(config.num_heads, shares, group if whole_groups else 1)
        many_columns = config.intermediate_size >= 8 * COLUMN_UNIT * len(shares)
        columns = cut(config.intermediate_size, shares, COLUMN_UNIT if many_columns else 1)
        rows = cut(config.vocab_size, shares)
        ranks = []
        for rank, owned in enumerate(heads):
            first = owned.start // group
            kv_heads = range(first, (owned.stop - 1) // group + 1) if owned else range(first, first)
            kv_index = tuple(head // group - first for head in owned)
            ranks.append(RankCut(rank, owned, kv_heads, kv_index, columns[rank], rows[rank]))
        return cls(tuple(shares), tuple(ranks))

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
        if len(set(self.shares)) == 1:
            return f"{len(self.shares)}-ranks"
        return f"{len(self.shares)}-ranks-" + "-".join(map(str, self.shares))
