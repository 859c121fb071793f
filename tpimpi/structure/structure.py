"""One text that is kept to a grammar: which tokens may come next, and whether it is complete."""

from __future__ import annotations

import numpy as np

from tpimpi.errors import UserError
from tpimpi.structure.vocabulary import Vocabulary, llguidance

# What a text may cost at most; the library's own bounds are for machines that do nothing else.
# A state is 0.5 to 2 kB; a string with a pattern or a length takes one for each letter.
_LIMITS = {"max_grammar_size": 100_000, "max_lexer_states": 50_000, "verbose_errors": False}
_LONGEST = 200  # characters of a reason
_BEGINNINGS = (b"{", b"[", b'"')  # of what may be too complex


class Structure:
    """The state of one text under a grammar, for one thread at a time.

    `complete` tells after each `accept` whether the text can only end: an engine may stop there,
    and must where the model has no end token. Such a model's text under a schema is complete as
    soon as it may end, since it can't say that it has ended; under `open_end` it may go on.
    """

    def __init__(
        self, vocabulary: Vocabulary, grammar: str, open_end: bool = False,
        what: str = "the structure",
    ):  # fmt: skip
        """Compile a grammar of llguidance; UserError, with the reason, tells that `what` can't be.

        What is too complex at the first step is told here, too, and not in the middle of a text.
        """
        library = llguidance()
        self._vocabulary, self._open_end, self._what = vocabulary, open_end, what
        self._ends = list(vocabulary.end_ids)
        limits = library.LLParserLimits(**_LIMITS)
        self._matcher = library.LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=limits)
        self._bits = np.zeros(vocabulary.size // 32 + 1, np.uint32)  # [V + 1] bits
        self.complete = False
        self._check()
        allowed, whole = self.allowed(), self._matcher
        if not (allowed & ~vocabulary.blank).any():
            raise UserError(f"{what} can't be kept: no text can begin it; change it")
        for token in (vocabulary.letters[letter] for letter in _BEGINNINGS):
            if allowed[token]:
                self._matcher = whole.deep_copy()
                self.accept(token)
                self.allowed()
        self._matcher, self.complete = whole, False

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next: bool [V]; end tokens where the text may end here.

        Of a complete text only end tokens, so none for a model that has none. Raises UserError for
        what turns out too complex on the way, and where no token can spell what must follow.
        """
        bits, size = self._bits, self._vocabulary.size
        if self.complete:
            mask, may_end = np.zeros(size, bool), True
        else:
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            self._check()
            mask = np.unpackbits(bits.view(np.uint8), count=size + 1, bitorder="little").view(bool)
            mask, may_end = mask[:size], bool(mask[size])
            if not may_end and not mask.any():
                raise UserError(
                    "the model's tokens can't spell what the structure asks for next; ask for "
                    "another one"
                )
        mask[self._ends] = may_end
        return mask

    def accept(self, token: int) -> None:
        """Take a token, no end token, as the next one. Raises UserError as `allowed` does."""
        self._matcher.consume_token(int(token))
        self._check()
        stopped = self._matcher.is_stopped()
        if not stopped and not self._ends and not self._open_end:
            stopped = self._matcher.is_accepting()
        self.complete = stopped

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"{self._what} can't be kept: {reason(self._matcher.get_error())}")


def reason(error: str) -> str:
    """Return what llguidance says of an error in one line, without where it stands in a grammar."""
    lines = error.strip().splitlines() or ["no reason told"]
    line = lines[0].rpartition("failed to compile JSON schema: ")[2].partition(". Enable ")[0]
    # Of a regular expression the sentence stands below a drawing of where it is wrong.
    below = [one.removeprefix("error:") for one in lines[1:] if one.startswith("error:")]
    line += "".join(below) if line.endswith(":") else ""
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
