"""Ctrl-C, as a key or as a signal: it stops an answer that is being written, else a line."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

_TOGETHER = 0.3  # seconds within which two signals are one: a launcher sends it, and the guard


class Interrupts:
    """What Ctrl-C does at the moment. In `with` it takes the signal (in the main thread)."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None  # the answer that is being written
        self._typing = False
        self._last = 0.0

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def answering(self, stop: Callable[[], None]) -> Iterator[None]:
        """While an answer is written: `stop` lets it end, from any thread."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None

    @contextlib.contextmanager
    def typing(self) -> Iterator[None]:
        """While a line is typed: the signal raises KeyboardInterrupt."""
        self._typing = True
        try:
            yield
        finally:
            self._typing = False

    def stop_answer(self) -> bool:
        """Stop the answer that is being written; return whether there is one. From any thread."""
        stop = self._stop
        if stop is not None:
            stop()
        return stop is not None

    def _on_signal(self, _number: int, _frame) -> None:
        now = time.monotonic()
        again, self._last = now - self._last < _TOGETHER, now
        if not again and not self.stop_answer() and self._typing:
            raise KeyboardInterrupt
