"""Tell that a wait lasts: for another rank, or for a disk that takes what was written."""

from __future__ import annotations

import sys
import threading
import time

from tpimpi.progress import EVERY_SECONDS
from tpimpi.units import duration


class Waiting:
    """From `begin()` to the end of the block tell every two seconds that `title` still lasts.

    A thread tells it, as this rank waits in MPI or in the system. Ranks other than 0 are silent.
    """

    def __init__(self, title: str, rank: int):
        self._title, self._speaks = title, rank == 0
        self._over = threading.Event()
        self._teller: threading.Thread | None = None

    def __enter__(self) -> Waiting:
        return self

    def begin(self) -> None:
        """Begin to wait: what this rank told of its own work has come to its end."""
        if self._speaks:
            self._teller = threading.Thread(target=self._tell, daemon=True)
            self._teller.start()

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._teller is not None:
            self._teller.join()

    def _tell(self) -> None:
        start = time.monotonic()
        while not self._over.wait(EVERY_SECONDS):
            seconds = duration(time.monotonic() - start)
            print(f"tpimpi: {self._title}, for {seconds}", file=sys.stderr, flush=True)
