"""A file read past the page cache in big pieces, or beside it where that is refused."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from tpimpi.errors import MachineError


class DirectFile:
    """A file open for reading with O_DIRECT (Linux), F_NOCACHE (macOS), or plainly (tmpfs)."""

    def __init__(self, path: Path):
        self._path = path
        self._direct = False
        if hasattr(os, "O_DIRECT"):
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
                self._direct = True
                return
            except OSError:
                pass  # a file system without it: the buffered way below
        self._fd = os.open(path, os.O_RDONLY)
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(self._fd, fcntl.F_NOCACHE, 1)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self, into: memoryview, start: int, needed: int) -> None:
        """Fill `into` from byte `start`; bytes after the first `needed` may be beyond the end.

        `start`, the length and the address of `into` are multiples of `shards.layout.PAGE`. Safe
        in many threads. Raises MachineError.
        """
        got = 0
        while got < needed:
            try:
                count = os.preadv(self._fd, [into[got:]], start + got)
            except OSError as error:
                if self._direct and error.errno == errno.EINVAL:
                    self._fd, self._direct = os.open(self._path, os.O_RDONLY), False
                    continue
                raise MachineError(
                    f"reading {self._path} at byte {start + got} failed ({error.strerror})"
                ) from error
            if not count:
                raise MachineError(
                    f"{self._path} ended at byte {start + got} while it was read; was it "
                    "replaced? Check it with `tpimpi verify`"
                )
            got += count
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, start, len(into), os.POSIX_FADV_DONTNEED)
