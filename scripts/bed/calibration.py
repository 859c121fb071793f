"""Measure what the machine itself adds to each way, to be taken off the delays of a bed.

To wake the switch and the receiver takes some ten microseconds, more on a virtual machine and
where caches are full of others' work: little against 1 ms, a quarter of 0.1 ms.
"""

from __future__ import annotations

import contextlib
import os

from bed import probe
from bed.links import Port
from bed.state import State
from bed.topology import Node

_LONGEST = 0.1  # seconds of a round trip: beside a longer one nothing else counts
_TIME = 0.3  # seconds that it may take, idle and again beside busy processes
_MOST = 0.6  # of a delay: what is more is no delay any longer, and the self-test shall say so


def own_time(state: State, nodes: list[Node], ports: list[Port]) -> float:
    """Return the seconds that the way takes too long on either side, by round trips of a byte.

    It is the middle between an idle and a busy machine: a bed is both in turn.
    """
    if len(nodes) < 2 or not ports[0].side:
        return 0.0
    asked, took = 2 * (ports[0].byte + ports[1].byte), 0.0
    if asked > _LONGEST:
        return 0.0
    count = max(11, min(51, int(_TIME / asked)))
    for load in (contextlib.nullcontext(), probe.busy(2 * (os.cpu_count() or 1))):
        with load, probe.punctual(), probe.connected(state, nodes[0], nodes[1]) as connection:
            took += probe.round_trip(connection, count) / 2
    return min(max(0.0, (took - asked) / 4), _MOST * ports[0].side)
