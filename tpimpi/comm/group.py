"""The ranks as one group: allreduces and their time, agreement before an error is raised."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mpi4py import MPI

from tpimpi import launch
from tpimpi.comm.allreduce import Exchange
from tpimpi.comm.sums import AUTO, Sums
from tpimpi.errors import MachineError, UserError, describe

CHUNK = 8 << 20  # bytes in one message: far below MPI's 2^31 limit, and small beside any budget
TRIES, NAPS = 20, (20e-6, 200e-6)  # looks before the first nap; seconds of the naps
ALERT = 0.02  # seconds that a rank looks out for rank 0's next word before it sleeps
IDLE, LONG_NAP = 1.0, 700e-6  # seconds without a word, after which naps are longer; of these
PATIENCE = 30.0  # seconds that a rank that leaves waits for the others to hear of it
WORD_BYTES = 256 << 10  # up to which rank 0 sends to each rank itself, in one hop
STEP_TAG, LOGITS_TAG = 3, 4


def _kernel() -> str:
    """Return what names the running system, also where several devices are emulated on it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # no Linux
        return socket.gethostname()


class Group:
    """A private duplicate of a communicator, the ranks of this node, and the time spent in sums.

    Collective to make and to `close()`.
    """

    def __init__(self, comm: MPI.Comm):
        self.comm = comm.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.host = socket.gethostname()
        mine = _kernel()
        self.neighbours = self.comm.allgather(mine).count(mine)  # ranks that share this machine
        self.network_seconds = 0.0  # in sums and in gathering logits
        self.late_seconds = 0.0  # of those: beyond what they take where no rank is late
        self.idle_seconds = 0.0  # until rank 0 has told the next step
        self.on_wait: Callable[[float, float], None] | None = None  # told begin and end of each
        self.patient = False
        self.sums = Sums(Exchange(self.comm, self._wait, self._meet))
        self.left = False  # whether a rank has told that it leaves
        self._unheard: tuple = ()  # what MPI may still write to

    def crowded(self, threads: int) -> bool:
        """Tell whether virtual devices, of whom MPI doesn't know it, share too few cores."""
        cores = launch.available_cores()
        return self.node.size < self.neighbours and self.neighbours * threads > cores

    @property
    def patient(self) -> bool:
        """Whether to sleep, not to spin, until the others come."""
        return self._patient

    @patient.setter
    def patient(self, value: bool) -> None:
        self._patient = value
        if value:
            launch.wake_punctually()

    def close(self) -> None:
        """Free both communicators (collective); do nothing where MPI has ended."""
        if not self.ended:
            self.node.Free()
            self.comm.Free()

    @property
    def ended(self) -> bool:
        """Whether MPI has ended, so that nobody can be reached any more."""
        return MPI.Is_finalized()

    def allreduce(self, buffer: np.ndarray) -> None:
        """Sum a float32 buffer over all ranks, in place (collective)."""
        if self.size == 1:
            return
        start = time.perf_counter()
        self.sums(buffer.reshape(-1))
        self._waited(start, self.sums.seconds_alone(buffer.nbytes))

    def _waited(self, start: float, alone: float = math.inf) -> None:
        end = time.perf_counter()
        self.network_seconds += end - start
        self.late_seconds += max(end - start - alone, 0.0)
        if self.on_wait is not None:
            self.on_wait(start, end)

    def _wait(self, requests: list[MPI.Request]) -> None:
        """Wait until all of some messages have passed."""
        if self.patient:
            self.rest_until(lambda: MPI.Request.Testall(requests))
        else:
            MPI.Request.Waitall(requests)

    def _meet(self) -> None:
        """Sleep until all ranks are here (collective): what follows in MPI then hardly waits.

        MPI's own waiting keeps a core busy, which readers and other ranks would have used.
        """
        if self.patient:
            self.rest_until(self.comm.Ibarrier().Test)

    def rest_until(self, ready: Callable[[], bool], longest: float = NAPS[1]) -> None:
        """Sleep until `ready`, in naps of at most `longest` seconds."""
        for _ in range(TRIES):
            if ready():
                return
        nap = NAPS[0]
        while not ready():
            time.sleep(nap)
            nap = min(1.5 * nap, longest)

    def await_word(self, buffer: np.ndarray) -> None:
        """Wait for what rank 0 tells next by `bcast`, however long (ranks other than 0).

        The buffer has at most WORD_BYTES. A rank that has nothing to do takes no core: it sleeps in
        naps so short that the next step begins within a millisecond.
        """
        start = time.perf_counter()
        request = self.comm.Irecv(buffer, 0, STEP_TAG)
        if not self.patient:
            while not request.Test() and time.perf_counter() - start < ALERT:
                os.sched_yield()
        nap = NAPS[0]
        if not request.Test():
            launch.wake_punctually()
        while not request.Test():
            time.sleep(nap)
            idle = time.perf_counter() - start > IDLE
            nap = LONG_NAP if idle else min(1.5 * nap, NAPS[1])
        self.idle_seconds += time.perf_counter() - start

    def settle_sums(self, strategy: str = AUTO, row: int = 1) -> None:
        """Choose how sums of rows of `row` numbers are merged, see `Sums.settle` (collective).

        MPI then has the memory that they need.
        """
        self.sums.settle(strategy, row)

    def bcast(self, buffer: np.ndarray) -> None:
        """Send rank 0's buffer to all (collective). Its time is rank 0's, not the network's."""
        if self.size == 1:
            return
        start = time.perf_counter()
        if buffer.nbytes > WORD_BYTES:
            self._meet()
            self.comm.Bcast(buffer, root=0)
        elif self.rank == 0:  # MPI would pass it on from rank to rank, each a hop later
            self._wait([self.comm.Isend(buffer, rank, STEP_TAG) for rank in range(1, self.size)])
        else:
            self._wait([self.comm.Irecv(buffer, 0, STEP_TAG)])
        if self.rank:
            self.idle_seconds += time.perf_counter() - start

    def agree(self, error: BaseException | None) -> None:
        """Raise the first rank's error on every rank, or nothing anywhere (collective).

        So no rank waits in a collective for one that has left. An error that is not one of ours is
        raised as it is where it happened.
        """
        request, failed = self._count_failed(error)
        request.Wait()
        if not failed.any():
            return
        first, rank, host = self._first(error)
        if error is not None and not isinstance(error, UserError | MachineError):
            error.agreed = True
            raise error
        # What rank 0 refuses is told where it is typed; what others can't do, lies with them.
        if self.size > 1 and (rank or isinstance(first, MachineError)):
            first = type(first)(f"{first} (rank {rank} on {host})")
        first.agreed = True  # every rank raises it, so every rank can leave in peace
        raise first from error

    def tell(self, error: BaseException) -> bool:
        """Let the others raise, where they agree next, that this rank leaves with an error.

        Return whether they have come to hear it, which is not waited for for ever.
        """
        request, failed = self._count_failed(error)
        end = time.monotonic() + PATIENCE
        while not request.Test():
            if time.monotonic() > end:
                self._unheard = (request, failed)
                return False
            time.sleep(NAPS[1])
        self._first(error, leaves=True)
        return True

    def _count_failed(self, error: BaseException | None) -> tuple[MPI.Request, np.ndarray]:
        """Begin to tell all ranks which of them have an error."""
        failed = np.zeros(self.size, np.int32)
        mine = np.array([error is not None], np.int32)
        return self.comm.Iallgather(mine, failed), failed

    def _first(
        self, error: BaseException | None, leaves: bool = False
    ) -> tuple[Exception, int, str]:
        """Return the first rank's error, one of ours, and where it happened (collective)."""
        mine = None
        if error is not None:
            known = isinstance(error, UserError | MachineError)
            sentence = str(error) if known else describe(error)
            mine = (isinstance(error, UserError), sentence, self.rank, self.host)
        told, leaving = zip(*self.comm.allgather((mine, leaves)), strict=True)
        self.left = any(leaving)
        users, sentence, rank, host = next(one for one in told if one is not None)
        return (UserError if users else MachineError)(sentence), rank, host

    @contextmanager
    def together(self):
        """Run a block in which any rank may fail, and raise the same error on all (collective).

        Only for blocks without collectives of their own.
        """
        error = None
        try:
            yield
        except (OSError, MemoryError) as e:
            error = MachineError(describe(e))
        except Exception as e:
            error = e
        self.agree(error)

    def gatherv_rows(self, part: np.ndarray, out: np.ndarray | None, counts: list[int]) -> None:
        """Gather [n, V_loc] parts side by side into rank 0's [n, V] (collective).

        `counts` are all ranks' V_loc. Rows travel one message per row, so that they land in place.
        """
        if self.size == 1:
            out[...] = part
            return
        start = time.perf_counter()
        if self.rank:
            self._wait([self.comm.Isend(row, 0, LOGITS_TAG) for row in part])
        else:
            ends = np.cumsum(counts)  # of each rank's columns
            out[:, : ends[0]] = part
            self._wait(
                [
                    self.comm.Irecv(row[ends[rank] - counts[rank] : ends[rank]], rank, LOGITS_TAG)
                    for row in out
                    for rank in range(1, self.size)
                ]
            )
        self._waited(start)
