"""A file read past the page cache in big pieces, or beside it where that is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

from tpimpi.errors import MachineError
from tpimpi.shards.layout import PAGE


class DirectFile:
    """A file open for reading with O_DIRECT (Linux), F_NOCACHE (macOS), or plainly (tmpfs).

    `opened` is a descriptor of it: where the system can, that file is opened again, though another
    may have been put in its place.
    """

    def __init__(self, path: Path, opened: int | None = None):
        self._path = path
        self._direct = False
        again = f"/proc/self/fd/{opened}"
        name = again if opened is not None and os.path.exists(again) else path
        if hasattr(os, "O_DIRECT"):
            try:
                self.fd = os.open(name, os.O_RDONLY | os.O_DIRECT)
                self._direct = True
                return
            except OSError:
                pass  # a file system without it: the buffered way below
        self.fd = os.open(name, os.O_RDONLY)
        if sys.platform == "darwin":
            fcntl.fcntl(self.fd, fcntl.F_NOCACHE, 1)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def read(self, into: memoryview, start: int, needed: int) -> None:
        """Fill `into` from byte `start`; bytes after the first `needed` may be beyond the end.

        `start`, the length and the address of `into` are multiples of `PAGE`. Safe in many threads.
        Raises MachineError.
        """
        got = 0
        while got < needed:
            direct = self._direct
            at = got // PAGE * PAGE if direct else got  # where a direct read may go on
            try:
                count = os.preadv(self.fd, [into[at:]], start + at)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise MachineError(
                        f"reading {self._path} at byte {start + at} failed ({error.strerror})"
                    ) from error
                count = 0
            if at + count > got:
                got = at + count
            elif direct:
                self._read_plainly()  # direct reads are refused, or end in the middle of a page
            else:
                raise MachineError(
                    f"{self._path} ended at byte {start + got} while it was read; was it "
                    "replaced? Check it with `tpimpi verify`"
                )
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, start, len(into), os.POSIX_FADV_DONTNEED)

    def _read_plainly(self) -> None:
        """Turn O_DIRECT off, for all threads at once: the file stays the one that was opened."""
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self._direct = False
