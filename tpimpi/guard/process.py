"""A process beside each rank that sees it end, and can say and do what the rank then can't.

The process that the launcher starts forks: the child is the rank, the first stays as its guard. So
the guard knows exactly how the rank ended; a launcher that ends all ranks kills a guard with its
rank (they are of one process group), and only the guard of the rank that died first speaks. Python
runs no handler while MPI or a kernel has the rank: the guard can end it then, too, and tell the
figures so far, which lie in memory that both have, see `status`.

It also judges silence. The heartbeats (`comm.heartbeat`) count up in that memory; a count that
stands still for `--timeout` seconds is a rank that is stopped or can't be reached. A slow one beats
from a thread of its own. Time in which this machine slept does not count.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

from tpimpi import launch, status
from tpimpi.guard import launchers
from tpimpi.guard.memory import OutOfMemory
from tpimpi.guard.silence import TICK, Silence
from tpimpi.status import Status

MOMENT = 0.6  # seconds that a rank has to end by itself after a signal; Open MPI kills after 1
LINGER = 2.0  # ... that a launcher has to end a rank whose peer was the first to die
FAILED = 1  # exit code
STILL_WAITING = (
    "all is done, but mpirun waits for a host that doesn't answer; it is ended after {:.0f} s "
    "(--timeout)"
)

# Of a launcher, or of a user.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # see prctl(2)


def stand_by() -> None:
    """Let a guard stand by where a launcher started several ranks; return in the rank only."""
    ranks = launch.launched_size()
    if ranks == 1 or not hasattr(os, "fork"):
        return
    own = status.of_rank(min(launch.launched_rank(), ranks - 1), ranks)
    if "mpi4py.MPI" in sys.modules:  # MPI has begun here, and would not follow into a child
        return
    out_of_memory, launcher = OutOfMemory(), os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    rank = os.fork()
    if rank:
        guard = _Guard(rank, own, out_of_memory, launcher)
        code = FAILED
        try:
            code = guard.run()
        finally:
            os._exit(code)  # without what the rank's exit is to do
    own.guarded = True
    _die_with_the_guard()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _die_with_the_guard() -> None:
    if sys.platform == "linux":
        import ctypes

        guard = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(FAILED)


class _Guard:
    def __init__(self, pid: int, own: Status, out_of_memory: OutOfMemory, launcher: int):
        self._pid, self._status = pid, own
        self._out_of_memory, self._launcher = out_of_memory, launcher
        self._name = f"rank {own.rank} on {own.own.host}"
        self._deadline: float | None = None  # when the rank is killed
        self._signal = 0  # that ends it
        self._in_grace = False  # it was asked to end, and does so in its own time
        self._silence = Silence(own)
        self._rank_has_ended = False

    def run(self) -> int:
        """Wait for the rank's end; return the exit code."""
        launchers.rename(f"guard of rank {self._status.rank}")
        self._woken, written = os.pipe()
        os.set_blocking(written, False)
        for number in (*_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        while True:
            ended, state = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                self._rank_has_ended = True
                return self._ended(os.waitstatus_to_exitcode(state))
            left = TICK if self._deadline is None else self._deadline - time.monotonic()
            number = self._signalled_within(min(TICK, max(left, 0.01)))
            if number:
                self._pass_on(number)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._send(signal.SIGKILL)
                if self._in_grace and not self._signal:
                    self._signal = signal.SIGTERM
            elif os.getppid() != self._launcher:
                self._end_rank()
            elif self._deadline is None:
                self._judge()

    def _signalled_within(self, seconds: float) -> int:
        """Return a signal that is to end this rank; 0 after those seconds, or where it ended."""
        end = time.monotonic() + seconds
        while select.select([self._woken], [], [], max(0.0, end - time.monotonic()))[0]:
            numbers = os.read(self._woken, 64)
            asked = [number for number in numbers if number in _SIGNALS]
            if asked or not self._rank_has_ended:
                return asked[0] if asked else 0
        return 0

    def _pass_on(self, number: int) -> None:
        """Tell the figures so far, and let the rank end by itself, as long as that is a moment."""
        own = self._status
        self._send(number)
        if number == signal.SIGINT and own.takes_interrupts:
            return
        if own.grace and not self._in_grace:
            self._in_grace, self._deadline = True, time.monotonic() + own.grace
            return
        if self._signal:
            return
        self._signal, self._deadline = number, time.monotonic() + MOMENT
        if own.rank == 0 and not own.said:
            said = own.ended_line(number)
            if said:
                self._say(said, launchers.standard_error(self._launcher))
            own.said = True
        launchers.see_off(own.rank, self._launcher)  # now: it may end this process before long

    def _send(self, number: int) -> None:
        """Send the rank a signal that may end it; in MPI_Init it would leave memory behind."""
        launch.forget_shared_memory(self._pid)
        os.kill(self._pid, number)

    def _end_rank(self) -> None:
        self._status.said = True
        self._deadline = 0.0

    def _judge(self) -> None:
        told = self._silence.look()
        if told:
            self._say(told)
        if self._silence.over:
            self._end_rank()

    def _ended(self, code: int) -> int:
        """Say what the rank could not, and let all others end; return the exit code."""
        own = self._status
        interrupted = self._signal != 0 or code in (128 + number for number in _SIGNALS)
        unexpected = code != 0 and not interrupted and not own.said
        if unexpected:
            self._mourn(code)
        elif code == 0 and own.rank == 0 and self._may_be_waited_for():
            launchers.see_off(0, self._launcher, own.timeout, STILL_WAITING.format(own.timeout))
        if interrupted or unexpected or own.alone or self._silence.over:
            if not self._signal:
                launchers.see_off(own.rank, self._launcher)
            code = 128 + self._signal if self._signal else code if code > 0 else FAILED
            if launchers.abort(self._launcher, code):
                self._signalled_within(LINGER)  # soon this process is killed
        return code if code >= 0 else FAILED

    def _may_be_waited_for(self) -> bool:
        """Whether mpirun may wait for another host. On this one it waits for who reads the text."""
        return self._status.has_other_hosts and launchers.starts_directly(self._launcher)

    def _mourn(self, code: int) -> None:
        """Say how the rank ended, which could not say it."""
        if code == -signal.SIGKILL:
            how = "was killed"
            if self._out_of_memory.happened():
                how += " by the system, as memory ran out,"
        else:
            # It may be that MPI ended it as another rank had died: whose guard speaks, and soon
            # the launcher ends this one, too.
            if self._signalled_within(LINGER) or os.getppid() != self._launcher:
                return
            how = f"ended with {code}" if code > 0 else f"crashed ({signal.Signals(-code).name})"
        own = self._status
        figures = f" ({own.figures})" if own.figures else ""
        self._say(f"{self._name} {how} while {own.own.doing}{figures}; {own.then}")

    def _say(self, text: str, number: int = 2) -> None:
        """Write a line of its own to standard error, if anybody is there to read it."""
        begin = "\n" if self._status.within_line else ""
        with contextlib.suppress(OSError):  # the launcher has gone
            os.write(number, f"{begin}tpimpi: {text}\n".encode())
