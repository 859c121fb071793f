"""What was typed before, kept in a file that only its owner may read."""

from __future__ import annotations

import os
from pathlib import Path

from tpimpi.errors import MachineError
from tpimpi.paths import state_directory

_MOST = 1 << 20  # bytes: of a longer file the first half is forgotten


def history_file() -> Path:
    """Return the file, made if it was not there. Raises MachineError where it can't be."""
    path = state_directory() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with open(number, "r+b") as file:
            os.fchmod(number, 0o600)
            if os.fstat(number).st_size > _MOST:
                file.seek(-_MOST // 2, os.SEEK_END)
                kept = file.read().partition(b"\n\n")[2]  # from where an entry begins
                file.seek(0)
                file.write(b"\n" + kept)
                file.truncate()
    except OSError as error:
        raise MachineError(
            f"what is typed can't be kept in {path} ({error.strerror}); --no-history keeps nothing"
        ) from error
    return path
