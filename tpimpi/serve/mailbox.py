"""From the engine's thread to the event loop: what a text's listener is told arrives in a queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Bring events from any thread to the event loop; all that have come travel with one waking.

    A waking costs a system call, and the thread that writes is the one that computes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._letters, self._woken = loop, deque(), False

    def listener(self, queue: asyncio.Queue, index: int) -> Callable[[object], None]:
        """Return what puts (index, event) into a queue, to be called in another thread."""

        def listen(event: object) -> None:
            self._letters.append((queue, (index, event)))
            if not self._woken:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
                    self._loop.call_soon_threadsafe(self._deliver)

        return listen

    def _deliver(self) -> None:
        self._woken = False  # first: what comes from now on wakes again
        while self._letters:
            queue, letter = self._letters.popleft()
            queue.put_nowait(letter)
