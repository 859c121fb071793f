"""Many texts over one sweep of the weights: they come, are made together, and go, at any time.

A request joins between two passes and leaves when it ends (Yu et al. 2022, Orca). One that fails
ends alone; what fails on a machine is raised.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tpimpi.engine.generation import Generation
from tpimpi.engine.pace import Pace
from tpimpi.engine.request import Piece
from tpimpi.engine.runner import Runner
from tpimpi.engine.scheduler import Scheduler, Share, Text
from tpimpi.errors import MachineError

WORTH_THREADS = 1 << 16  # logits


class Job(Text):
    """A text that is being made."""

    def __init__(self, generation: Generation):
        super().__init__(generation.ids, generation.most)
        self.generation, self.begun = generation, False
        self.pending: deque[Piece | Exception] = deque()  # of one who asks for it later


class Engine:
    """Make texts with a runner, on rank 0 while the other ranks serve."""

    def __init__(
        self, runner: Runner, slots: int, most_pages: int, shares_pages: bool = True,
        threads: int = 1,
    ):  # fmt: skip
        slots = min(slots, runner.max_logits)
        workers = min(threads, slots)
        self._pool = ThreadPoolExecutor(workers, "sampling") if workers > 1 else None
        self._runner, self._pace = runner, Pace()
        self.slots = slots
        self.scheduler = Scheduler(runner.pages, slots, runner.max_tokens, most_pages, shares_pages)
        self.passes = self.prompt_tokens = self.cached_tokens = self.made_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def add(self, generation: Generation) -> Job:
        """Let a text be made as soon as there is room for it."""
        job = Job(generation)
        self.scheduler.add(job)
        return job

    def cancel(self, job: Job) -> None:
        """End a text half-way."""
        job.generation.cancel()
        self.scheduler.remove(job)

    def clear(self) -> None:
        """End all texts half-way."""
        for job in [*self.scheduler.running, *self.scheduler.waiting]:
            self.cancel(job)

    def step(self) -> list[tuple[Job, Piece | Exception]]:
        """Run one pass for all that have something to do; return what came of it for each text.

        An Exception ends its text. What is raised ends all of them: some machine can't go on.
        """
        while start := self.scheduler.begin():
            adopted = self._runner.adopt(start.text.slot, start.found)
            if not start.text.begun:  # else its own pages were found that an older one took
                start.text.begun = True
                start.text.generation.cached_tokens = adopted.tokens
                self.cached_tokens += adopted.tokens
                self.prompt_tokens += start.text.generation.prompt_tokens
        making = any(text.left == 1 for text in self.scheduler.running)
        shares = self.scheduler.shares(self._pace.prompt_tokens(making, self._runner.max_tokens))
        if not shares:
            return []
        begin = time.perf_counter()
        logits, asked = self._run(shares)
        made = sum(share.tokens == 1 for share in shares)
        tokens = sum(share.tokens for share in shares)
        self._pace.learn(made, tokens - made, time.perf_counter() - begin)
        self.passes += 1
        for share in shares:
            self.scheduler.computed(share)
        if not asked:
            return []
        return list(zip(asked, map(self._taken, asked, self._chosen(asked, logits)), strict=True))

    def _run(self, shares: list[Share]):
        """Return the logits [n, V] of a pass, and the n texts to be gone on with by them."""
        ids, positions, slots, lengths, selected, asked = [], [], [], [], [], []
        for share in shares:
            text, begin = share.text, share.text.computed
            end = begin + share.tokens
            ids += text.ids[begin:end]
            positions += range(begin, end)
            slots += [text.slot] * share.tokens
            lengths += [text.generation.length_at(position) for position in range(begin, end)]
            if end == len(text.ids):
                selected.append(len(ids) - 1)
                asked.append(text)
        return self._runner.step(ids, positions, slots, selected, lengths), asked

    def _chosen(self, jobs: list[Job], logits: np.ndarray) -> Iterable[Piece | Exception]:
        """Choose a token of each text by its logits [n, V], in several threads if that pays."""
        alone = self._pool is None or logits[: len(jobs)].size < WORTH_THREADS
        # What keeps to a structure may belong to one thread.
        if alone or any(job.generation.is_constrained for job in jobs):
            return map(_choose, jobs, logits)
        return self._pool.map(_choose, jobs, logits)

    def _taken(self, job: Job, piece: Piece | Exception) -> Piece | Exception:
        """Take note of what a text got."""
        if isinstance(piece, Exception):
            # It may be that weights could not be read, on any rank: then all are told.
            self._runner.examine()
            self.scheduler.remove(job, spoiled=isinstance(piece, MachineError))
            return piece
        self.made_tokens += 1
        if job.generation.reason:
            self.scheduler.remove(job)
        return piece


def _choose(job: Job, logits: np.ndarray) -> Piece | Exception:
    try:
        return job.generation.push(logits)
    except Exception as error:
        return error
