"""The launchers' processes above a rank, and how they are ended where they would wait for ever.

With a host that can't be reached hydra waits until Ctrl-C is pressed again, Open MPI's prterun
until it is pressed three times; what they started on that host waits for them in its turn. Each
look here is at this machine's /proc only: SLURM's own processes are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_HEADS = ("mpiexec.hydra", "mpiexec", "mpirun", "prterun")
_PROXIES = ("hydra_pmi_proxy", "prted")

# (seconds after the rank was to end, signal): what a user would do, then what ends any process.
_HEAD_SIGNALS = (
    (1.4, signal.SIGINT), (1.6, signal.SIGINT), (1.8, signal.SIGINT), (3.0, signal.SIGKILL)
)  # fmt: skip
_PROXY_SIGNALS = ((4.0, signal.SIGTERM), (6.0, signal.SIGKILL))
NAP = 0.1


def rename(title: str) -> None:
    """Show another command line for this process in `ps`, so that it is not taken for the rank."""
    if sys.platform != "linux":
        return
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        data = title.encode()[: end - start - 1]
        ctypes.memmove(start, data, len(data))


def see_off(rank: int, launcher: int, patience: float = 0.0, text: str = "") -> None:
    """Let a process of its own end the launcher if that waits, once the ranks here have gone.

    Rank 0 ends the launcher's head if that is on its machine, the others what the launcher has
    started on theirs. It may wait so many seconds of `patience` first; then the text is told.
    """
    names, signals = (_HEADS, _HEAD_SIGNALS) if rank == 0 else (_PROXIES, _PROXY_SIGNALS)
    found = _ancestor(launcher, names)
    if found is None or os.fork():
        return
    try:
        os.setsid()  # the launcher may end the process group that this one was of
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # whose end launchers wait for
            os.dup2(nowhere, number)
        os.closerange(3, 1024)
        if patience and _has_ended_within(found, patience):
            return
        if text:
            _write(found[0], text)
        _end(found, signals)
    finally:
        os._exit(0)


def head(pid: int) -> int | None:
    """Return the launcher's head above a process, None where it is not on this machine."""
    found = _ancestor(pid, _HEADS)
    return found[0] if found else None


def is_in_foreground(pid: int) -> bool:
    """Tell whether the terminal of a process is its own at the moment: it reads what is typed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[2] == fields[5]  # its group, and its terminal's, see proc(5)


def standard_error(launcher: int) -> int:
    """Return a file that leads to the user while all ranks are being ended.

    Open MPI's prterun passes nothing on then: its own standard error is the one that is read.
    """
    if _ancestor(launcher, _HEADS) == _identity(launcher):
        with contextlib.suppress(OSError):  # not a file, as a socket
            return _open_errors(launcher)
    return 2


def _open_errors(pid: int) -> int:
    return os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)


def starts_directly(launcher: int) -> bool:
    """Tell whether that process is a launcher's own, not a script that goes on after the rank."""
    return _ancestor(launcher, _HEADS + _PROXIES) == _identity(launcher)


def abort(launcher: int, code: int) -> bool:
    """Let hydra end all ranks, as MPI_Abort does; return whether it was told.

    It would wait for the others of a rank that fails in silence. Any other launcher ends them when
    a rank's process has failed.
    """
    number = os.environ.get("PMI_FD", "")
    if not number.isdigit() or not _ancestor(launcher, _PROXIES[:1]):
        return False
    try:
        os.write(int(number), b"cmd=abort exitcode=%d\n" % code)  # PMI's version 1, as hydra's
    except OSError:  # it has ended
        return False
    return True


def _write(pid: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_open_errors(pid), f"tpimpi: {text}\n".encode())


def _end(process: tuple[int, str], signals: tuple) -> None:
    start = time.monotonic()
    for seconds, number in signals:
        if _has_ended_within(process, start + seconds - time.monotonic()):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process[0], number)


def _has_ended_within(process: tuple[int, str], seconds: float) -> bool:
    """Wait so long at most for a process to end; return whether it has."""
    end = time.monotonic() + seconds
    while _identity(process[0]) == process:
        if time.monotonic() >= end:
            return False
        time.sleep(NAP)
    return True


def _ancestor(pid: int, names: tuple[str, ...]) -> tuple[int, str] | None:
    """Return the nearest process above that has one of the names, as `_identity` tells it."""
    while pid > 1:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        name = text[text.index("(") + 1 : text.rindex(")")]
        if name in names:
            return _identity(pid)
        pid = int(text.rpartition(")")[2].split()[1])
    return None


def _identity(pid: int) -> tuple[int, str] | None:
    """Return a process's number and when it started; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (pid, fields[19])
