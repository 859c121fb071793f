"""What rank 0 tells the user beside the text that it writes, in one order with it."""

from __future__ import annotations

import array
import os
import stat
import sys
import time

PATIENCE, NAP = 0.5, 0.001  # seconds to wait for a reader at most, and between two looks


def say(text: str) -> None:
    """Print a sentence on standard error, after all that was written to standard output so far.

    Under a launcher both are pipes, which it may read in any order: so each is read before the
    other is written to.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
        _until_read(sys.stdout)
    print(f"tpimpi: {text}", file=sys.stderr, flush=True)
    if sys.stderr is not None:
        _until_read(sys.stderr)


def _until_read(stream) -> None:
    """Wait until a pipe's reader has taken everything, but not for a reader that sleeps."""
    try:
        number = stream.fileno()
        if not stat.S_ISFIFO(os.fstat(number).st_mode):
            return
    except (OSError, ValueError):  # nothing that the system knows, as in tests
        return
    import fcntl
    import termios

    left, end = array.array("i", [1]), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        fcntl.ioctl(number, termios.FIONREAD, left)
        if left[0] == 0:
            return
        time.sleep(NAP)
