"""Measure what the machine itself adds to each hop, to be taken off the delays of a bed.

To wake the switch and the receiver takes some ten microseconds, more on a virtual machine and
where caches are full of others' work: little against 1 ms, a quarter of 0.1 ms.
"""

from __future__ import annotations

import contextlib
import os

from bed import probe
from bed.state import State
from bed.topology import Node

_TIME = 0.3  # seconds that it may take, idle and again beside busy processes
_MOST = 0.6  # of a delay: what is more is no delay any longer, and the self-test shall say so


def own_time(state: State, nodes: list[Node], delay: float, hops: int) -> float:
    """Return the seconds that a hop of `delay` takes too long, by round trips of a byte.

    It is the middle between an idle and a busy machine: a bed is both in turn.
    """
    if not delay or not nodes[1:] or not nodes[1].number:
        return 0.0
    count = max(11, min(51, int(_TIME / (2 * hops * delay))))
    took = 0.0
    for load in (contextlib.nullcontext(), probe.busy(2 * (os.cpu_count() or 1))):
        with load, probe.punctual(), probe.connected(state, nodes[0], nodes[1]) as connection:
            took += probe.round_trip(connection, count) / 2
    return min(max(0.0, took / (2 * hops) - delay), _MOST * delay)
