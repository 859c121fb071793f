"""How partial sums are merged: the strategies of the allreduce, small functions on buffers.

Letters: n ranks, m numbers of the buffer, l the one-way delay of a link, and what a rank's link
takes in and gives out at the same time. All but the ring add every number in the same pairs,
wherever it stands in a buffer of whatever length: (x0 + x1) + (x2 + x3), as recursive doubling
does, and so does MPI (see `launch`). So they all give the same bits, on all ranks, and a sum may
take another of them for another length. A ring adds from rank to rank, and gives bits of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

SUM_BYTES = 1 << 20  # of one sum at most: strategies, and MPI, take as much memory again
SEGMENT_BYTES = 32 << 10  # of the ring's messages: a link is busy while the ranks before add
TAG, RESULT_TAG = 1, 2


@dataclass
class Exchange:
    """What a strategy works with: the ranks, memory for what they send, and how to wait."""

    comm: MPI.Comm
    wait: Callable[[list[MPI.Request]], None]  # until all of some messages have passed
    meet: Callable[[], None]  # before MPI waits by itself: sleep until all are here, or nothing

    def __post_init__(self) -> None:
        self.others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
        self.scratch = np.zeros(SUM_BYTES // 4 + self.comm.size, np.float32)  # what others send

    def parts(self, length: int) -> list[np.ndarray]:
        """Return memory for `length` numbers of each other rank."""
        scratch = self.scratch[: (self.comm.size - 1) * length]
        return list(scratch.reshape(self.comm.size - 1, length))


def add_in_pairs(x: np.ndarray, parts: Sequence[np.ndarray], rank: int) -> None:
    """Add to this rank's x [m] the other ranks' parts, in the pairs of recursive doubling.

    Spoils parts.
    """
    terms = [*parts[:rank], x, *parts[rank:]]
    beyond = len(terms) - (1 << len(terms).bit_length() - 1)  # pairs that the others wait for
    while len(terms) > 1:
        left, right = terms[: 2 * beyond : 2], terms[1 : 2 * beyond : 2]
        for a, b in zip(left, right, strict=True):
            np.add(a, b, out=x if len(terms) == 2 else a)
        terms = left + terms[2 * beyond :]
        beyond = len(terms) // 2


def by_mpi(exchange: Exchange, x: np.ndarray) -> None:
    """Let MPI add: its shared memory, and recursive doubling as `launch` sets it."""
    exchange.meet()
    exchange.comm.Allreduce(MPI.IN_PLACE, x, op=MPI.SUM)


def star(exchange: Exchange, x: np.ndarray) -> None:
    """Send all to rank 0, which adds and sends the sum back: 2 l, and 2 (n - 1) m at the hub."""
    comm = exchange.comm
    if comm.rank:
        exchange.wait([comm.Isend(x, 0, TAG)])
        exchange.wait([comm.Irecv(x, 0, RESULT_TAG)])
        return
    parts = exchange.parts(len(x))
    exchange.wait(
        [comm.Irecv(p, rank, TAG) for rank, p in zip(exchange.others, parts, strict=True)]
    )
    add_in_pairs(x, parts, 0)
    exchange.wait([comm.Isend(x, rank, RESULT_TAG) for rank in exchange.others])


def mesh(exchange: Exchange, x: np.ndarray) -> None:
    """Send all to all, where each adds: l, and (n - 1) m at each rank."""
    comm, parts = exchange.comm, exchange.parts(len(x))
    requests = [comm.Irecv(p, rank, TAG) for rank, p in zip(exchange.others, parts, strict=True)]
    exchange.wait(requests + [comm.Isend(x, rank, TAG) for rank in exchange.others])
    add_in_pairs(x, parts, comm.rank)


def scatter(exchange: Exchange, x: np.ndarray) -> None:
    """Let each rank add its n-th of the numbers and send that to all: 2 l, 2 m at each rank."""
    comm, others = exchange.comm, exchange.others
    bounds = [len(x) * rank // comm.size for rank in range(comm.size + 1)]
    cuts = [x[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
    mine = cuts[comm.rank]
    parts = exchange.parts(len(mine))
    requests = [comm.Irecv(p, rank, TAG) for rank, p in zip(others, parts, strict=True)]
    exchange.wait(requests + [comm.Isend(cuts[rank], rank, TAG) for rank in others])
    add_in_pairs(mine, parts, comm.rank)
    requests = [comm.Irecv(cuts[rank], rank, RESULT_TAG) for rank in others]
    exchange.wait(requests + [comm.Isend(mine, rank, RESULT_TAG) for rank in others])


def ring(exchange: Exchange, x: np.ndarray) -> None:
    """Add from rank to rank, then pass the sum on around the ring: 2 (n - 1) l, 2 m at each rank.

    In segments, of which several are on their way at once. (The usual ring adds each n-th of the
    numbers in another order, which depends on where in the buffer a number stands.)
    """
    comm, length = exchange.comm, SEGMENT_BYTES // 4
    segments = [x[at : at + length] for at in range(0, len(x), length)]
    before, after, last = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size, comm.size - 1
    sent, passed_on = [], []
    for step in range(len(segments) + comm.size):
        if step < len(segments):
            segment = segments[step]
            if comm.rank:
                part = exchange.scratch[: len(segment)]
                exchange.wait([comm.Irecv(part, before, TAG)])
                segment += part  # the sum of the ranks before; a + b is b + a to the bit
            tag = TAG if comm.rank < last else RESULT_TAG
            sent.append(comm.Isend(segment, after, tag))
        if step >= comm.size and comm.rank < last:
            segment = segments[step - comm.size]
            exchange.wait([sent[step - comm.size], comm.Irecv(segment, before, RESULT_TAG)])
            if after < last:
                passed_on.append(comm.Isend(segment, after, RESULT_TAG))
    exchange.wait(sent + passed_on)


def recursive_doubling(exchange: Exchange, x: np.ndarray) -> None:
    """Add in pairs at twice the distance each time: l log2 n, and m log2 n at each rank.

    Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521. Ranks beyond a power of two
    hand theirs to a neighbour first, and get the sum from it.
    """
    comm = exchange.comm
    part = exchange.scratch[: len(x)]
    power = 1 << (comm.size.bit_length() - 1)
    pairs = comm.size - power  # of ranks 2 i and 2 i + 1, of which only the first goes on
    rank = comm.rank // 2 if comm.rank < 2 * pairs else comm.rank - pairs
    if comm.rank < 2 * pairs:
        if comm.rank % 2:
            exchange.wait([comm.Isend(x, comm.rank - 1, TAG)])
            exchange.wait([comm.Irecv(x, comm.rank - 1, RESULT_TAG)])
            return
        exchange.wait([comm.Irecv(part, comm.rank + 1, TAG)])
        x += part
    distance = 1
    while distance < power:
        other = rank ^ distance
        peer = 2 * other if other < pairs else other + pairs
        exchange.wait([comm.Irecv(part, peer, TAG), comm.Isend(x, peer, TAG)])
        x += part
        distance *= 2
    if comm.rank < 2 * pairs:
        exchange.wait([comm.Isend(x, comm.rank + 1, RESULT_TAG)])


STRATEGIES: dict[str, Callable[[Exchange, np.ndarray], None]] = {
    "mpi": by_mpi,
    "star": star,
    "mesh": mesh,
    "scatter": scatter,
    "recursive-doubling": recursive_doubling,
    "ring": ring,
}
IN_PAIRS = tuple(name for name in STRATEGIES if name != "ring")


def most_at_once(strategy: str, ranks: int) -> int:
    """Return how many numbers a strategy merges at once, so that its scratch memory suffices."""
    whole = SUM_BYTES // 4
    return whole // max(ranks - 1, 1) if strategy in ("star", "mesh") else whole
