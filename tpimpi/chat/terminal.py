"""The terminal that the user sits at, also where a launcher stands between.

Under mpirun the standard streams of rank 0 are pipes, and the launcher has their other ends at the
terminal. It goes on passing on what is typed; but who may open a terminal may say how keys are
treated there. So rank 0 opens what the launcher has as its standard input, and lets Ctrl-C be a key
like others: no signal reaches the launcher, of which Open MPI's would end all ranks at once. Text
goes straight to the terminal, in one order with the lines that are edited there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import termios
from collections.abc import Iterator

from tpimpi.guard import launchers

INTERRUPT, END = b"\x03", b"\x04"  # Ctrl-C, Ctrl-D
_LFLAG, _IFLAG, _CC = 3, 0, 6  # of what tcgetattr(3) gives
_WHILE_KEYS = termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG
_INPUT = termios.IXON | termios.IXOFF | termios.ICRNL | termios.INLCR | termios.IGNCR


def find() -> int | None:
    """Return an open file of the user's terminal, None where none is at both ends of the streams.

    None as well where it belongs to another program at the moment, as to the shell that has put
    this one into the background.
    """
    if os.isatty(0) and os.isatty(1):
        with contextlib.suppress(OSError):  # no shell shares it
            if os.tcgetpgrp(0) != os.getpgrp():
                return None
        return _open(os.ttyname(0))
    kind = os.fstat(0).st_mode
    head = launchers.head(os.getppid())
    if head is None or not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return None
    if not launchers.is_in_foreground(head):
        return None
    number = _open(f"/proc/{head}/fd/0")
    if number is None:
        return None
    with contextlib.suppress(OSError):  # it has ended
        out = os.stat(f"/proc/{head}/fd/1")
        if os.isatty(number) and os.fstat(number).st_rdev == out.st_rdev:
            return number
    os.close(number)
    return None


def _open(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_NOCTTY)
    return None


@contextlib.contextmanager
def ours(number: int, single_keys: bool) -> Iterator[None]:
    """Let the terminal pass Ctrl-C and Ctrl-D on as they are typed, as long as the block lasts.

    With `single_keys` all other keys are passed on one by one, too, and not shown; else the
    terminal passes on lines, edited as it always does. After the block, or the sudden end of this
    process, it is as it was before.
    """
    before = termios.tcgetattr(number)
    now = termios.tcgetattr(number)
    if single_keys:
        now[_LFLAG] &= ~_WHILE_KEYS
        now[_IFLAG] &= ~_INPUT
        now[_CC][termios.VMIN], now[_CC][termios.VTIME] = 1, 0
    else:
        now[_LFLAG] &= ~termios.ISIG
        now[_CC][termios.VEOF] = os.fpathconf(number, "PC_VDISABLE").to_bytes(1, "little")
        now[_CC][termios.VEOL], now[_CC][termios.VEOL2] = INTERRUPT, END  # they end a line
    # Under Open MPI this process is in the background, which must not stop it.
    unstopped = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with _sitter(number):
            termios.tcsetattr(number, termios.TCSADRAIN, now)
            try:
                yield
            finally:
                with contextlib.suppress(termios.error):  # it has been closed
                    termios.tcsetattr(number, termios.TCSADRAIN, before)
    finally:
        signal.signal(signal.SIGTTOU, unstopped)


@contextlib.contextmanager
def _sitter(number: int) -> Iterator[None]:
    """Keep a process that puts the terminal back if this one ends within the block."""
    saved = subprocess.run(["stty", "-g"], stdin=number, capture_output=True, text=True, check=True)
    end, held = os.pipe()  # `held` is closed with this process
    sitter = subprocess.Popen(
        ["sh", "-c", 'read -r _; exec stty "$0" <&1', saved.stdout.strip()], stdin=end,
        stdout=number, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    try:
        yield
    finally:
        sitter.kill()
        sitter.wait()
        os.close(held)
