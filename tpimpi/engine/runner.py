"""Run passes of the model: rank 0 decides each and tells the others; knows tokens, no texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.engine import saved
from tpimpi.engine.forward import Batch, Model
from tpimpi.engine.pages import PAGE_TOKENS, Adopted, Found, Pages, names_of
from tpimpi.engine.sampler import check_logits
from tpimpi.engine.step import ADOPT, EXAMINE, FAIL, FIGURES, SAVED, STEP, STOP
from tpimpi.errors import UserError, describe
from tpimpi.shards.layout import Identity


class Runner:
    """One model over all ranks. Rank 0 calls `step` and its like; the others call `serve`.

    `pages` is rank 0's account of the KV cache.
    """

    def __init__(self, group: Group, model: Model, pages: Pages, identity: Identity):
        self._group, self._model, self.pages, self._identity = group, model, pages, identity
        self.on_pass: Callable[[float, float], None] | None = None  # told begin and end of each
        self.on_figures: Callable[[], object] = lambda: None  # gathers those of all ranks
        self.failed = False  # whether a pass was left half-way
        self._left = False  # whether the others have left `serve` with an error
        self._rows = np.zeros(5 * model.max_tokens, np.int32)  # as in a Batch, one after another

    @property
    def max_tokens(self) -> int:
        """The most tokens of a pass."""
        return self._model.max_tokens

    @property
    def max_logits(self) -> int:
        """The most tokens of a pass whose logits are asked for."""
        return self._model.max_logits

    @property
    def reachable(self) -> bool:
        """Whether the other ranks hear what they are told (rank 0)."""
        return not self.failed and not self._left

    def serve(self) -> bool:
        """Do what rank 0 says until it stops; return whether it failed (ranks other than 0)."""
        while True:
            operation, tokens, count, numbers = self._model.message.hear(self._group)
            if operation == STEP:
                self._run(tokens, count)
            elif operation == ADOPT:
                self._adopt(*numbers)
            elif operation == EXAMINE:
                self._group.agree(self._model.failure)
            elif operation == FIGURES:
                self.on_figures()
            elif operation == SAVED:
                self._with_disk(*self._group.comm.bcast(None), numbers)
            else:
                if operation == STOP:
                    self._check()
                return operation == FAIL

    def stop(self, failed: bool = False) -> None:
        """Let the other ranks leave `serve` (rank 0).

        After a pass that was left half-way here they are within it, and can't be told. With those
        that an examination has made leave, nothing is left to be told.
        """
        if self.reachable:
            self._model.message.tell(self._group, FAIL if failed else STOP)

    def figures(self):
        """Return what `on_figures` gathers, on all ranks (rank 0)."""
        self._model.message.tell(self._group, FIGURES)
        return self.on_figures()

    def examine(self) -> None:
        """Raise on all ranks what has failed on one of them, if anything has (rank 0)."""
        self._model.message.tell(self._group, EXAMINE)
        self._left = True
        self._group.agree(self._model.failure)
        self._left = False

    def save(self, ids: Sequence[int], folder: str) -> int:
        """Save the pages of a text, a file a rank in `folder`; return for how many tokens (rank 0).

        Those are found again by `recall`. Raises UserError for the first rank that can't.
        """
        found = self.pages.find([*ids, 0], names_of(ids))
        if not found.tokens:
            return 0
        pages = [*found.pages, *([] if found.copied is None else [found.copied])]
        self._tell_disk("write", ids[: found.tokens], folder, pages)
        return found.tokens

    def recall(self, ids: Sequence[int], folder: str, slot: int = 0) -> None:
        """Read the pages of a text that was saved in `folder`, for others to begin with (rank 0).

        `slot` is free. Raises UserError for the first rank that can't.
        """
        self.pages.reserve(slot, 0, len(ids) - 1)
        spoiled = True
        try:
            self._tell_disk("read", ids, folder, self.pages.table(slot))
            spoiled = False
        finally:
            self.pages.release(slot, ids, spoiled)

    def _tell_disk(self, what: str, ids: Sequence[int], folder: str, pages: Sequence[int]) -> None:
        self._model.message.tell(self._group, SAVED, pages)
        told = what, list(ids), str(folder)
        self._group.comm.bcast(told)
        self._with_disk(*told, pages)

    def _with_disk(self, what: str, ids: list[int], folder: str, pages: Sequence[int]) -> None:
        """Write or read saved pages on this rank; raise on rank 0 what has failed on any."""
        act, failed = {"write": saved.write, "read": saved.read}[what], None
        try:
            act(folder, self._identity, ids, self._model.cache, pages)
        except (OSError, UserError) as error:
            why = str(error) if isinstance(error, UserError) else describe(error)
            failed = f"{why} (rank {self._group.rank} on {self._group.host})"
        sentences = [one for one in self._group.comm.gather(failed) or () if one is not None]
        if sentences:
            raise UserError(sentences[0])

    def adopt(self, slot: int, found: Found) -> Adopted:
        """Let an empty slot begin with pages that were found, on all ranks (rank 0)."""
        adopted = self.pages.adopt(slot, found)
        if adopted.pages:
            self._tell_pages(slot, adopted.pages, adopted.copy)
        return adopted

    def step(
        self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int],
        selected: Sequence[int], lengths: Sequence[int] | None = None,
    ) -> np.ndarray | None:  # fmt: skip
        """Run one pass for T tokens (rank 0); return logits [n, V] of the `selected` ones.

        Those of a slot stand side by side, in their order. `lengths` are those of the tokens'
        sequences as far as they are known, at least up to each token (None: no further). The
        result is valid until the next step.
        """
        tokens, count = len(ids), len(selected)
        rows = self._rows[: 4 * tokens + count]
        places, whose, pages, known, chosen = _parts(rows, tokens)
        places[:], whose[:], chosen[:] = positions, slots, selected
        known[:] = places + 1 if lengths is None else lengths
        begin = 0
        while begin < tokens:  # a run of tokens of one slot
            slot, end = whose[begin], begin + 1
            while end < tokens and whose[end] == slot:
                end += 1
            self._reserve(int(slot), places[begin:end], pages[begin:end])
            begin = end
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

    def score(self, ids: Sequence[int], slot: int = 0) -> np.ndarray:
        """Return -log p(ids[i] | ids[:i]) in nats for i = 1 .. len(ids) - 1, float64 (rank 0)."""
        losses = []
        chunk = min(self._model.max_tokens, self._model.max_logits)
        for start in range(0, len(ids) - 1, chunk):
            part = ids[start : min(start + chunk, len(ids) - 1)]
            positions = range(start, start + len(part))
            lengths = [len(ids)] * len(part)
            logits = self.step(part, positions, [slot] * len(part), range(len(part)), lengths)
            for row, target in zip(logits, ids[start + 1 : start + 1 + len(part)], strict=True):
                check_logits(row)
                wide = row.astype(np.float64)  # [V], one row at a time: memory stays small
                top = wide.max()
                losses.append(np.log(np.exp(wide - top).sum()) + top - wide[target])
        self.pages.release(slot)
        return np.array(losses)

    def _reserve(self, slot: int, positions: np.ndarray, pages: np.ndarray) -> None:
        """Find the pages [T] of a slot's positions [T], which rise; others hear of them by those.

        Of a page that no token is written to now, they are told.
        """
        new = self.pages.reserve(slot, int(positions[0]), int(positions[-1]))
        table = self.pages.table(slot)
        pages[:] = [table[position // PAGE_TOKENS] for position in positions]
        if new and min(new) < positions[0] // PAGE_TOKENS:
            self._tell_pages(slot, table)

    def _tell_pages(
        self, slot: int, pages: Sequence[int], copy: tuple[int, int] | None = None
    ) -> None:
        """Let a slot's table begin with pages on all ranks, after one was copied to another."""
        numbers = [slot, *(copy or (0, 0)), *(max(page, 0) for page in pages)]
        self._model.message.tell(self._group, ADOPT, numbers)
        self._adopt(*numbers)

    def _adopt(self, slot: int, source: int, target: int, *pages: int) -> None:
        copy = (source, target) if source != target else None
        self._model.cache.adopt(slot, pages, copy)

    def _check(self) -> None:
        """Raise what has failed on this rank in a pass."""
        if self._model.failure is not None:
            raise self._model.failure

    def _run(self, tokens: int, count: int) -> np.ndarray | None:
        rows = self._model.message.rows(tokens, count)
        parts = _parts(rows, tokens)
        start = time.perf_counter()
        self.failed = True
        logits = self._model.forward(Batch(*parts))
        self.failed = False
        if self.on_pass is not None:
            self.on_pass(start, time.perf_counter())
        return logits


def _parts(rows: np.ndarray, tokens: int) -> tuple[np.ndarray, ...]:
    """Return positions, slots, pages, lengths [T] and the selected [n], as they lie in rows."""
    one, two, three, four = tokens, 2 * tokens, 3 * tokens, 4 * tokens
    return rows[:one], rows[one:two], rows[two:three], rows[three:four], rows[four:]
