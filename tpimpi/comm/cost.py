"""What messages cost on links that are known: a model of each strategy, without sending anything.

The usual one (Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521): a message of m
bytes takes latency + m / rate, and a rank sends and receives at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads MPI, which is not needed here
    from tpimpi.comm.links import Link

FLOAT = 4  # bytes


def _star(link: Link, ranks: int, nbytes: int) -> float:
    return 2 * (link.latency + (ranks - 1) * nbytes / link.rate)


def _mesh(link: Link, ranks: int, nbytes: int) -> float:
    return link.latency + (ranks - 1) * nbytes / link.rate


def _scatter(link: Link, ranks: int, nbytes: int) -> float:
    return 2 * (link.latency + (ranks - 1) / ranks * nbytes / link.rate)


def _ring(link: Link, ranks: int, nbytes: int) -> float:
    return 2 * ((ranks - 1) * link.latency + nbytes / link.rate)


def _recursive_doubling(link: Link, ranks: int, nbytes: int) -> float:
    rounds = ranks.bit_length() - 1
    if ranks != 1 << rounds:
        rounds += 2  # those beyond the power of two hand theirs in, and get the sum
    return rounds * (link.latency + nbytes / link.rate)


# By the names of `comm.allreduce.STRATEGIES`; MPI's own is told to do recursive doubling.
ALLREDUCES: dict[str, Callable[[Link, int, int], float]] = {
    "mpi": _recursive_doubling,
    "star": _star,
    "mesh": _mesh,
    "scatter": _scatter,
    "recursive-doubling": _recursive_doubling,
    "ring": _ring,
}


def allreduce_seconds(link: Link, ranks: int, nbytes: int, strategy: str | None = None) -> float:
    """Return the seconds of one allreduce of so many bytes over equal links; 0 for one rank.

    None stands for the strategy that is the fastest, which `--allreduce auto` finds by the clock.
    """
    if ranks == 1:
        return 0.0
    names = ALLREDUCES if strategy is None else (strategy,)
    return min(ALLREDUCES[name](link, ranks, nbytes) for name in names)


def token_seconds(
    link: Link, ranks: int, layers: int, hidden: int, vocabulary: int, scale: float = 1.0
) -> float:
    """Return the seconds of a token's messages: two sums a layer, its row there, logits back.

    `scale` is by how much a sum takes longer than the model says.
    """
    if ranks == 1:
        return 0.0
    row = FLOAT * hidden
    there = link.latency + (ranks - 1) * row / link.rate
    back = link.latency + FLOAT * vocabulary * (ranks - 1) / ranks / link.rate
    return 2 * layers * scale * allreduce_seconds(link, ranks, row) + there + back


def worst_links(links: Sequence[Sequence[Link | None]]) -> list[Link | None]:
    """Return for 0, 1, 2, ... first ranks the slowest of what links [from][to] between them are.

    None where there is no link between them, or none that was measured.
    """
    found: list[Link | None] = [None, None]
    for ranks in range(2, len(links) + 1):
        between = [link for row in links[:ranks] for link in row[:ranks] if link]
        latency = max((link.latency for link in between), default=0.0)
        rate = min((link.rate for link in between), default=math.inf)
        found.append(replace(between[0], latency=latency, rate=rate) if between else None)
    return found
