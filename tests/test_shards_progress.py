"""Nothing is silent for long: what is read again is told on rank 0, and so is a wait for others."""

import time

import pytest

from tpimpi import progress
from tpimpi.comm.group import Group
from tpimpi.shards.shard import Shard, stamp_path
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter


@pytest.fixture
def group(comm, monkeypatch):
    """All ranks, telling at once what they would tell every two seconds."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    group = Group(comm)
    yield group
    group.close()


def told(group, capsys, title):
    """Tell whether rank 0, and no other, told something."""
    lines = [line for line in capsys.readouterr().err.splitlines() if title in line]
    assert bool(lines) == (group.rank == 0), lines
    return lines


def test_each_reading_is_told(group, references, shared_tmp, capsys, monkeypatch):
    source = Source(group, references / "yi", shared_tmp)
    shard, _ = source.shard(group)
    shard.close()
    lines = told(group, capsys, "cutting the checkpoint")
    assert group.rank != 0 or (" of " in lines[0] and "B/s" in lines[0])

    stamp_path(shard.path).unlink()
    (shared_tmp / "checkpoint.hashes").unlink(missing_ok=True)
    source.shard(group)[0].close()
    errors = capsys.readouterr().err
    for title in ("verifying the shard", "hashing the checkpoint"):
        assert (title in errors) == (group.rank == 0)

    shard.path.rename(f"{shard.path}.partial")
    source.shard(group)[0].close()
    told(group, capsys, "checking what is there already")


def test_a_wait_is_told(group, references, shared_tmp, capsys, monkeypatch):
    source = Source(group, references / "yi", shared_tmp)
    plain, last = ShardWriter.finish, group.rank == group.size - 1
    monkeypatch.setattr(
        ShardWriter, "finish", lambda self: (time.sleep(0.3 if last else 0), plain(self))
    )
    source.shard(group)[0].close()
    told(group, capsys, "waiting for the disks")
    verify = Shard.verify
    monkeypatch.setattr(
        Shard, "verify", lambda self, speaks: (verify(self, speaks), time.sleep(0.3 if last else 0))
    )
    stamp_path(source.folder / f"shard-{group.rank}-of-{group.size}.h5").unlink()
    source.shard(group)[0].close()
    if group.size > 1:
        told(group, capsys, "waiting for ranks that verify")
