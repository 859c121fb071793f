"""Bring a model to life on all ranks: plan its memory, start its tape, compile its kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from tpimpi import status
from tpimpi.comm.group import Group
from tpimpi.comm.sums import AUTO
from tpimpi.engine import figures
from tpimpi.engine.engine import Engine
from tpimpi.engine.forward import Model
from tpimpi.engine.kvcache import PAGE_TOKENS, KVCache, kept_window
from tpimpi.engine.needs import needs_of
from tpimpi.engine.pages import Pages
from tpimpi.engine.runner import Runner
from tpimpi.engine.warmup import warm_up
from tpimpi.memory.account import MemoryPlan, Needs, Work, pages_held
from tpimpi.memory.plan import RankRequest, plan_ranks
from tpimpi.memory.process import free_memory
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.tensors import pieces
from tpimpi.shards.shard import Shard
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource
from tpimpi.tape.tape import Tape


class Session:
    """A running model (collective to make). Rank 0 leads, the other ranks serve."""

    def __init__(
        self, group: Group, model: Model, tape: Tape, shard: Shard, plan: MemoryPlan, threads: int
    ):
        cache, window = model.cache, kept_window(model.config.windows)
        pages = Pages(cache.pages, cache.slots, cache.context, window)
        self.runner, self.plan = Runner(group, model, pages, shard.identity), plan
        self.model, self.tape = model, tape
        self._group, self._shard, self._threads = group, shard, threads
        self._watch = figures.Stopwatch(group, tape, plan, threads)
        self.runner.on_figures = self.figures
        self._resting_since: float | None = None
        self.is_led = False  # whether the others serve what rank 0 wants

    def __enter__(self) -> Session:
        return self

    @cached_property
    def engine(self) -> Engine:
        """What makes texts on rank 0, while it leads."""
        cache, config = self.model.cache, self.model.config
        most = pages_held(cache.context, kept_window(config.windows), self.plan.chunk, PAGE_TOKENS)
        # Keys that RoPE has turned by the length of one text are not those of a longer one.
        shares_pages = config.rope.kind != "dynamic"
        return Engine(self.runner, cache.slots, most, shares_pages, self._threads)

    def rest(self) -> None:
        """Count rank 0 as idle from now on: nobody has asked for a text."""
        self._resting_since = time.perf_counter()

    def wake(self) -> None:
        """End the time that is counted as idle, if it was."""
        if self._resting_since is not None:
            self._group.idle_seconds += time.perf_counter() - self._resting_since
            self._resting_since = None

    @contextmanager
    def leading(self, doing: str = "computing") -> Iterator[Runner | None]:
        """Let rank 0 run a block with the runner while the others serve (collective).

        They get None, once rank 0 has left its block. Its error is raised on all ranks, or what
        has failed on another and was the cause.
        """
        status.current.begin(doing)
        if self._group.rank != 0:
            if self.runner.serve():
                self._agree(None)
            yield None
            return
        error: BaseException | None = None
        self.is_led = True
        try:
            yield self.runner
        except BaseException as e:
            error = e
        finally:
            self.is_led = False
        failed = error is not None and not isinstance(error, GeneratorExit)
        reachable = self.runner.reachable
        self.runner.stop(failed)
        if failed and reachable:
            self._agree(error)
        if error is not None:
            raise error

    def _agree(self, error: BaseException | None) -> None:
        self._group.agree(self.model.failure)
        self._group.agree(error)

    def figures(self) -> list[figures.RankFigures] | None:
        """Return all ranks' figures since the start on rank 0 (collective)."""
        return figures.gather(self._group, self._watch.figures())

    def finish(self) -> list[figures.RankFigures] | None:
        """Serve, or let the others stop serving; return all ranks' figures on rank 0."""
        if self._group.rank == 0:
            self.runner.stop()
        else:
            self.runner.serve()
        return self.figures()

    def close(self) -> None:
        """Give the memory of this rank back."""
        self.tape.close()
        self._shard.close()

    def __exit__(self, *_) -> None:
        self.close()


def load_session(
    group: Group, source: Source | SyntheticSource, shard: Shard, request: MemoryRequest,
    work: Work, threads: int, tokenizer: int = 0, allreduce: str = AUTO,
) -> Session:  # fmt: skip
    """Return a Session for `work` within the memory that `request` allows (collective).

    `allreduce` names how sums are merged, see `comm.sums`. `tokenizer` are the bytes that one has
    taken on this rank. Raises UserError on all ranks where the budget is too small for it.
    """
    config, mine = source.config, source.partition.ranks[group.rank]
    names = [piece.name for piece in pieces(config, mine) if piece.streamed]
    stored = {name: shard[name] for name in names}
    warm_up(group, {tensor.encoding for tensor in shard.tensors}, threads)
    crowded = any(group.comm.allgather(group.crowded(threads)))
    group.patient = crowded
    group.settle_sums(allreduce, config.hidden_size)
    plan = plan_memory(
        group, needs_of(config, mine, stored, work, threads, tokenizer), request, work
    )
    # Spinning would take from readers what the disk's driver and they need of the cores.
    group.patient = crowded or any(group.comm.allgather(plan.streamed > 0))
    tape = None
    try:
        with group.together():
            tape = Tape(shard, names, plan.resident_panels, plan.ring)
            cache = KVCache(
                config.num_layers, len(mine.kv_heads), config.head_dim, plan.pages, work.slots,
                plan.context,
            )  # fmt: skip
            logits = min(work.logits, plan.chunk)
            model = Model(
                group, config, source.partition, shard, tape, cache, plan.chunk, logits, threads
            )
        return Session(group, model, tape, shard, plan, threads)
    except BaseException:
        if tape is not None:
            tape.close()
        shard.close()
        raise


def plan_memory(group: Group, needs: Needs, request: MemoryRequest, work: Work) -> MemoryPlan:
    """Plan this rank's memory together with that of all others (collective)."""
    budget: str | int = 0
    with group.together():
        budget = request.budgets.of(group.rank, group.size, group.host)
    mine = RankRequest(group.rank, group.host, budget, needs, free_memory())
    ranks = group.comm.allgather(mine)
    with group.together():
        return plan_ranks(ranks, request, work)[group.rank]
