"""How a server ends by a signal: running answers first, on all ranks."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpimpi import status
from tpimpi.console import say

if TYPE_CHECKING:
    from tpimpi.serve.face import Face

TWICE = 0.5  # seconds within which launchers may send the same signal again
CLOSING = 15.0  # ... that it takes at most to end after the last answer


@contextlib.contextmanager
def graceful(face: Face | None, seconds: float) -> Iterator[None]:
    """Let the first signal in a block stop the server, and a second one end the program.

    Only rank 0 has a server to stop; the other ranks go on until it has stopped.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped: list[float] = []  # when

    def stop(number: int, frame=None) -> None:
        now = time.monotonic()
        if not stopped:
            stopped.append(now)
            if face is not None:
                face.stop(seconds)
                # Not here: what this interrupts may be in the midst of telling something.
                threading.Thread(target=tell, name="stopping").start()
        elif not status.current.guarded and now - stopped[0] > TWICE:
            before[number](number, frame)

    def tell() -> None:
        say(
            f"stopping: no more requests are taken, running answers have {seconds:g} s to end; "
            "another signal ends at once"
        )

    for number in before:
        signal.signal(number, stop)
    status.current.grace = seconds + CLOSING
    try:
        yield
    finally:
        # A launcher's second copy of the signal may still be on its way: the end is a good one.
        if not stopped:
            status.current.grace = 0.0
            for number, handler in before.items():
                signal.signal(number, handler)
