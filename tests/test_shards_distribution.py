"""How shards reach their ranks: several fed at once, in bounded memory, and a rank that fails."""

import errno
import os
import shutil
import time

import numpy as np
import pytest

from support import content, cut, in_small_messages
from tpimpi import status
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import MachineError, UserError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import pieces
from tpimpi.shards import feed as feed_module
from tpimpi.shards import writing
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.seal import write_seal
from tpimpi.shards.shard import parse
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter


@pytest.fixture
def model(references):
    return references / "yi"


@pytest.mark.parametrize("chunk, pool", [(1, 1), (1000, 4000), (4096, 1 << 20)])
def test_the_size_of_messages_and_the_room_for_them_change_nothing(
    group, model, shared_tmp, monkeypatch, chunk, pool
):
    path = cut(group, model, shared_tmp / "plain")
    in_small_messages(monkeypatch, chunk)
    monkeypatch.setattr(feed_module, "POOL", pool)
    assert content(cut(group, model, shared_tmp / "small")) == content(path)


def test_what_is_on_its_way_is_bounded(group, model, shared_tmp, monkeypatch):
    in_small_messages(monkeypatch, 2000)
    monkeypatch.setattr(feed_module, "POOL", 16000)
    most, plain = [0], feed_module.Feed._read

    def watched(self, pool):
        count = plain(self, pool)
        most[0] = max(most[0], sum(self._on_the_way))
        assert min(self._on_the_way) >= 0
        return count

    monkeypatch.setattr(feed_module.Feed, "_read", watched)
    cut(group, model, shared_tmp)
    assert most[0] <= 16000 and (most[0] > 2000) == (group.rank == 0)


def test_a_slow_rank_keeps_the_others_from_nothing(group, model, shared_tmp, monkeypatch):
    """The others have all that one tensor holds for them while the last rank has yet to begin."""
    last = group.size - 1
    in_small_messages(monkeypatch, 2000)
    monkeypatch.setattr(feed_module, "POOL", 4000 * min(max(2, group.size), feed_module.MANY))
    plain, order = writing.WriterThread._write, []

    def slowly(self, data):
        if group.rank == last:
            time.sleep(0.002)
        plain(self, data)

    arrived = feed_module.Feed._collect

    def collect(self):
        tell, here = self._arrived, []
        self._arrived = lambda rank, nbytes: (here.append((rank, nbytes)), tell(rank, nbytes))
        count = arrived(self)
        self._arrived = tell
        order.extend(here)
        return count

    monkeypatch.setattr(writing.WriterThread, "_write", slowly)
    monkeypatch.setattr(feed_module.Feed, "_collect", collect)
    cut(group, model, shared_tmp)
    if group.rank == 0 and group.size > 1:
        ranks = [rank for rank, nbytes in order if nbytes]
        assert set(ranks) == set(range(group.size))
        assert ranks[-1] == last  # all others were through before


@pytest.mark.parametrize("which", [0, -1])
def test_a_disk_that_fills_on_one_rank_is_told_on_all(group, model, shared_tmp, monkeypatch, which):
    failing, sent = which % group.size, []
    in_small_messages(monkeypatch, 1000)
    monkeypatch.setattr(feed_module, "POOL", 16000)
    plain, count = os.pwrite, [0]

    def full(fd, data, at):
        count[0] += isinstance(data, memoryview)
        if group.rank == failing and count[0] > 3 and isinstance(data, memoryview):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(fd, data, at)

    post = feed_module.Outbox.post
    with monkeypatch.context() as patch:
        patch.setattr("tpimpi.shards.writer.os.pwrite", full)
        patch.setattr(feed_module.Outbox, "post", lambda *a: (sent.append(len(a[2])), post(*a))[1])
        with pytest.raises(MachineError, match="No space left.* of .* are kept, and the same"):
            cut(group, model, shared_tmp)
    if group.rank == 0:
        assert sum(sent) < 100_000  # nobody was sent all that was left
    path = cut(group, model, shared_tmp)
    assert content(path)
    assert not list(shared_tmp.glob("*.partial"))


def test_a_checkpoint_that_cant_be_read_is_told_on_all(group, model, shared_tmp, monkeypatch):
    source = Source(group, model, ShardRequest(shared_tmp))
    if group.rank == 0:
        plain, count = source.checkpoint.read, [0]

        def broken(*what):
            count[0] += 1
            if count[0] == 5:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(*what)

        monkeypatch.setattr(source.checkpoint, "read", broken)
    with pytest.raises(MachineError, match="Input/output error"):
        source.shard(group)
    monkeypatch.undo()


def test_what_a_rank_has_is_told_and_not_sent(group, model, shared_tmp, monkeypatch, capsys):
    path = cut(group, model, shared_tmp)
    assert "earlier run" not in capsys.readouterr().err
    last = group.size - 1
    if group.rank == last:
        path.rename(f"{path}.partial")
    group.comm.Barrier()
    sent, post = [], feed_module.Outbox.post
    monkeypatch.setattr(
        feed_module.Outbox, "post", lambda *a: (sent.append(len(a[2])), post(*a))[1]
    )
    cut(group, model, shared_tmp)
    assert not sent
    lines = [line for line in capsys.readouterr().err.splitlines() if "earlier run" in line]
    assert len(lines) == (group.rank == 0)
    if group.rank == 0:
        name = f"rank {last}" if group.size > 1 else "the shard"
        assert f"{name} has " in lines[0] and "going on" in lines[0]
        assert ("already" in lines[0]) == (group.size > 1)


def test_again_starts_over_whatever_is_there(group, model, shared_tmp, monkeypatch, capsys):
    path = cut(group, model, shared_tmp)
    before = content(path)
    path.rename(f"{path}.partial")
    written, plain = [], ShardWriter.complete
    monkeypatch.setattr(
        ShardWriter, "complete", lambda self, i, s: (written.append(i), plain(self, i, s))[1]
    )
    assert content(cut(group, model, shared_tmp, again=True)) == before
    assert sorted(written) == list(range(len(before)))
    assert "earlier run" not in capsys.readouterr().err


def test_rows_that_nobody_needs_are_not_read_again(group, model, shared_tmp, monkeypatch):
    """A rank whose shard is lost costs the reading of its rows, once the hashes are known."""
    path = cut(group, model, shared_tmp)
    last = group.size - 1
    if group.rank == last:
        path.unlink()
    group.comm.Barrier()
    source, read = Source(group, model, ShardRequest(shared_tmp)), []
    if group.rank == 0:
        plain = source.checkpoint.read
        monkeypatch.setattr(
            source.checkpoint, "read", lambda *a: (read.append(d := plain(*a)), d)[1]
        )
    source.shard(group)[0].close()
    if group.rank == 0 and group.size > 1:
        whole = sum(t.nbytes for t in source.checkpoint.tensors.values())
        assert 0 < sum(data.nbytes for data in read) < 0.8 * whole


def test_uneven_shares_reach_their_ranks(group, model, shared_tmp):
    shares = [1 + 2 * (rank % 2) for rank in range(group.size)]
    source = Source(group, model, ShardRequest(shared_tmp, shares))
    shard, _ = source.shard(group)
    checkpoint = Checkpoint(model, source.config)
    for piece in pieces(source.config, source.partition.ranks[group.rank]):
        raw = checkpoint.read(piece.source, piece.rows, piece.columns)
        wide = ENCODINGS[checkpoint.weight(piece.source).encoding].widen(raw)
        np.testing.assert_array_equal(shard.widened(piece.name), wide.reshape(piece.shape))
    checkpoint.close()
    shard.close()


def test_a_folder_that_vanishes_meanwhile_is_told_on_all(group, model, shared_tmp, monkeypatch):
    mine, plain = shared_tmp / f"rank-{group.rank}", ShardWriter.finish

    def removed(self):
        if group.rank == group.size - 1:
            shutil.rmtree(mine)
        plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", removed)
        with pytest.raises(MachineError, match="was removed while it was written; the same"):
            cut(group, model, mine)
    assert content(cut(group, model, mine))


def test_a_rank_notes_how_much_it_has_for_the_guard(group, model, shared_tmp, monkeypatch):
    """As a kill leaves it: an earlier run's tensors count, too."""
    path = cut(group, model, shared_tmp)
    partial = path.rename(f"{path}.partial")
    layout = parse(partial)
    with partial.open("r+b") as file:
        file.seek(layout.checksums + 8 * (len(layout.tensors) - 1))
        file.write(bytes(8))
        file.flush()
        first = min(t.offset for t in layout.tensors if t.nbytes)
        write_seal(file.fileno(), partial.stat().st_size, first, layout.tables, finished=False)
    group.comm.Barrier()
    told, plain = [], ShardWriter.complete
    monkeypatch.setattr(
        ShardWriter,
        "complete",
        lambda self, *a: (
            told.append((status.current.own.doing, status.current.figures)),
            plain(self, *a),
        )[1],
    )
    cut(group, model, shared_tmp)
    ((doing, figures),) = told
    assert doing == ("cutting the checkpoint" if group.rank == 0 else "receiving its shard")
    if group.rank:  # where nothing may have arrived yet
        have, of = figures.split(" of ")
        assert 0 < float(have.split()[0]) <= float(of.split()[0])


def test_a_user_error_of_another_rank_tells_which(group, model, shared_tmp, monkeypatch):
    def broken(self, index, source):
        if group.rank == group.size - 1:
            raise UserError("no")

    monkeypatch.setattr(ShardWriter, "complete", broken)
    where = rf" \(rank {group.size - 1} on .*\)" if group.size > 1 else ""
    with pytest.raises(UserError, match=f"^no{where}$"):
        cut(group, model, shared_tmp)
