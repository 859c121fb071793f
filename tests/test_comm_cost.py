"""The messages' times by hand, on links that are known."""

import pytest

from tpimpi.comm.allreduce import STRATEGIES
from tpimpi.comm.cost import ALLREDUCES, allreduce_seconds, token_seconds, worst_links
from tpimpi.comm.links import Link

LINK = Link(1e-3, 1e6)  # a millisecond one way, a byte a microsecond


@pytest.mark.parametrize(
    ("strategy", "ranks", "milliseconds"),
    [
        ("star", 8, 2 + 2 * 7 * 2), ("star", 2, 2 + 2 * 2),
        ("recursive-doubling", 8, 3 * 3), ("recursive-doubling", 2, 3),
        ("recursive-doubling", 3, 3 * 3), ("recursive-doubling", 5, 4 * 3),
        ("ring", 8, 14 + 2 * 2), ("ring", 2, 2 + 2 * 2),
        ("mesh", 8, 1 + 7 * 2), ("scatter", 8, 2 * (1 + 7 / 8 * 2)), ("mpi", 8, 3 * 3),
    ],
)  # fmt: skip
def test_each_strategy_by_hand(strategy, ranks, milliseconds):
    found = allreduce_seconds(LINK, ranks, 2000, strategy)
    assert found == pytest.approx(milliseconds * 1e-3)


def test_the_fastest_strategy_goes_with_the_size():
    for nbytes, best in ((4, "mesh"), (2000, "scatter"), (10**6, "scatter")):
        assert allreduce_seconds(LINK, 8, nbytes) == allreduce_seconds(LINK, 8, nbytes, best)


def test_every_strategy_has_its_model():
    assert list(ALLREDUCES) == list(STRATEGIES)


def test_one_rank_sends_nothing():
    assert allreduce_seconds(LINK, 1, 10**9) == token_seconds(LINK, 1, 32, 4096, 32000) == 0


def test_a_token_is_its_sums_its_row_and_its_logits():
    sums = 2 * 3 * allreduce_seconds(LINK, 4, 400)
    row, logits = 1e-3 + 3 * 400e-6, 1e-3 + 4 * 1000 * 3 / 4 * 1e-6
    assert token_seconds(LINK, 4, 3, 100, 1000) == pytest.approx(sums + row + logits)
    twice = token_seconds(LINK, 4, 3, 100, 1000, scale=2.0)
    assert twice == pytest.approx(2 * sums + row + logits)


def test_the_worst_link_between_the_first_ranks():
    good, slow, late = Link(1e-3, 1e8), Link(1e-3, 1e6), Link(9e-3, 1e8)
    links = [[None, good, good], [slow, None, None], [late, None, None]]
    assert worst_links(links) == [None, None, Link(1e-3, 1e6), Link(9e-3, 1e6)]
    assert worst_links([[None]]) == [None, None]
