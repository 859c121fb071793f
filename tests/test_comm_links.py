"""Links are measured for each pair in both directions, and a rate is that of the bytes alone."""

import pytest

from tpimpi.comm import links
from tpimpi.comm.group import CHUNK, Group
from tpimpi.comm.links import Link, measure_links


@pytest.fixture
def group(comm):
    made = Group(comm)
    yield made
    made.close()


def test_each_pair_in_both_directions(group):
    told = []
    found = measure_links(group, on_pair=lambda: told.append(1))
    pairs = group.size * (group.size - 1) // 2
    if group.rank != 0:
        assert found is None and not told
        return
    assert len(told) == pairs
    for one in range(group.size):
        assert found[one][one] is None
        for other in set(range(group.size)) - {one}:
            assert isinstance(found[one][other], Link)
            assert 0 < found[one][other].latency == found[other][one].latency < 1
            assert found[one][other].rate > 0


def test_without_time_only_the_hub_has_links(group):
    found = measure_links(group, seconds=0.0)
    if group.rank == 0:
        for one, row in enumerate(found):
            for other, link in enumerate(row):
                assert (link is not None) == (one != other and 0 in (one, other))


def wire(rate, trip, bucket=0, hiccups=()):
    """A link of `rate` that lets `bucket` bytes through at once, and fills it again when idle."""
    late, sent, full = iter(hiccups), [], [bucket]

    def transfer(nbytes):
        sent.append(nbytes)
        took = trip + max(0, nbytes - full[0]) / rate
        full[0] = min(bucket, max(0, full[0] - nbytes) + trip * rate)
        return took + next(late, 0.0)

    return transfer, sent


@pytest.mark.parametrize("rate", [1.2e5, 1.25e6, 37e6, 125e6, 600e6])
@pytest.mark.parametrize("trip", [1e-4, 4e-3])
@pytest.mark.parametrize("bucket", [0, 130_000])
def test_neither_the_way_nor_a_bucket_counts(rate, trip, bucket):
    transfer, sent = wire(rate, trip, bucket)
    assert links._rate(transfer, trip, 0.01) == pytest.approx(rate, rel=0.1)
    assert sum(sent) / rate < 0.2 + 5e5 / rate  # not for minutes, however slow it is


def test_what_has_no_measurable_time_is_bounded_by_its_largest_transfer():
    transfer, sent = wire(1e12, 1e-6)
    assert CHUNK / 1e-3 < links._rate(transfer, 1e-6, 0.01) <= 1.2e12
    assert max(sent) == CHUNK


def test_one_hiccup_changes_nothing():
    transfer, _ = wire(37e6, 1e-4, hiccups=(0.05,))
    assert links._rate(transfer, 1e-4, 0.01) == pytest.approx(37e6, rel=0.05)


def test_what_stands_out_from_both_ranks_is_doubtful():
    fast, slow, far = Link(1e-3, 36e6), Link(1e-3, 1e6), Link(9e-3, 36e6)

    def lan(odd):
        return [
            [None if i == j else odd.get((i, j), fast) for j in range(4)] for i in range(4)
        ]  # fmt: skip

    assert links.doubtful(lan({})) == []
    assert links.doubtful(lan({(1, 3): slow})) == [(1, 3)] == links.doubtful(lan({(3, 1): slow}))
    assert links.doubtful(lan({(2, 0): far, (0, 2): far})) == [(0, 2)]
    behind = {(2, other): slow for other in range(4)}  # a slow device
    assert links.doubtful(lan(behind)) == []
    assert links.doubtful(lan(behind | {(0, 3): slow})) == [(0, 3)]
    assert links.doubtful([[None, fast], [slow, None]]) == []
    assert links.doubtful(lan(behind | {(0, 3): None})) == []
    assert far.better(slow) == Link(1e-3, 36e6)
