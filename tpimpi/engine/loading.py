"""`tpimpi.load`: from a model directory to a running model, under mpirun or alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tpimpi import launch
from tpimpi.comm import ALLREDUCES
from tpimpi.engine.settings import LOGITS_BYTES, whole_number
from tpimpi.errors import UserError
from tpimpi.memory.request import Budgets, MemoryRequest
from tpimpi.model.ratio import Ratio, parse_ratio
from tpimpi.shards.request import ShardRequest

CONTEXT = 4096  # tokens that memory is planned for, where nothing is said
ENOUGH = 512  # ... where a budget allows no more
MAX_BATCH = 8  # texts at once
SHARED = 4  # of their contexts there is memory for so many, if there is


def load(
    model: str | Path, comm=None, memory_budget: str | int = "auto",
    memory_window: int | None = None, keep_all: bool = False, context: int | None = None,
    prompt_chunk: int | None = None, threads: int | None = None,
    save_dir: str | Path | None = None, split_again: bool = False, allreduce: str = "auto",
    ratio: str | Sequence[float] | None = None, local_checkpoint: str | Path | None = None,
    max_batch: int = MAX_BATCH, kv_tokens: int | None = None,
):  # fmt: skip
    """Return a running model on all ranks of `comm`, an LLM (collective).

    `model` is a directory or, as a str, may name a model on the Hugging Face hub (`org/name`,
    `org/name@revision`), which is downloaded on rank 0 where it is not in the hub's cache yet.
    `comm` is a communicator of mpi4py, of which a duplicate is used; None: COMM_WORLD, which is
    then initialized if it was not. `memory_budget` is what each rank's process may take, as
    --memory-budget says it; in its place `memory_window` blocks or `keep_all` weights are in
    memory. `context` is how many tokens prompt and text may have together (None: 4096, or the
    model's if that is shorter, or what the budget allows). `threads` are those of each rank (None:
    cores / ranks on the node). Shards lie in `save_dir` (None: the cache); `split_again` cuts them
    anew. A rank that has the same checkpoint in `local_checkpoint` on its own disk, too ("": where
    rank 0 has it), cuts its shard from there. `allreduce` is how partial sums are merged, as
    --allreduce says it; `ratio` each rank's share of the work, as --ratio says it or as numbers
    (None: equal ones). Up to `max_batch` texts are made at once, with keys and values of
    `kv_tokens` tokens in all (None: of some contexts, or less where weights would have to stream
    for them). Raises UserError and MachineError, on all ranks alike where the error is
    foreseen.
    """
    refused = None
    try:
        if threads is not None:
            threads = whole_number("threads", threads, 1)
        threads = launch.prepare(threads)
    except UserError as error:
        refused = error
    if comm is None:
        comm = launch.world()
    from tpimpi.comm.greeting import greet
    from tpimpi.comm.group import Group
    from tpimpi.comm.versions import agree_on_code
    from tpimpi.engine.opened import OpenModel

    greet(comm)
    group = Group(comm)
    try:
        group.agree(refused)
        request = shards = None
        with group.together():
            if allreduce not in ALLREDUCES:
                raise UserError(f"allreduce is {allreduce!r}, none of {', '.join(ALLREDUCES)}")
            request = _request(memory_budget, memory_window, keep_all, prompt_chunk)
            shards = ShardRequest(save_dir, _ratio(ratio), split_again, local_checkpoint)
        agree_on_code(group)
        opened = OpenModel(group, model, shards)
        most = opened.config.max_positions
        with group.together():
            if context is not None and whole_number("context", context, 2) > most:
                raise UserError(f"context is {context}, but must be from 2 to the model's {most}")
            batch = whole_number("max_batch", max_batch, 1)
            if kv_tokens is not None:
                whole_number("kv_tokens", kv_tokens, context or 2)
        work = work_of(opened.config, context, batch, kv_tokens)
        llm = opened.load(request, work, threads, allreduce)
        llm.on_close = group.close
        return llm
    except BaseException as error:
        if getattr(error, "agreed", False):
            group.close()
        raise


def work_of(config, context: int | None, max_batch: int, kv_tokens: int | None):
    """Return the Work of texts that come later, up to `max_batch` at once.

    Their `context` and the `kv_tokens` that they share are as long as memory allows (None).
    """
    from tpimpi.memory.account import Work

    wanted = context or min(CONTEXT, config.max_positions, kv_tokens or CONTEXT)
    enough = wanted if context else min(ENOUGH, wanted)
    rows = max(max_batch, LOGITS_BYTES // (4 * config.vocab_size))  # for `score`
    pool = kv_tokens or wanted * min(max_batch, SHARED)
    return Work(
        wanted - 1, wanted, max_batch, pool, kv_tokens is not None, logits=rows, enough=enough
    )


def _ratio(ratio: str | Sequence[float] | None) -> Ratio:
    """Return how the model is to be cut. Raises UserError."""
    if ratio is None:
        return None
    try:
        return parse_ratio(ratio if isinstance(ratio, str) else ",".join(map(str, ratio)))
    except (ValueError, TypeError) as error:
        raise UserError(f"ratio: {error}") from None


def _request(budget: str | int, window: int | None, keep_all: bool, chunk: int | None):
    """Return what is asked of memory. Raises UserError."""
    if sum([budget != "auto", window is not None, keep_all]) > 1:
        raise UserError("memory_budget, memory_window and keep_all exclude one another")
    if window is not None:
        window = whole_number("memory_window", window, 2)
    if chunk is not None:
        chunk = whole_number("prompt_chunk", chunk, 1)
    try:
        if not isinstance(budget, str):
            budget = str(whole_number("memory_budget", budget, 0))
        budgets = Budgets.parse(budget)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"memory_budget: {error}") from None
    return MemoryRequest(budgets, window, keep_all, chunk)
