"""The memory account: what one rank must hold, and what was planned for it. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tpimpi.shards.layout import PAGE, StoredTensor
from tpimpi.tape.reads import READ_BYTES
from tpimpi.units import MIB

SLACK_BYTES = 2 << 20  # by which two runs of the same program may differ
MARGIN_BYTES = 12 << 20  # for what no account sees: allocator, stacks of threads, MPI's messages


def pages_held(context: int, window: int | None, chunk: int, page_tokens: int) -> int:
    """Return the most pages that a text of `context` tokens has at once.

    Where tokens see `window` positions only, a pass of `chunk` tokens sees so many before its last
    one, wherever in a page they begin.
    """
    pages = -(-context // page_tokens)
    if window is None:
        return pages
    return min(pages, -(-(window + chunk - 2) // page_tokens) + 1)


@dataclass(frozen=True)
class Work:
    """What is to be computed: prompts of up to `prompt` tokens in contexts of up to `context`.

    Up to `slots` texts at once share keys and values of `pool` tokens in all (None: each text may
    be as long as the context). Of less memory there are those of one context at least, or where
    `pool_is_firm` all.
    """

    prompt: int
    context: int
    slots: int = 1
    pool: int | None = None
    pool_is_firm: bool = False
    longest_chunk: int | None = None
    logits: int = 1  # rows of logits that one pass may ask for
    enough: int | None = None  # tokens that a context must hold (None: the prompt and one more)
    beside: int = 0  # bytes that rank 0 takes meanwhile for something else, such as a server

    @property
    def smallest_context(self) -> int:
        """The tokens that a context must hold for what is to be computed at all."""
        return min(self.enough or self.prompt + 1, self.context)


@dataclass(frozen=True)
class Needs:
    """What one rank must hold besides weights, and its tensors in tape order. Bytes."""

    process: int  # resident now: interpreter, libraries, kernels
    tokenizer: int  # on rank 0: its vocabulary, loaded
    peak: int  # the most that was resident so far
    fixed: int  # norms, sampling, scratch
    per_token: int  # activations of one token of a chunk
    per_logits: int  # a row of logits
    logits: int  # rows of logits that a pass may ask for, at most one a token
    kv_page: int  # a page of all layers
    page_tokens: int
    window: int | None  # positions that must be kept, where no layer sees more
    tensors: tuple[StoredTensor, ...]
    blocks: tuple[int, ...]  # bytes of each block

    @property
    def resident(self) -> int:
        """The bytes that the process holds now."""
        return self.process + self.tokenizer

    @cached_property
    def weights(self) -> int:
        """The bytes of all tensors of the tape."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def longest_panel(self) -> int:
        """The bytes of the longest panel of the tape."""
        return max((tensor.panel_bytes for tensor in self.tensors), default=0)

    def pages(self, context: int, chunk: int) -> int:
        """Return the pages that one context takes, computed in chunks."""
        return pages_held(context, self.window, chunk, self.page_tokens)

    def least_pages(self, work: Work, context: int, chunk: int) -> int:
        """Return the pages without which texts of `context` tokens can't be computed at all."""
        one = self.pages(context, chunk)
        if work.pool is None:
            return work.slots * one
        return max(one, -(-work.pool // self.page_tokens)) if work.pool_is_firm else one

    def wanted_pages(self, work: Work, context: int, chunk: int) -> int:
        """Return the pages that all texts together want."""
        least = self.least_pages(work, context, chunk)
        return least if work.pool is None else max(least, -(-work.pool // self.page_tokens))

    def activations(self, chunk: int) -> int:
        """Return the bytes of the buffers for passes of `chunk` tokens."""
        return self.fixed + chunk * self.per_token + min(chunk, self.logits) * self.per_logits

    def besides_weights(self, chunk: int, pages: int) -> int:
        """Return the bytes of everything but weights and their ring."""
        return self.resident + MARGIN_BYTES + self.activations(chunk) + pages * self.kv_page

    def smallest_ring(self) -> int:
        """Return the least memory through which the weights can pass, or stay if that is less."""
        return min(2 * (max(READ_BYTES, self.longest_panel) + 2 * PAGE), self.weights)

    def smallest(self, work: Work, chunk: int = 1) -> int:
        """Return the smallest budget with which a prompt can be computed in chunks of `chunk`."""
        pages = self.least_pages(work, work.smallest_context, chunk)
        least = self.besides_weights(chunk, pages)
        return max(least + self.smallest_ring(), self.peak)

    def advised(self, work: Work, chunk: int = 1) -> int:
        """Return the smallest budget in whole MiB that also holds by the slack between two runs."""
        return -(-(self.smallest(work, chunk) + SLACK_BYTES) // MIB) * MIB

    def everything(self, work: Work, chunk: int) -> int:
        """Return the budget with which nothing streams."""
        pages = self.wanted_pages(work, work.context, chunk)
        return max(self.besides_weights(chunk, pages) + self.weights, self.peak)


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's account in bytes, and what follows from it for the tape."""

    budget: int | None
    peak: int  # the most that was resident before
    process: int
    tokenizer: int
    kv: int
    activations: int  # of a chunk, and what doesn't depend on it
    margin: int
    ring: int
    resident: int
    streamed: int  # a pass
    chunk: int  # tokens
    context: int  # tokens
    pages: int  # of keys and values, for all texts
    resident_panels: dict[str, int]

    @property
    def total(self) -> int:
        """The bytes that the process will hold."""
        return (
            self.process + self.tokenizer + self.kv + self.activations + self.margin + self.ring
            + self.resident
        )  # fmt: skip

    @property
    def most(self) -> int:
        """The peak that the process will have had in the end, at most; within a budget always."""
        behind = self.peak + SLACK_BYTES
        return max(self.total, behind if self.budget is None else min(behind, self.budget))
