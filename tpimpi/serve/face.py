"""The HTTP face: a thread of rank 0 that answers from before the model is loaded to the end.

The thread knows nothing of MPI. What it asks of the engine goes through `Service`, which any thread
may call, and comes back through `mailbox`.
"""

from __future__ import annotations

import logging
import sys
import threading

import uvicorn

from tpimpi.serve.address import base_url, bound_sockets, can_be_read, check_certificate
from tpimpi.serve.app import application
from tpimpi.serve.connection import Connection, most_connections
from tpimpi.serve.context import Context
from tpimpi.serve.served import Served
from tpimpi.serve.settings import FaceSettings

# Seconds for which one thread may keep Python to itself while another wants it: the one that
# computes must not wait 5 ms, Python's default, each time that the server is at work.
SWITCH_SECONDS = 0.5e-3
STARTED_SECONDS = 30.0
KEEP_ALIVE = 75  # seconds that a connection may be idle: clients keep theirs for as long


class Face:
    """A server of HTTP on rank 0, from `open` to `close`. Its methods may be called anywhere."""

    def __init__(self, settings: FaceSettings):
        self._settings, self._context = settings, Context(settings)
        self._server: uvicorn.Server | None = None
        self.url, self.can_be_read = "", False

    def open(self) -> None:
        """Begin to answer: that the model is loading. Raises UserError."""
        settings = self._settings
        check_certificate(settings)
        sockets = bound_sockets(settings)
        self.url, self.can_be_read = base_url(settings, sockets), can_be_read(settings, sockets)
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        for name in ("uvicorn", "asyncio"):  # what users need is said by us
            logging.getLogger(name).setLevel(logging.CRITICAL)
        Connection.most = most_connections()
        config = uvicorn.Config(
            application(self._context), http=Connection, lifespan="off", ws="none",
            log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
            timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=int(settings.closing_seconds),
            ssl_certfile=settings.certificate, ssl_keyfile=settings.private_key,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=(sockets,), name="http", daemon=True
        )
        self._thread.start()

    def serve(self, served: Served) -> None:
        """Answer requests from now on, by this model."""
        self._context.metrics.serve(served.service)
        self._context.served, self._context.state = served, "ok"

    def stop(self, seconds: float) -> None:
        """Take no more requests; what runs has so many seconds to end."""
        context = self._context
        if context.state != "ended":
            context.state = "stopping"
        if context.served is not None:
            context.served.service.stop(seconds=seconds)

    def end(self, error: BaseException) -> None:
        """Tell who asks from now on that the engine has ended, and why."""
        self._context.why, self._context.state = str(error) or type(error).__name__, "ended"

    def close(self) -> None:
        """Let clients have the last of their answers, and end. Once is enough."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._context.state in ("loading", "ok"):
            self._context.state = "stopping"
        server.should_exit = True
        self._thread.join(self._settings.closing_seconds + 1)
        if self._thread.is_alive():
            server.force_exit = True
