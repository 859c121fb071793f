"""Bring a model to life on all ranks: plan its memory, start its tape, compile its kernels."""

from __future__ import annotations

import numpy as np

from tpimpi import report
from tpimpi.comm import Group
from tpimpi.engine import Engine
from tpimpi.kvcache import KVCache
from tpimpi.model import Model
from tpimpi.partition import pieces
from tpimpi.plan import plan_memory
from tpimpi.shard import Shard
from tpimpi.tape import Tape


class Session:
    """A running model (collective to make, to finish and to leave).

    In `with session:` ranks other than 0 serve until rank 0 calls `finish`.
    """

    def __init__(self, group: Group, model: Model, tape: Tape, shard: Shard, threads: int):
        self.engine = Engine(group, model)
        self._group, self._tape, self._shard = group, tape, shard
        self._watch = report.Stopwatch(group, tape, threads)

    def __enter__(self) -> Session:
        return self

    def finish(self) -> list[report.RankFigures] | None:
        """Serve, or let the others stop serving; return all ranks' figures on rank 0."""
        if self._group.rank == 0:
            self.engine.stop()
        else:
            self.engine.serve()
        return report.gather(self._group, self._watch.figures())

    def __exit__(self, *_) -> None:
        self._tape.close()
        self._shard.close()


def load(
    group: Group, source, shard: Shard, args, threads: int, context: int, max_logits: int,
    slots: int = 1,
) -> Session:  # fmt: skip
    """Return a Session for `slots` sequences of up to `context` tokens each (collective)."""
    config, mine = source.config, source.partition.ranks[group.rank]
    mine_pieces = pieces(config, mine)
    plan = plan_memory(group, shard, mine_pieces, args.memory_window, args.disable_memory_schedule)
    _warm_up(group, {t.encoding for t in shard.tensors}, config.head_dim, threads)
    tape = model = None
    with group.together():
        names = [piece.name for piece in mine_pieces if piece.streamed]
        tape = Tape(shard, names, set(plan.resident), plan.ring_bytes)
        cache = KVCache(config.num_layers, len(mine.kv_heads), config.head_dim, slots, context)
        chunk = min(args.prompt_chunk, context)
        model = Model(
            group, config, source.partition, shard, tape, cache, chunk, max_logits, threads
        )
    return Session(group, model, tape, shard, threads)


def _warm_up(group: Group, encodings: set[str], head_dim: int, threads: int) -> None:
    """Compile the kernels on one rank of each node; the others then find them in numba's cache."""
    for turn in (True, False):
        if (group.node.rank == 0) == turn:
            call_kernels(encodings, head_dim, threads)
        group.node.Barrier()


def call_kernels(encodings: set[str], head_dim: int, threads: int) -> None:
    """Call every kernel on a small problem, so that it is compiled or loaded."""
    import numba

    from tpimpi.encoding import ENCODINGS
    from tpimpi.kernels.activation import silu_gate
    from tpimpi.kernels.attention import PAGE, append_kv, attention
    from tpimpi.kernels.matmul import matmul
    from tpimpi.kernels.norm import rmsnorm
    from tpimpi.kernels.rope import rope

    if threads > 1:
        numba.set_num_threads(threads)
    tokens = 8  # enough for the kernels that use threads from some size on
    x, out = np.ones((tokens, head_dim), np.float32), np.empty((tokens, head_dim), np.float32)
    for encoding in encodings:
        weights = np.zeros((head_dim, head_dim), ENCODINGS[encoding].storage)
        matmul(x, weights, out, threads, encoding)
    rmsnorm(x, x[0].copy(), 1e-5, out)
    silu_gate(x, x, out, threads)
    heads = np.ones((tokens, 1, head_dim), np.float32)
    half = np.ones((tokens, head_dim // 2), np.float32)
    rope(heads, half, half)
    keys = np.zeros((1, 1, head_dim, PAGE), np.float32)
    values = np.zeros((1, 1, PAGE, -(-head_dim // 16) * 16), np.float32)
    table, slots = np.zeros((1, 1), np.int32), np.zeros(tokens, np.int32)
    positions, index = np.arange(tokens, dtype=np.int32), np.zeros(1, np.int32)
    append_kv(heads, heads, keys, values, table, positions, slots)
    attention(heads, keys, values, table, positions, slots, np.empty_like(heads), index,
              np.float32(1), threads)  # fmt: skip
