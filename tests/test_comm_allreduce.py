"""Sums over all ranks: every strategy gives the same bits on all ranks, whatever the length."""

import time

import numpy as np
import pytest

from tpimpi.comm import allreduce
from tpimpi.comm.allreduce import IN_PAIRS, STRATEGIES, SUM_BYTES
from tpimpi.comm.group import Group

LENGTHS = (1, 2, 3, 7, 1001, 8193, 50_003, SUM_BYTES // 4 + 5)


@pytest.fixture
def plain(comm):
    """A group of its own, without anything settled."""
    made = Group(comm)
    yield made
    made.close()


def numbers(rank: int, length: int) -> np.ndarray:
    """Return a rank's part of a sum [m]: numbers of very different sizes."""
    random = np.random.default_rng(rank)
    exponents = random.integers(-20, 20, SUM_BYTES // 4 + 5)[:length]
    return np.ldexp(random.standard_normal(length), exponents).astype(np.float32)


def in_rank_order(ranks: int, length: int) -> np.ndarray:
    total = numbers(0, length)
    for rank in range(1, ranks):
        total = total + numbers(rank, length)
    return total


def in_pairs(ranks: int, length: int) -> np.ndarray:
    """Add as recursive doubling does; the ranks beyond a power of two go with their neighbour."""
    parts = [numbers(rank, length) for rank in range(ranks)]
    pairs = ranks - (1 << ranks.bit_length() - 1)
    parts = [parts[2 * i] + parts[2 * i + 1] for i in range(pairs)] + parts[2 * pairs :]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sums_are_those_of_one_order_of_addition(plain, strategy, patient):
    plain.patient = patient
    plain.settle_sums(strategy, 64)
    for length in LENGTHS:
        expected = (in_pairs if strategy in IN_PAIRS else in_rank_order)(plain.size, length)
        buffer = numbers(plain.rank, length)
        plain.allreduce(buffer)
        assert (buffer == expected).all(), (strategy, length)


def test_the_fastest_is_among_those_of_equal_bits(plain):
    for row in (1, 5, 2048, SUM_BYTES):  # a row longer than what is merged at once, too
        plain.settle_sums("auto", row)
        assert len(set(plain.comm.allgather((plain.sums.short, plain.sums.long)))) == 1
        for length in LENGTHS:
            buffer = numbers(plain.rank, length)
            plain.allreduce(buffer)
            assert (buffer == in_pairs(plain.size, length)).all()
    assert {plain.sums.short, plain.sums.long} <= set(IN_PAIRS)


def test_a_rank_that_is_late_is_told_from_the_link(plain):
    """Rank 0 comes late to each sum: the others wait for it, and it waits for nobody."""
    if plain.size == 1:
        return
    plain.settle_sums("auto", 64)
    assert plain.sums.seconds_alone(256) > 0
    plain.sums.alone = [(256, 1e-4), (512, 2e-4)]  # what a busy machine found would hide it
    assert plain.sums.seconds_alone(256) == 1e-4
    for _ in range(3):
        plain.comm.Barrier()
        if plain.rank == 0:
            time.sleep(0.1)
        plain.allreduce(np.zeros(64, np.float32))
    assert 0 <= plain.late_seconds <= plain.network_seconds
    late = plain.comm.allgather(plain.late_seconds)
    assert min(late[1:]) > 0.01  # of 0.3, if a busy machine lets the others come as late


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_and_steps_travel_to_their_places(plain, rows):
    counts = [5 + rank % 3 for rank in range(plain.size)]
    counts[-1] = 0 if plain.size > 1 else counts[-1]  # a rank that owns no rows of the vocabulary
    whole = np.arange(rows * sum(counts), dtype=np.float32).reshape(rows, -1)
    start = sum(counts[: plain.rank])
    part = whole[:, start : start + counts[plain.rank]].copy()
    out = np.zeros_like(whole) if plain.rank == 0 else None
    plain.gatherv_rows(part, out, counts)
    assert plain.rank or (out == whole).all()
    for nbytes in (8, 1 << 20):  # told by rank 0 itself, and passed on by MPI
        told = np.full(nbytes, 7 if plain.rank == 0 else 0, np.uint8)
        plain.bcast(told)
        assert (told == 7).all()


def test_memory_for_what_others_send_is_bounded(plain):
    assert plain.sums._exchange.scratch.nbytes <= SUM_BYTES + 4 * plain.size
    for name in STRATEGIES:
        assert allreduce.most_at_once(name, plain.size) * 4 <= SUM_BYTES
