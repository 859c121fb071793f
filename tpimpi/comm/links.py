"""The links between ranks: how long a few bytes take to another one, how many pass a second.

One pair after another is measured while all other ranks sleep: on a radio pairs would share the
air, on one machine the cores, and through a switch its slowest port. Rank 0 conducts. Its own links
come first: it is the hub of the star, and it hands out the shards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from mpi4py import MPI

from tpimpi.comm.group import CHUNK, Group

SECONDS = 6.0  # for all pairs; those without the hub that come later are left out
TRIPS, TRIP_SECONDS = 15, 0.03  # round trips in a row at most: by number, and by their time
FEWEST_TRIPS = 3  # ... but so many at least
FIRST_BYTES = 16 << 10  # of the first transfer: 13 ms at 10 Mbit/s
SHORTEST, LONGEST = 0.003, 0.02  # seconds of a transfer that tells a rate
GROWTH = 4  # of a transfer at most: what a shaper lets through at once says nothing of its rate
ANNOUNCED = 3  # round trips of a large message at most: MPI asks for leave to send it
STANDS_OUT = 2.0  # by which a link is slower than others: then it is measured once more
_ORDER, _ASK, _DATA, _FOUND = range(101, 105)  # tags


@dataclass(frozen=True)
class Link:
    """What one rank's messages to another meet on their way."""

    latency: float  # seconds one way, half of a round trip of a few bytes
    rate: float  # bytes a second, in this direction alone

    def better(self, other: Link) -> Link:
        """Return the best of two measurements of one link: a busy machine only makes it worse."""
        return Link(min(self.latency, other.latency), max(self.rate, other.rate))


def measure_links(
    group: Group, seconds: float = SECONDS, on_pair: Callable[[], None] = lambda: None
) -> list[list[Link | None]] | None:
    """Measure the link of each pair (collective). Returns them [from][to] on rank 0, else None.

    A rank's link to itself is None, and so are those of pairs without rank 0 that do not fit into
    `seconds`. What stands out is measured twice. `on_pair` is called on rank 0 after each pair.
    """
    if group.rank != 0:
        return _obey(group)
    links: list[list[Link | None]] = [[None] * group.size for _ in range(group.size)]
    pairs = list(combinations(range(group.size), 2))  # those of rank 0 come first
    each = seconds / max(1, len(pairs)) - 2 * TRIP_SECONDS  # some twenty transfers
    target = max(SHORTEST, min(each / 20, LONGEST))
    end = time.monotonic() + seconds
    for one, other in pairs:
        if one == 0 or time.monotonic() < end:
            links[one][other], links[other][one] = _ordered(group, one, other, target)
        on_pair()
    for one, other in doubtful(links):
        again = _ordered(group, one, other, target)
        links[one][other] = links[one][other].better(again[0])
        links[other][one] = links[other][one].better(again[1])
    for rank in range(1, group.size):
        group.comm.Send(np.array([-1.0, 0.0]), rank, _ORDER)
    return links


def doubtful(links: Sequence[Sequence[Link | None]]) -> list[tuple[int, int]]:
    """Return the pairs that are far slower than both of their ranks are with others.

    That may be a bad cable, or a moment in which a machine was busy.
    """
    pairs = {
        (i, j): (max(there.latency, back.latency), min(there.rate, back.rate))
        for i, j in combinations(range(len(links)), 2)
        if (there := links[i][j]) and (back := links[j][i])
    }
    found = []
    for pair, (latency, rate) in pairs.items():
        beside = [[pairs[p] for p in pairs if rank in p and p != pair] for rank in pair]
        if not all(beside):
            continue
        least = max(min(one[0] for one in some) for some in beside)
        most = min(max(one[1] for one in some) for some in beside)
        if latency > STANDS_OUT * least or rate < most / STANDS_OUT:
            found.append(pair)
    return found


def _ordered(group: Group, one: int, other: int, target: float) -> tuple[Link, Link]:
    """Let a pair measure its link; return it in both directions (rank 0)."""
    group.comm.Send(np.array([one, target], np.float64), other, _ORDER)
    if one == 0:
        return _measure(group.comm, other, target)
    group.comm.Send(np.array([other, target], np.float64), one, _ORDER)
    found = np.empty(3)
    group.rest_until(group.comm.Irecv(found, one, _FOUND).Test)
    latency, there, back = found.tolist()
    return Link(latency, there), Link(latency, back)


def _obey(group: Group) -> None:
    """Measure or answer, as rank 0 says; sleep in between (ranks other than 0)."""
    comm, order = group.comm, np.empty(2)
    while True:
        group.rest_until(comm.Irecv(order, 0, _ORDER).Test)
        peer, target = int(order[0]), float(order[1])
        if peer < 0:
            return
        if peer < group.rank:
            _answer(comm, peer)
        else:
            there, back = _measure(comm, peer, target)
            comm.Send(np.array([there.latency, there.rate, back.rate]), 0, _FOUND)


def _answer(comm: MPI.Comm, peer: int) -> None:
    """Take the bytes that `peer` announces and send those it asks for, until it asks for none."""
    ask, data = np.empty(2, np.int32), np.zeros(CHUNK, np.uint8)
    while True:
        comm.Recv(ask, peer, _ASK)
        up, down = ask.tolist()
        if not down:
            return
        if up:
            comm.Recv(data[:up], peer, _DATA)
        comm.Send(data[:down], peer, _DATA)


def _measure(comm: MPI.Comm, peer: int, target: float) -> tuple[Link, Link]:
    """Return the link to `peer`, which answers, and the link back."""
    data = np.zeros(CHUNK, np.uint8)

    def exchange(up: int, down: int) -> float:
        start = time.perf_counter()
        comm.Send(np.array([up, down], np.int32), peer, _ASK)
        if up:
            comm.Send(data[:up], peer, _DATA)
        comm.Recv(data[:down], peer, _DATA)
        return time.perf_counter() - start

    trip = _trip(lambda: exchange(0, 4))
    there = _rate(lambda nbytes: exchange(nbytes, 4), trip, target)
    back = _rate(lambda nbytes: exchange(0, nbytes), trip, target)
    trip = min(trip, _trip(lambda: exchange(0, 4)))  # a machine may have been busy for long
    comm.Send(np.zeros(2, np.int32), peer, _ASK)
    return Link(trip / 2, there), Link(trip / 2, back)


def _trip(trip: Callable[[], float]) -> float:
    """Return the seconds of a round trip, after two that connect and wake up.

    The lower quartile: in some of the others a machine was busy otherwise.
    """
    trip(), trip()
    found, start = [], time.perf_counter()
    while len(found) < TRIPS:
        if len(found) >= FEWEST_TRIPS and time.perf_counter() - start > TRIP_SECONDS:
            break
        found.append(trip())
    return statistics.quantiles(found, n=4)[0]


def _rate(transfer: Callable[[int], float], trip: float, target: float) -> float:
    """Return the bytes a second of transfers that take `target` seconds and a round trip, or more.

    It is what more bytes take longer: so neither the way there and back counts, nor how MPI
    announces a message.
    """
    size = FIRST_BYTES
    took = _typical(transfer, size, target)
    while took - trip < target and size < CHUNK:
        growth = 1.5 * target / max(took - trip, 1e-9)
        size = min(int(size * max(2, min(GROWTH, growth))), CHUNK)
        took = _typical(transfer, size, target)
    less = _typical(transfer, size // 4, target)
    if size == CHUNK or took - less < 0.2 * took:  # so fast that caches would count, or all noise
        return size / max(took - trip, 0.1 * took)
    most = size / max(took - ANNOUNCED * trip, 0.3 * took)
    return min((size - size // 4) / (took - less), most)


def _typical(transfer: Callable[[int], float], size: int, target: float) -> float:
    """Return the median time of three transfers, or of one that takes long.

    One more comes before them: what a shaper lets through at once is gone then.
    """
    transfer(size)
    took = transfer(size)
    return took if took > 4 * target else statistics.median([took, transfer(size), transfer(size)])
