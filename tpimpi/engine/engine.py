"""Drive the model: rank 0 decides each step and tells the others; knows tokens, no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.engine.forward import Batch, Model
from tpimpi.engine.sampler import Sampler, check_logits
from tpimpi.engine.step import FAIL, RELEASE, STOP


class Engine:
    """One model over all ranks. Rank 0 calls `generate` or `score`; the others call `serve`."""

    def __init__(self, group: Group, model: Model):
        self._group, self._model = group, model
        self.on_pass: Callable[[float, float], None] | None = None  # told begin and end of each
        self.failed = False  # whether a pass was left half-way
        self._rows = np.zeros(4 * model.max_tokens, np.int32)  # as in a Batch, one after another

    def serve(self) -> bool:
        """Do what rank 0 says until it stops; return whether it failed (ranks other than 0)."""
        while True:
            operation, tokens, count, slot = self._model.message.hear(self._group)
            if operation == FAIL:
                return True
            if operation == STOP:
                self._check()
                return False
            if operation == RELEASE:
                self._model.cache.release(slot)
            else:
                self._run(tokens, count)

    def stop(self, failed: bool = False) -> None:
        """Let the other ranks leave `serve` (rank 0).

        After a pass that was left half-way here they are within it, and can't be told.
        """
        if not self.failed:
            self._model.message.tell(self._group, FAIL if failed else STOP)

    def release(self, slot: int) -> None:
        """Forget a sequence on all ranks (rank 0)."""
        if not self.failed:
            self._model.message.tell(self._group, RELEASE, slot)
            self._model.cache.release(slot)

    def step(
        self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int],
        selected: Sequence[int], lengths: Sequence[int] | None = None,
    ) -> np.ndarray | None:  # fmt: skip
        """Run one pass for T tokens (rank 0); return logits [n, V] of the `selected` ones.

        `lengths` are those of the tokens' sequences as far as they are known, at least up to each
        token (None: no further). The result is valid until the next step.
        """
        tokens, count = len(ids), len(selected)
        rows = self._rows[: 3 * tokens + count]
        rows[:tokens] = positions
        rows[tokens : 2 * tokens] = slots
        rows[2 * tokens : 3 * tokens] = rows[:tokens] + 1 if lengths is None else lengths
        rows[3 * tokens :] = selected
        self._model.embed(ids)
        # Last, as the others wait for what can't fail any more.
        self._model.message.tell_step(self._group, tokens, rows)
        logits = self._run(tokens, count)
        self._check()
        return logits

    def prefill(self, ids: Sequence[int], slot: int = 0) -> np.ndarray:
        """Run a prompt in chunks (rank 0); return the logits [V] after its last token."""
        logits, chunk = None, self._model.max_tokens
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            last = start + len(part) == len(ids)
            positions = range(start, start + len(part))
            selected = [len(part) - 1] if last else []
            lengths = [len(ids)] * len(part)
            logits = self.step(part, positions, [slot] * len(part), selected, lengths)
        return logits[0]

    def generate(
        self, prompt_ids: Sequence[int], sampler: Sampler, length: int, eos_ids: Collection[int]
    ) -> Iterator[int]:
        """Yield up to `length` new ids after the prompt (rank 0); one of `eos_ids` is the last."""
        history = list(prompt_ids)
        logits = self.prefill(history)
        for count in range(1, length + 1):
            token = sampler.sample(logits, history)
            history.append(token)
            yield token
            if token in eos_ids or count == length:
                return
            logits = self.step([token], [len(history) - 1], [0], [0])[0]

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Return -log p(ids[i] | ids[:i]) in nats for i = 1 .. len(ids) - 1, float64 (rank 0)."""
        losses = []
        chunk = min(self._model.max_tokens, self._model.max_logits)
        for start in range(0, len(ids) - 1, chunk):
            part = ids[start : min(start + chunk, len(ids) - 1)]
            positions = range(start, start + len(part))
            lengths = [len(ids)] * len(part)
            logits = self.step(part, positions, [0] * len(part), range(len(part)), lengths)
            for row, target in zip(logits, ids[start + 1 : start + 1 + len(part)], strict=True):
                check_logits(row)
                wide = row.astype(np.float64)  # [V], one row at a time: memory stays small
                top = wide.max()
                losses.append(np.log(np.exp(wide - top).sum()) + top - wide[target])
        self.release(0)
        return np.array(losses)

    def _check(self) -> None:
        """Raise what has failed on this rank in a pass."""
        if self._model.failure is not None:
            raise self._model.failure

    def _run(self, tokens: int, count: int) -> np.ndarray | None:
        rows = self._model.message.rows(tokens, count)
        parts = np.split(rows, (tokens, 2 * tokens, 3 * tokens))
        start = time.perf_counter()
        self.failed = True
        logits = self._model.forward(Batch(*parts))
        self.failed = False
        if self.on_pass is not None:
            self.on_pass(start, time.perf_counter())
        return logits
