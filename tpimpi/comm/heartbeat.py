"""A tiny message from each rank to rank 0 and back each second, for the guards to count.

A thread sends them, on a communicator of its own, so that a rank that computes, reads or compiles
for minutes beats on. It never waits in MPI. It needs MPI_THREAD_MULTIPLE; without it silence is not
noticed, and deaths are as before.
"""

from __future__ import annotations

import threading

import numpy as np
from mpi4py import MPI

from tpimpi import status
from tpimpi.status import LEAVING, RUNNING

PERIOD, NAP = 1.0, 0.005  # seconds between two beats, and between two looks at the end
BYTES = 512  # of a message
BEAT, LAST = b"b", b"l"


class Heartbeat:
    """Beat from now on until `stop()` (collective to make and to stop)."""

    def __init__(self, world: MPI.Comm):
        self._status, self._over = status.current, threading.Event()
        self._thread: threading.Thread | None = None
        if world.size == 1 or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return
        self._comm = world.Dup()
        for peer, host in zip(
            self._status.peers, world.allgather(self._status.own.host), strict=True
        ):
            peer.host = host
        rank = self._comm.rank
        self._peers = [_Link(self._comm, peer) for peer in range(world.size) if 0 in (peer, rank)]
        self._peers = [link for link in self._peers if link.rank != rank]
        self._status.stage = RUNNING
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End with the others: from here on nobody is missed."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._status.stage = LEAVING
        self._comm.Free()

    def _run(self) -> None:
        while not self._over.wait(PERIOD):
            self._beat(BEAT)
        while not all(link.ended for link in self._peers):
            self._beat(LAST)
            threading.Event().wait(NAP)

    def _beat(self, kind: bytes) -> None:
        own = self._status.own
        own.beats += 1
        message = kind + b"\0".join((own.host.encode(), own.doing.encode()))
        for link in self._peers:
            link.exchange(message, self._status.peers[link.rank])


class _Link:
    """One rank's messages, and those to it. None is waited for."""

    def __init__(self, comm: MPI.Comm, rank: int):
        self.rank, self._comm = rank, comm
        self._out, self._in = np.zeros(BYTES, np.uint8), np.zeros(BYTES, np.uint8)
        self._sending = MPI.REQUEST_NULL
        self._receiving = comm.Irecv(self._in, rank)
        self._told = self._heard = False  # of the last message
        self.ended = False  # both sides have had the last message, or never will

    def exchange(self, message: bytes, peer: status.Peer) -> None:
        """Send a message, and note in `peer` what has come.

        MPI's error is no news beyond the silence that follows, of which the guards speak.
        """
        if self.ended:
            return
        try:
            self._send(message)
            self._receive(peer)
            self.ended = self._told and self._heard and self._sending.Test()
        except MPI.Exception:
            self.ended = True

    def _send(self, message: bytes) -> None:
        """Send a message, unless the one before is still on its way or the last was sent."""
        if not self._told and self._sending.Test():
            self._out[:] = 0
            self._out[: len(message)] = np.frombuffer(message, np.uint8)[:BYTES]
            self._sending = self._comm.Isend(self._out, self.rank)
            self._told = message[:1] == LAST

    def _receive(self, peer: status.Peer) -> None:
        """Note what has come."""
        while not self._heard and self._receiving.Test():
            kind, text = bytes(self._in[:1]), bytes(self._in[1:])
            host, doing = text.rstrip(b"\0").split(b"\0")
            peer.host, peer.doing = host.decode(), doing.decode(errors="replace")
            peer.beats += 1
            if kind == LAST:
                peer.left = self._heard = True
            else:
                self._receiving = self._comm.Irecv(self._in, self.rank)
