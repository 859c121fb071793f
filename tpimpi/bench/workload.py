"""How much a step must do at least: FLOPs, bytes and sums, and so which limit binds it.

Pure arithmetic on the partition. T tokens of a pass, D hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import pieces


@dataclass(frozen=True)
class Pass:
    """One trip over the tape: `tokens` from position `start`, logits for the last `wanted`."""

    tokens: int
    start: int
    wanted: int


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
    layers, head_dim, itemsize = (
        config.num_layers, config.head_dim, ENCODINGS[encoding].storage.itemsize,
    )  # fmt: skip
    tokens, wanted = sum(p.tokens for p in passes), sum(p.wanted for p in passes)
    asked = sum(p.wanted > 0 for p in passes)
    seen = sum(p.tokens * p.start + p.tokens * (p.tokens + 1) // 2 for p in passes)
    ends = sum(p.start + p.tokens for p in passes)
    seen_last = sum(
        p.wanted * (p.start + p.tokens) - p.wanted * (p.wanted - 1) // 2 for p in passes
    )
    for mine in partition.ranks:
        body = last = 0
        for piece in pieces(config, mine):
            if piece.streamed:
                size = piece.shape[0] * piece.shape[1]
                of_wanted = _is_for_wanted(piece.name, layers)
                body, last = body + size * (not of_wanted), last + size * of_wanted
        pairs = (layers - 1) * seen + seen_last
        scores = 4 * len(mine.q_heads) * head_dim * pairs  # q k and p v, 2 FLOP each
        flops.append(2 * (body * tokens + last * wanted) + scores)
        weights = (body * len(passes) + last * asked) * itemsize
        keys_values = 2 * layers * len(mine.kv_heads) * head_dim * 4 * ends  # float32
        memory.append(weights + keys_values)
    streamed = np.asarray(streamed, float) * len(passes)
    return Amounts(np.array(flops, float), np.array(memory, float), streamed)


def _is_for_wanted(name: str, layers: int) -> bool:
    """Return whether a tensor only serves tokens whose logits are asked for.

    It is the head, and the last layer but for its keys and values.
    """
    in_last = name.startswith(f"layers/{layers - 1:02d}/")
    return name == "head" or (in_last and not name.endswith(("k_proj", "v_proj")))


def seconds_at_least(work: Amounts, rates: RankRates, sums: float) -> dict[str, float]:
    """Return the least seconds by each limit: disk, memory, flops, sums.

    The ranks of a node share its disk, memory and cores; the slowest node counts. `sums` are the
    seconds of all Allreduces.
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
        "sums": float(sums),
    }
