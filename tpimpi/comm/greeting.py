"""Whether each rank can reach each other one, before any of them waits for another in a sum.

MPI connects two ranks when one first has something for the other. A firewall, or a Wi-Fi that keeps
its clients apart, lets launchers and rank 0 through and these not: then all would wait for ever,
and beat on. Only links with rank 0 are needed to tell it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import numpy as np
from mpi4py import MPI

from tpimpi import status
from tpimpi.errors import MachineError

SECONDS = 30.0  # for messages of some bytes, once all have come through MPI_Init
HEARING = 5.0  # ... that rank 0 then waits for what the others have heard
NAPS = (20e-6, 2e-3)  # seconds of the naps
BYTES = 64  # of a host's name
SHOWN = 3  # pairs that are named
_HELLO, _HEARD, _VERDICT = range(201, 204)  # tags


def greet(comm: MPI.Comm, seconds: float = SECONDS) -> None:
    """Exchange a message with every other rank (collective).

    Raises MachineError on all ranks that hear of it where some pair can't: MPI is no use to them
    any more. It takes part in no collective of MPI, which would use links that may not be there.
    """
    if comm.size == 1:
        return
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    hosts = np.zeros((comm.size, BYTES), np.uint8)  # of each rank
    name = os.uname().nodename.encode()[:BYTES]
    hosts[comm.rank, : len(name)] = np.frombuffer(name, np.uint8)
    coming = [comm.Irecv(hosts[rank], rank, _HELLO) for rank in others]
    _wait(coming + _sent(comm, hosts[comm.rank], others, _HELLO), seconds)
    heard = hosts.any(axis=1).astype(np.uint8)  # [ranks]
    told = _tell(comm, heard, seconds)
    if told is not None and not told.all():
        raise MachineError(_sentence(told, hosts, seconds))


def _tell(comm: MPI.Comm, heard: np.ndarray, seconds: float) -> np.ndarray | None:
    """Return what all ranks have heard, [by, from] as 0 and 1; None where that is not known."""
    told = np.zeros((comm.size, comm.size), np.uint8)
    if comm.rank:
        going = _sent(comm, heard, [0], _HEARD)
        coming = [comm.Irecv(told, 0, _VERDICT)]
        return told if _wait([*going, *coming], seconds + 2 * HEARING) else None
    told[0] = heard
    # Others may have waited in vain for as long as that.
    coming = [comm.Irecv(told[rank], rank, _HEARD) for rank in range(1, comm.size) if heard[rank]]
    _wait(coming, seconds + HEARING if heard.all() else HEARING)
    going = _sent(comm, told, [rank for rank in range(1, comm.size) if heard[rank]], _VERDICT)
    _wait(going, HEARING)
    return told


def _sent(comm: MPI.Comm, buffer: np.ndarray, ranks: Iterable[int], tag: int) -> list[MPI.Request]:
    """Begin to send to some ranks, as far as MPI does not refuse at once."""
    found = []
    for rank in ranks:
        try:
            found.append(comm.Isend(buffer, rank, tag))
        except MPI.Exception:  # it is not heard, then
            continue
    return found


def _tested(request: MPI.Request) -> bool:
    try:
        return request.Test()
    except MPI.Exception:
        return False


def _wait(requests: list[MPI.Request], seconds: float) -> bool:
    """Wait so long at most until all messages have passed; return whether they have."""
    end, nap = time.monotonic() + seconds, NAPS[0]
    left = requests
    while left := [request for request in left if not _tested(request)]:
        if time.monotonic() >= end:
            return False
        time.sleep(nap)
        nap = min(1.5 * nap, NAPS[1])
    return True


def _sentence(told: np.ndarray, hosts: np.ndarray, seconds: float) -> str:
    """Return who was not heard of, or which pairs can't reach each other, and what is in the way.

    Of a rank that rank 0 has not heard of, it is not known what it heard: it may not have come.
    """
    ranks = range(len(told))

    def named(rank: int) -> str:
        host = bytes(hosts[rank]).rstrip(b"\0").decode(errors="replace")
        return f"rank {rank} on {host}" if host else f"rank {rank}"

    silent = [rank for rank in ranks if not told[0, rank]]
    if silent:
        names = [f"rank {rank}" for rank in silent[:SHOWN]]
        more = f" and {len(silent) - SHOWN} more" if len(silent) > SHOWN else ""
        return (
            f"nothing was heard of {', '.join(names)}{more} for {seconds:.0f} s after the start: "
            "is each host there, and can each reach every other one, through firewalls and Wi-Fi? "
            f"{status.current.then}"
        )
    heard = told & told.T
    pairs = [(one, other) for one in ranks for other in ranks[one + 1 :] if not heard[one, other]]
    names = [f"{named(one)} and {named(other)}" for one, other in pairs[:SHOWN]]
    more = f", and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
    return (
        f"no message passes between {', between '.join(names)}{more}: let their firewalls pass TCP "
        "on all ports between these hosts (MPI chooses them), and see that no Wi-Fi keeps its "
        "clients apart"
    )
