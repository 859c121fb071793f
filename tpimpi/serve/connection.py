"""A connection of HTTP: how many there may be, and how long one may be without a request."""

from __future__ import annotations

import asyncio
import contextlib
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

from tpimpi.serve.settings import HEAD_SECONDS, SPARE_FILES

MOST_FILES = 1 << 16


def most_connections() -> int:
    """Return how many connections there may be at once: fewer than files that may be open.

    Of those this process gets as many as the system grants.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS grants less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(files, MOST_FILES) if files != resource.RLIM_INFINITY else MOST_FILES
    return max(files - SPARE_FILES, files // 2)


class Connection(H11Protocol):
    """uvicorn's protocol, which bounds neither: who sends nothing would keep a file for ever."""

    most = MOST_FILES
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request, or close at once where there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.close()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what comes; what is no whole head of a request must become one in time."""
        super().data_received(data)
        if self._is_idle():
            if self._waiting is None:
                self._wait()
        else:
            self._stop_waiting()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._waited)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _waited(self) -> None:
        self._waiting = None
        if self._is_idle():
            self.transport.close()
