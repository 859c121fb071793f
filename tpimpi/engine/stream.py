"""One text as it is iterated: by rank 0 while it leads, or by all ranks together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

from tpimpi import status
from tpimpi.engine.engine import Engine
from tpimpi.engine.figures import decode_rate, made
from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.request import Piece
from tpimpi.engine.session import Session
from tpimpi.errors import UserError


def pieces(
    engine: Engine, generation: Generation, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[Piece]:
    """Yield a text piece by piece as it is made (rank 0, leading); leaving it cancels it.

    `cancelled` is asked between passes.
    """
    job = engine.add(generation)
    try:
        while True:
            while job.pending:
                piece = job.pending.popleft()
                if isinstance(piece, Exception):
                    raise piece
                _tell(generation)
                yield piece
            if generation.reason or cancelled():
                return
            for whose, piece in engine.step():  # others' may be iterated in turn with this one
                whose.pending.append(piece)
    finally:
        if not generation.reason:
            engine.cancel(job)


def _tell(generation: Generation) -> None:
    """Note how far a text is, for those who look, or end the program."""
    count, first = generation.made, generation.first_token_seconds
    rate = decode_rate(count, first, generation.seconds)
    status.current.figures = made(count, generation.prompt_tokens, first, rate)


class Text:
    """The text after one prompt, as rank 0 iterates it while it leads: its pieces as strings."""

    def __init__(self, session: Session, generation: Generation):
        self._session, self._generation = session, generation
        self._cancelled = threading.Event()
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self._pieces if piece.text)

    @property
    def completion(self) -> Completion:
        """What was made so far."""
        return self._generation.completion

    def _run(self) -> Iterator[Piece]:
        if not self._session.is_led:
            raise UserError("the block of leading() was left; make texts within it")
        self._session.wake()
        try:
            yield from pieces(self._session.engine, self._generation, self._cancelled.is_set)
        finally:
            self._session.rest()

    def cancel(self) -> None:
        """Let the text end before its next pass, from any thread or a signal's handler."""
        self._cancelled.set()

    def close(self) -> None:
        """End the text here."""
        self._pieces.close()


class Stream:
    """The text after one prompt as it is made; rank 0 gets the pieces, others none.

    Leaving it half-way is fine: it ends with `close`, or with the model's next call.
    """

    def __init__(self, session: Session, generation: Generation | None):
        self._session, self._generation = session, generation
        self._begun = self._left = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._begun = True
        return next(self._pieces)

    @property
    def completion(self) -> Completion | None:
        """What was made so far, on rank 0."""
        return self._generation.completion if self._generation else None

    def close(self) -> None:
        """End the text on all ranks (collective); do nothing once it has ended."""
        self._left = True
        if self._begun and self._generation:
            self._pieces.close()
        else:  # others serve to the end; a text that was not begun makes nothing
            for _ in self._pieces:
                pass

    def _run(self) -> Iterator[str]:
        with self._session.leading() as runner:
            if runner is None or self._left:
                return
            with closing(pieces(self._session.engine, self._generation)) as made_now:
                for piece in made_now:
                    if piece.text:
                        yield piece.text
