"""The cuts of which shards lie here: in the cache, in a folder of the user's, on some ranks."""

import shutil

import pytest

from program import DEMO
from tpimpi.errors import UserError
from tpimpi.model.partition import Partition
from tpimpi.shards.cuts import known_cuts
from tpimpi.shards.layout import shard_name
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source


def shares_for(size):
    return tuple(range(1, size + 1))


def cut(group, shares=None, folder=None):
    """Cut the demo model; return its folder."""
    source = Source(group, DEMO, ShardRequest(folder, shares))
    source.shard(group)[0].close()
    return source.folder


def known(group, folder=None):
    return [one.shares for one in known_cuts(group, Source(group, DEMO, ShardRequest(folder)))]


def test_what_lies_in_the_cache(group):
    size, unequal = group.size, shares_for(group.size)
    assert known(group) == []
    folder = cut(group, unequal)
    assert known(group) == [unequal]
    cut(group)
    assert known(group) == ([(1,) * size, unequal] if size > 1 else [(1,)])
    group.comm.Barrier()
    if group.rank == 0:
        (folder.parent / "notes").mkdir()
        (folder.parent / f"{size}-ranks-x").mkdir()
        (folder / shard_name(0, size)).rename(folder / f"{shard_name(0, size)}.partial")
    group.comm.Barrier()
    assert unequal in known(group)  # one that goes on counts
    for rank in range(size // 2 + 1):
        if group.rank == rank and rank:
            (folder / shard_name(rank, size)).unlink()
    group.comm.Barrier()
    if size > 2:
        assert unequal in known(group)
    group.comm.Barrier()
    if group.rank == 0:
        shutil.rmtree(folder)
    group.comm.Barrier()
    assert known(group) == ([(1,) * size] if size > 1 else [])


def test_what_lies_in_a_named_folder(group, shared_tmp):
    named, unequal = shared_tmp / "named", shares_for(group.size)
    assert known(group, named) == []
    cut(group, unequal, named)
    source = Source(group, DEMO, ShardRequest(named))
    (found,) = known_cuts(group, source)
    assert found.ranks == Partition.of(source.config, unequal).ranks
    source.keep(found)
    shard, written = source.shard(group)
    shard.close()
    assert not written


def test_another_ratio_is_refused_in_a_named_folder(group, shared_tmp):
    named = shared_tmp / "named"
    cut(group, None, named)
    if group.size == 1:
        return
    with pytest.raises(UserError, match="was cut in another --ratio: .* MLP columns, but this run"):
        cut(group, (*range(group.size - 1), 5), named)
    cut(group, None, named)  # what was there is still there
