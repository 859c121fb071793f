"""A step as rank 0 tells it to the others: header, rows of the batch and embedded tokens at once.

They lie side by side, rows and header backwards from where the tokens begin, so that a step of as
many tokens as all expect travels as one message, without a copy of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpimpi.comm.group import WORD_BYTES, Group

STOP, STEP, FAIL, ADOPT, EXAMINE, FIGURES, SAVED = range(7)
HEADER_WORDS = 8  # of 32 bits: operation, T, n, 0, as 64 bits each
ROW_WORDS = 5  # of each token: position, slot, page, length; index of a selected one
MOST_EXPECTED = 16  # tokens: a longer step, as of a prompt, is not expected again


class StepMessage:
    """The memory of a step of up to `max_tokens` tokens of D numbers, and how it travels.

    `memory` is float32 with `words(max_tokens, D)` numbers. All ranks expect the next step to have
    as many tokens as the one before: only one of another number takes a second message.
    """

    def __init__(self, memory: np.ndarray, max_tokens: int, dim: int):
        flat = memory.reshape(-1)
        self._words, self._dim, self._expected = flat.view(np.int32), dim, 1
        self._start = HEADER_WORDS + ROW_WORDS * max_tokens
        end = self._start + max_tokens * dim
        self.hidden = flat[self._start : end].reshape(max_tokens, dim)  # [T, D]

    @staticmethod
    def words(max_tokens: int, dim: int) -> int:
        """Return how many float32 numbers the memory has."""
        return HEADER_WORDS + max_tokens * (ROW_WORDS + dim)

    def rows(self, tokens: int, count: int) -> np.ndarray:
        """Return the rows of T tokens of which n are selected: int32 [4 T + n]."""
        begin = self._start - ROW_WORDS * tokens
        return self._words[begin : begin + 4 * tokens + count]

    def tell(self, group: Group, operation: int, numbers: Sequence[int] = ()) -> None:
        """Tell the others what is no step, with some numbers to it (rank 0)."""
        self._header()[:] = operation, 0, len(numbers), 0
        group.bcast(self._message(HEADER_WORDS, self._expected))
        if numbers:
            group.bcast(np.array(numbers, np.int32))

    def tell_step(self, group: Group, tokens: int, rows: np.ndarray) -> None:
        """Tell a step whose tokens are in `hidden` (rank 0); rows [4 T + n]."""
        count = len(rows) - 4 * tokens
        self._header()[:] = STEP, tokens, count, 0
        if tokens != self._expected:
            group.bcast(self._message(HEADER_WORDS, self._expected))
        self.rows(tokens, count)[:] = rows
        group.bcast(self._message(0 if tokens != self._expected else HEADER_WORDS, tokens))
        self._expect(tokens)

    def hear(self, group: Group) -> tuple[int, int, int, list[int]]:
        """Return what rank 0 tells: operation, T, n, numbers (ranks other than 0)."""
        group.await_word(self._message(HEADER_WORDS, self._expected))
        operation, tokens, count, _ = (int(number) for number in self._header())
        if operation == STEP:
            if tokens != self._expected:
                group.bcast(self._message(0, tokens))
            self._expect(tokens)
            return operation, tokens, count, []
        numbers = np.empty(count, np.int32)
        if count:
            group.bcast(numbers)
        return operation, 0, 0, numbers.tolist()

    def _expect(self, tokens: int) -> None:
        short = tokens <= MOST_EXPECTED and self._message(HEADER_WORDS, tokens).nbytes <= WORD_BYTES
        self._expected = tokens if short else 1

    def _header(self) -> np.ndarray:
        """Return the header before the rows that are expected: int64 [4]."""
        begin = self._start - ROW_WORDS * self._expected - HEADER_WORDS
        return self._words[begin : begin + HEADER_WORDS].view(np.int64)

    def _message(self, header: int, tokens: int) -> np.ndarray:
        """Return `header` words, the rows and the hidden rows of T tokens, as they lie."""
        begin = self._start - ROW_WORDS * tokens - header
        return self._words[begin : self._start + tokens * self._dim]
