"""What the user asks of shards: where they lie, how the model is cut, what is cut anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpimpi.model.ratio import Ratio


@dataclass(frozen=True)
class ShardRequest:
    """Where shards lie, how the model is cut over the ranks, and whether what is there counts.

    A rank that has the checkpoint in `local` on its own disk, too ("": where rank 0 has it), cuts
    its shard from there.
    """

    folder: str | Path | None = None  # None: one in the cache
    ratio: Ratio = None
    again: bool = False  # cut them all, whatever is there
    local: str | Path | None = None


DEFAULT = ShardRequest()
