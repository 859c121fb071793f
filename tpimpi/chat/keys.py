"""What the user types, read by a thread of its own: the main one is in MPI while a text is made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable

from tpimpi.chat.interrupts import Interrupts
from tpimpi.chat.terminal import INTERRUPT

_READ = 1 << 20  # bytes


class Keys:
    """Standard input as it comes, handed to `take` piece by piece; b"" is its end.

    What is typed ahead while an answer is written is handed on, too, but for Ctrl-C: it stops the
    answer. In a pipe there is no such key (`interrupts` is None).
    """

    def __init__(self, number: int, take: Callable[[bytes], None], interrupts: Interrupts | None):
        self._number, self._take, self._interrupts = number, take, interrupts
        # hydra ends a job whose standard input is full: a long text that is pasted must fit.
        with contextlib.suppress(OSError, AttributeError):  # no pipe; not on this system
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, _READ)
        threading.Thread(target=self._run, name="keys", daemon=True).start()

    def _run(self) -> None:
        while data := self._read():
            if self._interrupts and INTERRUPT in data and self._interrupts.stop_answer():
                data = data.replace(INTERRUPT, b"")
            if data:
                self._take(data)
        self._take(b"")

    def _read(self) -> bytes:
        try:
            return os.read(self._number, _READ)
        except OSError:  # the terminal was closed
            return b""
