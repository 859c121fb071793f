"""The memory plan: what a rank holds, what stays in memory, what streams. Pure arithmetic, no MPI.

A budget is spent in this order: the process itself; keys and values of the context; the buffers of
a prompt chunk; a ring to stream through; and all that is left keeps weights resident, spread over
the tape so that the readers work while resident panels are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpimpi.errors import UserError
from tpimpi.memory.account import MARGIN_BYTES, MemoryPlan, Needs, Work
from tpimpi.memory.process import FreeMemory
from tpimpi.memory.request import MemoryRequest
from tpimpi.memory.sharing import Claim, shared_budgets
from tpimpi.shards.layout import StoredTensor
from tpimpi.tape.reads import READ_BYTES, ring_bytes_for
from tpimpi.units import MIB, size

DEFAULT_CHUNK = 512  # tokens of a prompt in a pass; longer ones gain nothing, as arithmetic binds
WINDOW_CHUNK = 256  # ... with --memory-window
RING_BYTES = 32 << 20  # what reading ahead can use: some milliseconds of sampling and of sums


def wanted_chunk(request: MemoryRequest, work: Work) -> int:
    """Return the longest prompt chunk that makes sense."""
    default = WINDOW_CHUNK if request.window is not None else DEFAULT_CHUNK
    limits = (request.chunk or default, work.prompt, work.longest_chunk or work.prompt)
    return max(work.slots, min(limits))  # each text goes on in every pass


@dataclass(frozen=True)
class RankRequest:
    """One rank's needs, what it was told to keep to, and what its node has."""

    rank: int
    host: str
    budget: str | int
    needs: Needs
    free: FreeMemory


def plan_ranks(
    ranks: Sequence[RankRequest], request: MemoryRequest, work: Work
) -> list[MemoryPlan]:
    """Plan all ranks, with one prompt chunk and one context for all of them.

    Raises UserError for the first rank whose budget is too small.
    """
    if request.window is not None or request.everything:
        return [plan_flags(r.needs, request, work) for r in ranks]
    chunk = wanted_chunk(request, work)
    least = chunk if request.chunk else work.slots
    budgets = shared_budgets(
        [
            Claim(
                r.budget,
                r.host,
                r.needs.resident,
                r.needs.everything(work, chunk),
                r.free,
            )
            for r in ranks
        ]
    )
    for r, budget in zip(ranks, budgets, strict=True):
        _refuse_small(r, budget, work, least)
    fits = [fit(r.needs, b, work, chunk, least) for r, b in zip(ranks, budgets, strict=True)]
    chunk, context = min(chunk for chunk, _ in fits), min(context for _, context in fits)
    pages = min(
        fit_pages(r.needs, b, work, chunk, context) for r, b in zip(ranks, budgets, strict=True)
    )
    return [
        plan_budget(r.needs, b, work, chunk, context, pages)
        for r, b in zip(ranks, budgets, strict=True)
    ]


def _refuse_small(r: RankRequest, budget: int, work: Work, chunk: int) -> None:
    """Raise UserError with the smallest budget that would do, if this one is too small."""
    needs, smallest = r.needs, r.needs.smallest(work, chunk)
    if budget >= smallest:
        return
    would_do = needs.advised(work, chunk) // MIB
    context = work.smallest_context
    pages = needs.least_pages(work, context, chunk) * needs.kv_page
    buffers = needs.activations(chunk) + MARGIN_BYTES
    why = (
        f"the process {size(needs.process)}, the tokenizer {size(needs.tokenizer)}, keys and "
        f"values {size(pages)}, buffers {size(buffers)}, weights passing through "
        f"{size(needs.smallest_ring())}"
    )
    if smallest == needs.peak:
        why = "as much as it took while its kernels were loaded"
    what = f"rank {r.rank} on {r.host} needs at least {would_do} MiB for {context} tokens ({why})"
    if isinstance(r.budget, int):
        raise UserError(
            f"--memory-budget {r.budget / MIB:.0f}MiB is too small: {what}; give "
            f"--memory-budget {would_do}MiB or more, or use more ranks"
        )
    raise UserError(
        f"{size(budget)} are a rank's share of the node's free memory (--memory-budget "
        f"{r.budget}), but {what}; end other programs, or use fewer ranks on this node"
    )


def fit(needs: Needs, budget: int, work: Work, chunk: int, least: int) -> tuple[int, int]:
    """Return the prompt chunk and the context that are best for one rank's budget, in tokens.

    The context is as long as asked for or as the budget allows. The chunk is the one, of `chunk`
    and its halves down to `least`, that reads the fewest bytes for the prompt and the rest of the
    context. The budget is at least `needs.smallest(work, least)`.
    """
    room = budget - needs.besides_weights(least, 0) - needs.smallest_ring()
    texts = work.slots if work.pool is None else 1
    pages = room // (needs.kv_page * texts) if needs.kv_page else work.context
    context = work.context
    if pages < needs.pages(context, least):
        context = min(context, pages * needs.page_tokens)
    best, best_bytes = least, None
    while chunk >= least:
        left = budget - needs.besides_weights(chunk, needs.least_pages(work, context, chunk))
        streamed = 0 if left >= needs.weights else needs.weights - left + _ring(needs, left)
        passes = -(-work.prompt // chunk) + max(context - work.prompt, 0)
        if left >= needs.smallest_ring() and (best_bytes is None or passes * streamed < best_bytes):
            best, best_bytes = chunk, passes * streamed
        chunk //= 2
    return best, context


def fit_pages(needs: Needs, budget: int, work: Work, chunk: int, context: int) -> int:
    """Return how many pages all texts share: as many as wanted beside weights that all stay.

    Weights that stream for one text more would be slower for all of them.
    """
    least = needs.least_pages(work, context, chunk)
    room = budget - needs.besides_weights(chunk, 0) - needs.weights
    wanted = needs.wanted_pages(work, context, chunk)
    return max(least, min(wanted, room // needs.kv_page if needs.kv_page else wanted))


def plan_budget(
    needs: Needs, budget: int, work: Work, chunk: int, context: int, pages: int
) -> MemoryPlan:
    """Spend a budget that `fit` has found enough for this chunk and context."""
    left = budget - needs.besides_weights(chunk, pages)
    if left >= needs.weights:
        panels, ring = {tensor.name: tensor.panels for tensor in needs.tensors}, 0
    else:
        ring = _ring(needs, left)
        panels = spread(needs.tensors, left - ring)
    return _plan(needs, budget, chunk, context, pages, panels, ring)


def plan_flags(needs: Needs, request: MemoryRequest, work: Work) -> MemoryPlan:
    """Follow --memory-window or --disable-memory-schedule, whatever that takes."""
    chunk = wanted_chunk(request, work)
    if request.window is None:
        panels, ring = {tensor.name: tensor.panels for tensor in needs.tensors}, 0
    else:
        panels = {}
        ring = ring_bytes_for(needs.blocks, min(request.window, len(needs.blocks)))
    pages = needs.wanted_pages(work, work.context, chunk)
    return _plan(needs, None, chunk, work.context, pages, panels, ring)


def _plan(needs, budget, chunk, context, pages, panels, ring) -> MemoryPlan:
    resident = sum(panels.get(tensor.name, 0) * tensor.panel_bytes for tensor in needs.tensors)
    return MemoryPlan(
        budget=budget, peak=needs.peak, process=needs.process, tokenizer=needs.tokenizer,
        kv=pages * needs.kv_page,
        activations=needs.activations(chunk), margin=MARGIN_BYTES, ring=ring,
        resident=resident, streamed=needs.weights - resident, chunk=chunk, context=context,
        pages=pages, resident_panels=panels,
    )  # fmt: skip


def _ring(needs: Needs, left: int) -> int:
    """Return the ring for a rank that streams and has `left` bytes for weights."""
    return ring_bytes(needs.smallest_ring(), left)


def ring_bytes(smallest: int, left: int) -> int:
    """Return the ring of a rank that streams and has `left` bytes for weights."""
    return min(left, max(smallest, min(RING_BYTES, left // 4)))


def spread(tensors: Sequence[StoredTensor], nbytes: int) -> dict[str, int]:
    """Choose first panels of tensors to keep, `nbytes` of them at most, evenly over the tape.

    A tensor is cut where about whole reads are left of it; one that is short is kept or not. What
    one can't take is carried on to the next.
    """
    total, passed, given = sum(tensor.nbytes for tensor in tensors), 0, 0
    panels: dict[str, int] = {}
    for tensor in tensors:
        passed += tensor.nbytes
        if not tensor.nbytes:
            continue
        due = nbytes * passed // total - given
        unit = max(1, READ_BYTES // tensor.panel_bytes)  # panels of a read
        if due >= tensor.nbytes:
            keep = tensor.panels
        elif tensor.panels < 2 * unit:
            keep = 0
        else:
            keep = max(due // tensor.panel_bytes // unit * unit, 0)
        if keep:
            panels[tensor.name] = keep
            given += keep * tensor.panel_bytes
    return panels
