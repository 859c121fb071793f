"""Measure what the machine itself adds to each hop, to be taken off the delays of a bed.

To wake the switch and the receiver takes some ten microseconds, more on a virtual machine: little
against 1 ms, a quarter of 0.1 ms.
"""

from __future__ import annotations

from bed import probe
from bed.state import State
from bed.topology import Node

_TIME = 0.5  # seconds that it may take
_MOST = 0.4  # of a delay: what is more is no delay any longer, and the self-test shall say so


def own_time(state: State, nodes: list[Node], delay: float, hops: int) -> float:
    """Return the seconds that a hop of `delay` takes too long, by round trips of a byte."""
    if not delay or not nodes[1:] or not nodes[1].number:
        return 0.0
    count = max(11, min(51, int(_TIME / (2 * hops * delay))))
    with probe.punctual(), probe.connected(state, nodes[0], nodes[1]) as connection:
        took, _ = probe.middle(probe.round_trips(connection, count))
    return min(max(0.0, took / (2 * hops) - delay), _MOST * delay)
