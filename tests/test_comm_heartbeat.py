"""Heartbeats are counted on both sides and end with all; a link that MPI has lost is no failure."""

import time

import pytest
from mpi4py import MPI

from tpimpi import status
from tpimpi.comm import heartbeat
from tpimpi.comm.heartbeat import Heartbeat


@pytest.fixture
def own(comm, monkeypatch):
    before = status.current
    yield status.of_rank(comm.rank, comm.size)
    status.current = before


def test_beats_are_counted_and_tell_what_is_done(comm, own, monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD", 0.02)
    heard = range(comm.size) if comm.rank == 0 else (0, comm.rank)
    own.begin("testing")
    beating = Heartbeat(comm)
    if comm.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
        deadline = time.monotonic() + 30
        while any(own.peers[rank].beats < 3 for rank in heard):
            assert time.monotonic() < deadline, [peer.beats for peer in own.peers]
            time.sleep(0.01)
        assert {own.peers[rank].doing for rank in heard} == {"testing"}
    beating.stop()
    if comm.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
        assert all(own.peers[rank].left for rank in heard if rank != comm.rank)


class _Lost:
    """A communicator to a rank that has gone."""

    def __init__(self, comm, when):
        self._comm, self._when, self.sent = comm, when, 0

    def Irecv(self, buffer, rank):
        return MPI.REQUEST_NULL if self._when == "send" else _Failing()

    def Isend(self, buffer, rank):
        self.sent += 1
        if self._when == "send":
            raise MPI.Exception(MPI.ERR_OTHER)
        return MPI.REQUEST_NULL


class _Failing:
    def Test(self):
        raise MPI.Exception(MPI.ERR_OTHER)


@pytest.mark.parametrize("when", ["send", "receive"])
def test_a_link_that_mpi_has_lost_is_left_alone(comm, when):
    lost, own = _Lost(comm, when), status.Status(0, 2)
    link = heartbeat._Link(lost, 1)
    for _ in range(3):
        link.exchange(b"bhost\0computing", own.peers[1])
    assert link.ended and lost.sent == 1 and own.peers[1].beats == 0
