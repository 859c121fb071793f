"""One text as all ranks iterate it: rank 0 gets the pieces, the others compute and get none."""

from __future__ import annotations

from collections.abc import Iterator

from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.session import Session


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
        with self._session.leading() as engine:
            if engine is None or self._left:
                return
            try:
                yield from self._generation.pieces()
            finally:
                engine.release(0)
