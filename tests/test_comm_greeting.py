"""Ranks that can't reach each other are named before anybody waits for them."""

import socket

import numpy as np
import pytest

from tpimpi.comm import greeting
from tpimpi.comm.greeting import greet
from tpimpi.errors import MachineError

SECONDS = 1.5  # as a busy machine may leave a rank without a core for some time


class _Cut:
    """A communicator on which nothing passes between two ranks."""

    def __init__(self, comm, pair):
        self._comm, self._pair, self.rank, self.size = comm, pair, comm.rank, comm.size

    def _is_cut(self, peer):
        return {self.rank, peer} == self._pair

    def Isend(self, buffer, peer, tag):
        if self._is_cut(peer):
            return _Never()
        return self._comm.Isend(np.array(buffer), peer, tag)

    def Irecv(self, buffer, peer, tag):
        return _Never() if self._is_cut(peer) else self._comm.Irecv(buffer, peer, tag)


class _Never:
    def Test(self):
        return False


@pytest.fixture
def own(comm):
    made = comm.Dup()
    yield made
    made.Free()


def test_all_that_reach_each_other_go_on(own):
    assert greet(own) is None


@pytest.mark.parametrize("pair", [{1, 2}, {0, 1}])
def test_a_pair_that_does_not_is_named(own, pair, monkeypatch):
    if own.size < 3:
        pytest.skip("needs a third rank")
    monkeypatch.setattr(greeting, "HEARING", SECONDS)
    own.Barrier()  # who comes late to it would not be heard, either
    one, other = sorted(pair)
    if own.rank in (one, other) and one == 0 and own.rank:  # nobody can tell it
        assert greet(_Cut(own, pair), seconds=SECONDS) is None
    else:
        with pytest.raises(MachineError) as error:
            greet(_Cut(own, pair), seconds=SECONDS)
        text = str(error.value)
        if own.rank == 0:
            here = socket.gethostname()
            said = f"no message passes between rank {one} on {here} and rank {other} on {here}: let"
            assert text.startswith(said if one else f"nothing was heard of rank {other} for 2 s")
            assert "firewalls" in text and " more" not in text and text.count("rank ") == 1 + one
    own.Barrier()


def test_many_pairs_are_counted():
    hosts = np.zeros((5, greeting.BYTES), np.uint8)
    heard = np.eye(5, dtype=np.uint8)
    text = greeting._sentence(heard, hosts, 30.0)
    assert text.startswith("nothing was heard of rank 1, rank 2, rank 3 and 1 more for 30 s")
    heard[0] = heard[:, 0] = 1
    text = greeting._sentence(heard, hosts, 30.0)
    assert text.startswith("no message passes between rank 1 and rank 2, between rank 1 and rank 3")
    assert ", and 3 more pairs: let" in text
