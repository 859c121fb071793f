"""Measure links from one process: a socket stays in the network namespace that it was made in.

So no second process has to be woken on the other device, and what is measured is the links.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Iterator

from bed import kernel
from bed.quantities import BedError
from bed.state import State
from bed.topology import Node

_PORT = 7099
_PRIORITY = 40  # of SCHED_FIFO, below the switch's: busy ranks are not what is measured here
_BLOCK = bytes(1 << 18)
_PATIENCE = 10  # seconds for what is sent to arrive: else the other end is gone
_WARMING, _TRIPS = 0.5, 12  # seconds, round trips of a bulk transfer before bytes count

Connection = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def punctual() -> Iterator[None]:
    """Run before all others but the switch."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def connected(state: State, here: Node, there: Node) -> Iterator[Connection]:
    """Connect two devices by TCP; yield both ends.

    Raises BedError where nothing comes through, also while the ends are used.
    """
    try:
        kernel.enter(state.holder(there.name), "net")
        with socket.create_server((there.address, _PORT)) as listener:
            listener.settimeout(_PATIENCE)
            kernel.enter(state.holder(here.name), "net")
            near = socket.create_connection((there.address, _PORT), timeout=_PATIENCE)
            far, _ = listener.accept()
        with near, far:
            for end in (near, far):
                end.settimeout(_PATIENCE)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield near, far
    except OSError as error:
        raise BedError(
            f"nothing comes through from {here.name} to {there.name} "
            f"({error.strerror or error}); see `testbed status`"
        ) from None


def round_trip(connection: Connection, count: int) -> float:
    """Return the seconds that a byte takes there and back, the median of so many."""
    near, far = connection
    times = []
    for number in range(count + 3):
        start = time.perf_counter()
        near.send(b"x")
        far.send(far.recv(1))
        near.recv(1)
        if number >= 3:  # addresses are known and caches warm
            times.append(time.perf_counter() - start)
        time.sleep(0.001)  # all sleep until the next one comes, as between the sums of a token
    return statistics.median(times)


def transfer(ways: list[Connection], seconds: float, trip: float) -> list[float]:
    """Send as fast as goes on all connections at once; return bytes a second of each.

    TCP begins with little and doubles it each round trip, which takes `trip` seconds.
    """
    buffer, received = bytearray(1 << 20), [0] * len(ways)
    with selectors.DefaultSelector() as selector:
        for number, (near, far) in enumerate(ways):
            near.setblocking(False)
            far.setblocking(False)
            selector.register(near, selectors.EVENT_WRITE, (None, near))
            selector.register(far, selectors.EVENT_READ, (number, far))
        begin = time.perf_counter() + max(_WARMING, _TRIPS * trip)
        while (now := time.perf_counter()) < begin + seconds:
            # Buffers hold far more than a millisecond's worth. Without a pause the kernel would
            # stop all real-time processes for a twentieth of each second.
            time.sleep(0.001)
            for key, _ in selector.select(timeout=0.1):
                number, end = key.data
                if number is None:
                    end.send(_BLOCK)
                    continue
                got = end.recv_into(buffer)
                if now >= begin:
                    received[number] += got
        took = now - begin
    return [number / took for number in received]


@contextlib.contextmanager
def busy(count: int, enter: Callable[[int], None] = lambda number: None) -> Iterator[None]:
    """Let so many processes compute meanwhile; `enter` is called in each with its number."""
    children, parent = [], os.getpid()
    try:
        for number in range(count):
            child = os.fork()
            if child == 0:
                try:
                    kernel.die_with_parent(parent)
                    enter(number)
                    while True:
                        pass
                finally:
                    os._exit(1)
            children.append(child)
        yield
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
