"""How much a step must do at least: FLOPs, bytes, allreduces, and so which limit binds it.

Pure arithmetic on the partition. T tokens of a pass, D hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import pieces
from tpimpi.shards.layout import stored


@dataclass(frozen=True)
class Pass:
    """One trip over the tape: `tokens` from position `start`, logits for the last `selected`."""

    tokens: int
    start: int
    selected: int


@dataclass(frozen=True)
class Amounts:
    """What each rank has to do in some passes: arrays over ranks."""

    flops: np.ndarray
    memory_bytes: np.ndarray  # weights and keys and values, each once a pass
    streamed_bytes: np.ndarray  # weights that come from the disk, each once a pass


@dataclass(frozen=True)
class RankRates:
    """What each rank can do while all others do it too: arrays over ranks."""

    memory: np.ndarray  # bytes/s
    flops: np.ndarray  # FLOP/s
    disk: np.ndarray  # bytes/s
    nodes: Sequence[int]  # some number of the node of each rank


def prompt_passes(tokens: int, chunk: int) -> list[Pass]:
    """Return the passes of a prompt in chunks; the last asks for the logits of its last token."""
    starts = range(0, tokens, chunk)
    return [Pass(min(chunk, tokens - s), s, int(s + chunk >= tokens)) for s in starts]


def work_of(
    passes: Sequence[Pass],
    config: ModelConfig,
    partition: Partition,
    encoding: str,
    streamed: Sequence[int],
) -> Amounts:
    """Add up the work of passes; `streamed` are the bytes that each rank reads in one pass."""
    flops, memory = [], []
    head_dim = config.head_dim
    tokens, selected = sum(p.tokens for p in passes), sum(p.selected for p in passes)
    lasts = sum(p.selected > 0 for p in passes)
    inner = sum(_seen(p, p.tokens, window) for p in passes for window in config.windows[:-1])
    pairs = inner + sum(_seen(p, p.selected, config.windows[-1]) for p in passes)
    cached = sum(_positions(p, window) for p in passes for window in config.windows)
    for mine in partition.ranks:
        body = last = weights = 0
        for piece in pieces(config, mine):
            if piece.streamed:
                for_all = piece.tensor.for_all
                body, last = body + piece.size * for_all, last + piece.size * (not for_all)
                weights += stored(piece, encoding).nbytes * (len(passes) if for_all else lasts)
        scores = 4 * len(mine.q_heads) * head_dim * pairs  # q k and p v, 2 FLOP each
        flops.append(2 * (body * tokens + last * selected) + scores)
        keys_values = 2 * len(mine.kv_heads) * head_dim * 4 * cached  # float32
        memory.append(weights + keys_values)
    streamed = np.asarray(streamed, float) * len(passes)
    return Amounts(np.array(flops, float), np.array(memory, float), streamed)


def _seen(p: Pass, tokens: int, window: int | None) -> int:
    """Return how many positions the last `tokens` of a pass see, added up over them."""
    ends = np.arange(p.start + p.tokens - tokens, p.start + p.tokens) + 1
    return int(np.minimum(ends, window or ends).sum())


def _positions(p: Pass, window: int | None) -> int:
    """Return how many positions' keys and values a pass reads in a layer."""
    end = p.start + p.tokens
    return end if window is None else min(end, window - 1 + p.tokens)


def seconds_at_least(work: Amounts, rates: RankRates, allreduces: float) -> dict[str, float]:
    """Return the least seconds by each limit: disk, memory, flops, allreduce.

    The ranks of a node share its disk, memory and cores; the slowest node counts.
    `allreduces` are the seconds of all of them.
    """

    def slowest(amounts: np.ndarray, per_second: np.ndarray) -> float:
        worst = 0.0
        for node in set(rates.nodes):
            here = np.array([n == node for n in rates.nodes])
            if amounts[here].sum() > 0:
                worst = max(worst, amounts[here].sum() / max(per_second[here].sum(), 1e-9))
        return float(worst)

    return {
        "disk": slowest(work.streamed_bytes, rates.disk),
        "memory": slowest(work.memory_bytes, rates.memory),
        "flops": slowest(work.flops, rates.flops),
        "allreduce": float(allreduces),
    }
