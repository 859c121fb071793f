"""Where the server listens, who may use it, and what it takes at most."""

from __future__ import annotations

from dataclasses import dataclass

PORT = 8000
QUEUE = 64  # texts that wait


@dataclass(frozen=True)
class FaceSettings:
    """How the server is reached. Seconds.

    `keys` are the API keys of which a request must have one (none: no key is asked for), `origins`
    the web pages' origins that may use the server besides its own page, `names` what the model is
    called, the first in answers.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    keys: tuple[str, ...] = ()
    insecure: bool = False  # other machines may use it without a key
    certificate: str | None = None  # PEM files
    private_key: str | None = None
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    queue: int = QUEUE
    access_log: str | None = "-"  # a file; -: standard output; None: no log
    ping_seconds: float = 5.0  # of silence, after which a stream says that it lives
    body_seconds: float = 60.0  # in which a request's body must have come
    closing_seconds: float = 5.0  # that clients have to read the last of their answers


HEAD_SECONDS = 30.0  # in which the head of a connection's next request must have come
SPARE_FILES = 64  # of those that a process may open, kept for what are no connections
FREE = 16 << 10  # bytes of each body that are not counted
HELD = 4  # times the largest body: what bodies that are being read may have together
SMALL = 256 << 10  # bytes that every body may have
PER_TOKEN = 24  # ... and for each token of the context; of most languages a token has four
TIMES = 36  # the memory of a body that is read, at worst: a message of 28 bytes is many objects
SERVING = 12 << 20  # what many requests at once take besides, and a grammar


def most_body(context: int) -> int:
    """Return the bytes of the largest body that may be a request for this context."""
    return SMALL + PER_TOKEN * context


def memory_of_serving(context: int) -> int:
    """Return the bytes that a server takes while it answers, beyond those at its start."""
    return SERVING + (TIMES + HELD) * most_body(context)
