"""Bring a model to life on all ranks: plan its memory, start its tape, compile its kernels."""

from __future__ import annotations

from tpimpi import memory, report
from tpimpi.budget import MemoryRequest
from tpimpi.buffers import buffer_bytes
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.engine import Engine
from tpimpi.kernels import attention, matmul
from tpimpi.kvcache import PAGE_TOKENS, KVCache, page_bytes
from tpimpi.model import Model
from tpimpi.partition import RankCut, pieces
from tpimpi.plan import MemoryPlan, Needs, RankRequest, Work, plan_ranks
from tpimpi.shard import Shard, Stored
from tpimpi.tape import Tape
from tpimpi.warmup import warm_up

SAMPLING_BYTES = 64  # for each token of the vocabulary, on rank 0: eight float64 at most


class Session:
    """A running model (collective to make, to finish and to leave).

    In `with session:` ranks other than 0 serve until rank 0 calls `finish`.
    """

    def __init__(
        self, group: Group, model: Model, tape: Tape, shard: Shard, plan: MemoryPlan, threads: int
    ):
        self.engine, self.plan = Engine(group, model), plan
        self.model, self.tape = model, tape
        self._group, self._shard = group, shard
        self._watch = report.Stopwatch(group, tape, plan, threads)

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
        self.tape.close()
        self._shard.close()


def load(
    group: Group, source, shard: Shard, request: MemoryRequest, work: Work, threads: int
) -> Session:
    """Return a Session for `work` within the memory that `request` allows (collective).

    `source` has the model's config and partition. Raises UserError on all ranks where the budget is
    too small for it.
    """
    config, mine = source.config, source.partition.ranks[group.rank]
    names = [piece.name for piece in pieces(config, mine) if piece.streamed]
    stored = {name: shard[name] for name in names}
    warm_up(group.node, {tensor.encoding for tensor in shard.tensors}, threads)
    group.warm_up()
    plan = plan_memory(group, needs_of(config, mine, stored, work, threads), request, work)
    # Spinning would take from readers what the disk's driver and they need of the cores.
    group.patient = any(group.comm.allgather(plan.streamed > 0))
    tape = model = None
    with group.together():
        tape = Tape(shard, names, plan.resident_rows, plan.ring)
        cache = KVCache(
            config.num_layers, len(mine.kv_heads), config.head_dim, work.slots, plan.context
        )
        logits = min(work.logits, plan.chunk)
        model = Model(
            group, config, source.partition, shard, tape, cache, plan.chunk, logits, threads
        )
    return Session(group, model, tape, shard, plan, threads)


def needs_of(
    config: ModelConfig, mine: RankCut, tape: dict[str, Stored], work: Work, threads: int
) -> Needs:
    """Return what a rank like this process needs; `tape` are its tensors in the order of use."""
    blocks: dict[int, int] = {}
    for piece in pieces(config, mine):
        if piece.streamed:
            blocks[piece.block] = blocks.get(piece.block, 0) + tape[piece.name].nbytes
    norms = 4 * config.hidden_size * (2 * config.num_layers + 1)
    sampling = SAMPLING_BYTES * config.vocab_size if mine.rank == 0 else 0
    columns = max((tensor.shape[1] for tensor in tape.values()), default=0)
    heads, kv_heads = len(mine.q_heads), len(mine.kv_heads)
    shape = (heads, kv_heads, config.head_dim, work.context, threads)
    scratch = 4 * max(  # kernels share it
        matmul.scratch_floats(work.prompt, columns, threads),
        *(attention.scratch_floats(tokens, *shape) for tokens in (1, work.prompt)),
    )
    rows = max(work.logits, 1)
    one = buffer_bytes(config, mine, 1, 1)
    per_logits = buffer_bytes(config, mine, 1, 2) - one
    # As many rows of logits as tokens may be asked for, up to a limit: a chunk's share of them.
    per_token = buffer_bytes(config, mine, 2, 1) - one + (per_logits if rows > 1 else 0)
    return Needs(
        process=memory.resident_bytes(), peak=memory.peak_bytes(),
        fixed=norms + sampling + per_logits + scratch, per_token=per_token,
        kv_page=page_bytes(config.num_layers, kv_heads, config.head_dim),
        page_tokens=PAGE_TOKENS, tensors=tuple(tape.values()),
        blocks=tuple(blocks[b] for b in sorted(blocks)),
    )  # fmt: skip


def plan_memory(group: Group, needs: Needs, request: MemoryRequest, work: Work) -> MemoryPlan:
    """Plan this rank's memory together with that of all others (collective)."""
    budget: str | int = 0
    with group.together():
        budget = request.budgets.of(group.rank, group.size, group.host)
    mine = RankRequest(group.rank, group.host, budget, needs, memory.free_memory())
    ranks = group.comm.allgather(mine)
    with group.together():
        return plan_ranks(ranks, request, work)[group.rank]
