"""How messages reach the ranks: several at once are on their way, and none is waited for.

They stay in memory as long as they are on their way, so who posts them bounds how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

from tpimpi.shards.message import END, HEADER_BYTES, message
from tpimpi.shards.writing import WriterThread

TAG, STOP = 7, 8  # of messages, and of a rank's word that it can't take more
RECEIVES = 4  # that a rank has posted
LOOKS, NAPS = 8, (20e-6, 200e-6)  # looks at MPI between two naps; seconds of these

_abandoned: list = []  # what MPI may still read or write, after a conversion that was broken off


def rest_until(ready: Callable[[], bool]) -> None:
    """Sleep in naps until `ready`, which looks at MPI.

    Each look moves some ten KiB of a message only, where MPI has cut it into many (UCX over TCP).
    """
    nap = NAPS[0]
    while True:
        for _ in range(LOOKS):
            if ready():
                return
        time.sleep(nap)
        nap = min(1.5 * nap, NAPS[1])


class Outbox:
    """Messages on their way: to other ranks by MPI, to this rank's own writer in a thread."""

    def __init__(self, comm: MPI.Comm, own: WriterThread | None):
        self._comm, self._own = comm, own
        self._requests: list[MPI.Request] = []
        self._sent: list[tuple[int, np.ndarray]] = []  # to whom, what

    @property
    def busy(self) -> bool:
        """Whether something has yet to arrive."""
        return bool(self._requests) or (self._own is not None and self._own.busy)

    def post(self, rank: int, data: np.ndarray) -> None:
        """Send a message, or hand it to this rank's writer."""
        if rank == self._comm.rank:
            self._own.take(data)
        else:
            self._requests.append(self._comm.Isend(data, dest=rank, tag=TAG))
            self._sent.append((rank, data))

    def refused(self) -> bool:
        """Return whether a rank has told that it can't take more."""
        refused = False
        while self._comm.Iprobe(source=MPI.ANY_SOURCE, tag=STOP):
            self._comm.Recv(np.empty(1, np.uint8), source=MPI.ANY_SOURCE, tag=STOP)
            refused = True
        return refused

    def end(self, rank: int) -> None:
        """Tell a rank that nothing more will come."""
        for _ in range(RECEIVES):
            self.post(rank, message(END))

    def arrived(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rank and message of what has arrived since the last time."""
        if self._own is not None:
            for data in self._own.written():
                yield self._comm.rank, data
        for number in sorted(MPI.Request.Testsome(self._requests) or (), reverse=True):
            del self._requests[number]
            yield self._sent.pop(number)

    def abandon(self) -> None:
        """Leave what is on its way to MPI, which may still read it."""
        _abandoned.extend(zip(self._requests, self._sent, strict=True))


class Inbox:
    """Messages from rank 0, for which several receives are posted at any time.

    They end with as many END as there are receives, so that none is left that nothing comes for.
    """

    def __init__(self, comm: MPI.Comm, nbytes: int):
        self._comm, self._posted = comm, []
        for _ in range(RECEIVES):
            self.give_back(np.empty(HEADER_BYTES + nbytes, np.uint8))

    def give_back(self, data: np.ndarray) -> None:
        """Let the next message come into memory that one has come in."""
        self._posted.append((self._comm.Irecv(data, source=0, tag=TAG), data))

    @property
    def empty(self) -> bool:
        """Whether no receive is posted."""
        return not self._posted

    def ready(self) -> bool:
        """Return whether the next message is there."""
        return self._posted[0][0].Test()

    def take(self) -> np.ndarray:
        """Return the next message, which is there; it stays until it is given back."""
        return self._posted.pop(0)[1]

    def abandon(self) -> None:
        """Leave what is posted to MPI, which may still write to it."""
        _abandoned.extend(self._posted)
