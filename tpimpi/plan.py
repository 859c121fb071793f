"""The memory plan: what a rank holds, what stays in memory, what streams. Pure arithmetic, no MPI.

A budget is spent in this order: the process itself; keys and values of the context; the buffers of
a prompt chunk; a ring to stream through; and all that is left keeps weights resident, spread over
the tape so that the readers work while resident rows are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpimpi.budget import Claim, MemoryRequest, shared_budgets
from tpimpi.directio import PAGE
from tpimpi.errors import UserError
from tpimpi.memory import FreeMemory
from tpimpi.reads import READ_BYTES, ring_bytes_for, row_bytes
from tpimpi.shard import Stored

DEFAULT_CHUNK = 512  # tokens of a prompt in a pass; longer ones gain nothing, as arithmetic binds
WINDOW_CHUNK = 256  # ... with --memory-window
RING_BYTES = 32 << 20  # what reading ahead can use: some milliseconds of sampling and of sums
SLACK_BYTES = 2 << 20  # by which two runs of the same program may differ
MARGIN_BYTES = 12 << 20  # for what no account sees: allocator, stacks of threads, MPI's messages


@dataclass(frozen=True)
class Work:
    """What is to be computed: prompts of up to `prompt` tokens in contexts of up to `context`."""

    prompt: int
    context: int
    slots: int = 1
    longest_chunk: int | None = None
    logits: int = 1  # rows of logits that one pass may ask for

    @property
    def smallest_context(self) -> int:
        """The tokens that a context must hold for anything to be computed at all."""
        return min(self.prompt + 1, self.context)


@dataclass(frozen=True)
class Needs:
    """What one rank must hold besides weights, and its tensors in tape order. Bytes."""

    process: int  # resident now: interpreter, libraries, kernels
    peak: int  # the most that was resident so far
    fixed: int  # norms, logits, sampling
    per_token: int  # activations of one token of a chunk
    kv_page: int  # a page of all layers
    page_tokens: int
    tensors: tuple[Stored, ...]
    blocks: tuple[int, ...]  # bytes of each block

    @property
    def weights(self) -> int:
        """The bytes of all tensors of the tape."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def kv(self, context: int, slots: int) -> int:
        """Return the bytes of the pages for `slots` contexts."""
        return slots * -(-context // self.page_tokens) * self.kv_page

    def besides_weights(self, chunk: int, context: int, slots: int) -> int:
        """Return the bytes of everything but weights and their ring."""
        return (
            self.process + MARGIN_BYTES + self.fixed
            + chunk * self.per_token + self.kv(context, slots)
        )  # fmt: skip

    def smallest_ring(self) -> int:
        """Return the least memory through which the weights can pass, or stay if that is less."""
        longest = max((row_bytes(tensor) for tensor in self.tensors), default=0)
        return min(2 * (max(READ_BYTES, longest) + 2 * PAGE), self.weights)

    def smallest(self, work: Work, chunk: int = 1) -> int:
        """Return the smallest budget with which a prompt can be computed in chunks of `chunk`."""
        least = self.besides_weights(chunk, work.smallest_context, work.slots)
        return max(least + self.smallest_ring(), self.peak)

    def everything(self, work: Work, chunk: int) -> int:
        """Return the budget with which nothing streams."""
        return max(self.besides_weights(chunk, work.context, work.slots) + self.weights, self.peak)


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's account in bytes, and what follows from it for the tape."""

    budget: int | None
    peak: int  # the most that was resident before
    process: int
    kv: int
    activations: int  # of a chunk, and what doesn't depend on it
    margin: int
    ring: int
    resident: int
    streamed: int  # a pass
    chunk: int  # tokens
    context: int  # tokens
    resident_rows: dict[str, int]

    @property
    def total(self) -> int:
        """The bytes that the process will hold."""
        parts = (self.process, self.kv, self.activations, self.margin, self.ring, self.resident)
        return sum(parts)

    @property
    def most(self) -> int:
        """The peak that the process will have had in the end, at most; within a budget always."""
        behind = self.peak + SLACK_BYTES
        return max(self.total, behind if self.budget is None else min(behind, self.budget))


@dataclass(frozen=True)
class Rates:
    """What one rank can read, in bytes a second."""

    disk: float
    memory: float

    def seconds(self, plan: MemoryPlan) -> float:
        """Return the time of a decode step at the end of the context, without sums."""
        touched = plan.resident + plan.streamed + plan.kv
        return max(plan.streamed / self.disk, touched / self.memory)


def wanted_chunk(request: MemoryRequest, work: Work) -> int:
    """Return the longest prompt chunk that makes sense."""
    default = WINDOW_CHUNK if request.window is not None else DEFAULT_CHUNK
    limits = (request.chunk or default, work.prompt, work.longest_chunk or work.prompt)
    return max(1, min(limits))


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
    least = chunk if request.chunk else 1
    budgets = shared_budgets(
        [
            Claim(r.budget, r.host, r.needs.process, r.needs.everything(work, chunk), r.free)
            for r in ranks
        ]
    )
    for r, budget in zip(ranks, budgets, strict=True):
        _refuse_small(r, budget, work, least)
    fits = [fit(r.needs, b, work, chunk, least) for r, b in zip(ranks, budgets, strict=True)]
    chunk, context = min(chunk for chunk, _ in fits), min(context for _, context in fits)
    return [
        plan_budget(r.needs, b, work, chunk, context) for r, b in zip(ranks, budgets, strict=True)
    ]


def _refuse_small(r: RankRequest, budget: int, work: Work, chunk: int) -> None:
    """Raise UserError with the smallest budget that would do, if this one is too small."""
    needs, smallest = r.needs, r.needs.smallest(work, chunk)
    if budget >= smallest:
        return
    would_do = -(-(smallest + SLACK_BYTES) // 2**20)  # MiB
    context = work.smallest_context
    buffers = needs.fixed + MARGIN_BYTES + chunk * needs.per_token
    why = (
        f"the process {needs.process / 2**20:.0f}, keys and values "
        f"{needs.kv(context, work.slots) / 2**20:.1f}, buffers {buffers / 2**20:.0f}, weights "
        f"passing through {needs.smallest_ring() / 2**20:.0f}"
    )
    if smallest == needs.peak:
        why = "as much as it took while its kernels were loaded"
    what = f"rank {r.rank} on {r.host} needs at least {would_do} MiB for {context} tokens ({why})"
    if isinstance(r.budget, int):
        raise UserError(
            f"--memory-budget {r.budget / 2**20:.0f}MiB is too small: {what}; give "
            f"--memory-budget {would_do}MiB or more, or use more ranks"
        )
    raise UserError(
        f"{budget / 2**20:.0f} MiB are a rank's share of the node's free memory (--memory-budget "
        f"{r.budget}), but {what}; end other programs, or use fewer ranks on this node"
    )


def fit(needs: Needs, budget: int, work: Work, chunk: int, least: int) -> tuple[int, int]:
    """Return the prompt chunk and the context that are best for one rank's budget, in tokens.

    The context is as long as asked for or as the budget allows. The chunk is the one, of `chunk`
    and its halves down to `least`, that reads the fewest bytes for the prompt and the rest of the
    context. The budget is at least `needs.smallest(work, least)`.
    """
    room = budget - needs.besides_weights(least, 0, work.slots) - needs.smallest_ring()
    pages = room // (needs.kv_page * work.slots) if needs.kv_page else work.context
    context = min(work.context, pages * needs.page_tokens)
    best, best_bytes = least, None
    while chunk >= least:
        left = budget - needs.besides_weights(chunk, context, work.slots)
        streamed = 0 if left >= needs.weights else needs.weights - left + _ring(needs, left)
        passes = -(-work.prompt // chunk) + max(context - work.prompt, 0)
        if left >= needs.smallest_ring() and (best_bytes is None or passes * streamed < best_bytes):
            best, best_bytes = chunk, passes * streamed
        chunk //= 2
    return best, context


def plan_budget(needs: Needs, budget: int, work: Work, chunk: int, context: int) -> MemoryPlan:
    """Spend a budget that `fit` has found enough for this chunk and context."""
    left = budget - needs.besides_weights(chunk, context, work.slots)
    if left >= needs.weights:
        rows, ring = {tensor.name: tensor.shape[0] for tensor in needs.tensors}, 0
    else:
        ring = _ring(needs, left)
        rows = spread(needs.tensors, left - ring)
    return _plan(needs, budget, work, chunk, context, rows, ring)


def plan_flags(needs: Needs, request: MemoryRequest, work: Work) -> MemoryPlan:
    """Follow --memory-window or --disable-memory-schedule, whatever that takes."""
    chunk = wanted_chunk(request, work)
    if request.window is None:
        rows, ring = {tensor.name: tensor.shape[0] for tensor in needs.tensors}, 0
    else:
        rows = {}
        ring = ring_bytes_for(needs.blocks, min(request.window, len(needs.blocks)))
    return _plan(needs, None, work, chunk, work.context, rows, ring)


def _plan(needs, budget, work, chunk, context, rows, ring) -> MemoryPlan:
    resident = sum(rows.get(tensor.name, 0) * row_bytes(tensor) for tensor in needs.tensors)
    return MemoryPlan(
        budget=budget, peak=needs.peak, process=needs.process, kv=needs.kv(context, work.slots),
        activations=needs.fixed + chunk * needs.per_token, margin=MARGIN_BYTES, ring=ring,
        resident=resident, streamed=needs.weights - resident, chunk=chunk, context=context,
        resident_rows=rows,
    )  # fmt: skip


def _ring(needs: Needs, left: int) -> int:
    """Return the ring for a rank that streams and has `left` bytes for weights."""
    return min(left, max(needs.smallest_ring(), min(RING_BYTES, left // 4)))


def spread(tensors: Sequence[Stored], nbytes: int) -> dict[str, int]:
    """Choose first rows of tensors to keep, `nbytes` of them at most, evenly over the tape.

    A tensor is cut where about whole reads are left of it; one that is short is kept or not. What
    one can't take is carried on to the next.
    """
    total, passed, given = sum(tensor.nbytes for tensor in tensors), 0, 0
    rows: dict[str, int] = {}
    for tensor in tensors:
        passed += tensor.nbytes
        if not tensor.nbytes:
            continue
        due = nbytes * passed // total - given
        unit = max(1, READ_BYTES // row_bytes(tensor))  # rows of a read
        if due >= tensor.nbytes:
            keep = tensor.shape[0]
        elif tensor.shape[0] < 2 * unit:
            keep = 0
        else:
            keep = max(due // row_bytes(tensor) // unit * unit, 0)
        if keep:
            rows[tensor.name] = keep
            given += keep * row_bytes(tensor)
    return rows
