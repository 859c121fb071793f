"""Bring a model to life on all ranks: plan its memory, start its tape, compile its kernels."""

from __future__ import annotations

from tpimpi.comm.group import Group
from tpimpi.engine import figures
from tpimpi.engine.engine import Engine
from tpimpi.engine.forward import Model
from tpimpi.engine.kvcache import KVCache
from tpimpi.engine.needs import needs_of
from tpimpi.engine.warmup import warm_up
from tpimpi.memory.account import MemoryPlan, Needs, Work
from tpimpi.memory.plan import RankRequest, plan_ranks
from tpimpi.memory.process import free_memory
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.tensors import pieces
from tpimpi.shards.shard import Shard
from tpimpi.tape.tape import Tape


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
        self._watch = figures.Stopwatch(group, tape, plan, threads)

    def __enter__(self) -> Session:
        return self

    def finish(self) -> list[figures.RankFigures] | None:
        """Serve, or let the others stop serving; return all ranks' figures on rank 0."""
        if self._group.rank == 0:
            self.engine.stop()
        else:
            self.engine.serve()
        return figures.gather(self._group, self._watch.figures())

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
    warm_up(group, {tensor.encoding for tensor in shard.tensors}, threads)
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


def plan_memory(group: Group, needs: Needs, request: MemoryRequest, work: Work) -> MemoryPlan:
    """Plan this rank's memory together with that of all others (collective)."""
    budget: str | int = 0
    with group.together():
        budget = request.budgets.of(group.rank, group.size, group.host)
    mine = RankRequest(group.rank, group.host, budget, needs, free_memory())
    ranks = group.comm.allgather(mine)
    with group.together():
        return plan_ranks(ranks, request, work)[group.rank]
