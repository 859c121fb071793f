"""The launcher gives as many ranks as it was asked for: otherwise every other test would lie."""

import os


def test_world_has_the_asked_size(comm):
    assert comm.size == int(os.environ.get("TPIMPI_TEST_RANKS", "1"))
    assert comm.allgather(comm.rank) == list(range(comm.size))
