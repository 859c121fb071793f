"""Ranks that have the checkpoint themselves cut their shards from it, if it is the same."""

import os
import shutil

import numpy as np
import pytest

from tpimpi.checkpoint import fingerprint
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.model.config import ModelConfig
from tpimpi.shards import cutting, local
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.shard import Shard
from tpimpi.shards.source import Source

TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def sent(monkeypatch):
    """The bytes that this rank was sent, one entry a message."""
    found, plain = [], cutting.receive_all
    monkeypatch.setattr(
        cutting, "receive_all",
        lambda group, writer, arrived: plain(
            group, writer, lambda n: (found.append(n), arrived(n))[1]
        ),
    )  # fmt: skip
    return found


@pytest.fixture
def model(references):
    return references / "yi"


def cut(group, directory, folder, where=None):
    shard, _ = Source(group, directory, ShardRequest(folder, local=where)).shard(group)
    shard.close()
    shard.verify_sums = [int(s) for s in shard._sums]
    return shard


def same(one, other):
    return one.verify_sums == other.verify_sums and one.sources == other.sources


def reasons(capsys, group):
    lines = [line for line in capsys.readouterr().err.splitlines() if "sent what" in line]
    assert group.rank == 0 or not lines
    return lines


def own_copy(group, model, shared_tmp):
    """Return a directory of this rank's own with the model in it."""
    mine = shared_tmp / f"own-{group.rank}" / "model"
    shutil.copytree(model, mine)
    return mine


def test_ranks_that_have_the_checkpoint_are_sent_nothing(
    group, model, shared_tmp, sent, capsys, monkeypatch
):
    plain = cut(group, model, shared_tmp / "plain")
    sent.clear()
    assert same(cut(group, model, shared_tmp / "cut", ""), plain)
    mine = own_copy(group, model, shared_tmp)
    assert same(cut(group, model, shared_tmp / "own", mine), plain)
    assert not sent and not reasons(capsys, group)


def test_a_rank_without_it_or_with_another_is_sent_its_shard(
    group, model, references, shared_tmp, sent, capsys
):
    plain = cut(group, model, shared_tmp / "plain")
    sent.clear()
    mine, last = own_copy(group, model, shared_tmp), group.size - 1
    if group.rank == last:
        shutil.rmtree(mine)
    assert same(cut(group, model, shared_tmp / "without", mine), plain)
    lines = reasons(capsys, group)
    if group.size > 1:
        assert bool(sent) == (group.rank == last)
        assert group.rank or (len(lines) == 1 and f"rank {last} is sent" in lines[0])
        assert group.rank or f"own-{last}" in lines[0]
    other = references / "llama2" if group.rank == last else mine
    assert same(cut(group, model, shared_tmp / "another", other), plain)
    lines = reasons(capsys, group)
    if group.size > 1 and group.rank == 0:
        assert len(lines) == 1 and "fingerprint" in lines[0]


def test_numbers_that_differ_in_the_middle_are_sent(group, model, shared_tmp, sent, capsys):
    """The fingerprint doesn't see them; the hash does, and that tensor alone is sent."""
    plain = cut(group, model, shared_tmp / "plain")
    sent.clear()
    mine, last = own_copy(group, model, shared_tmp), group.size - 1
    if group.rank == last:
        checkpoint = Checkpoint(mine, ModelConfig.from_directory(mine))
        tensor = checkpoint.weight(TENSOR)
        checkpoint.close()
        with tensor.path.open("r+b") as file:
            file.seek(tensor.offset + tensor.nbytes // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        assert tensor.nbytes > 4 * fingerprint._EDGE
    assert same(cut(group, model, shared_tmp / "cut", mine), plain)
    lines = reasons(capsys, group)
    if group.size > 1:
        piece = next(t for t in plain.tensors if t.name == "layers/01/mlp/down_proj")
        assert group.rank != last or 0 < sum(sent) <= piece.nbytes
        assert group.rank == last or not sent
        assert group.rank or (len(lines) == 1 and TENSOR in lines[0])


def test_a_copy_that_cant_be_read_any_more_is_given_up(
    group, model, shared_tmp, sent, capsys, monkeypatch
):
    plain = cut(group, model, shared_tmp / "plain")
    sent.clear()
    mine, last = own_copy(group, model, shared_tmp), group.size - 1

    class Failing(local.Checkpoint):
        count = 0

        def read(self, *what):
            Failing.count += 1
            if Failing.count > 6:
                raise OSError(5, os.strerror(5))
            return super().read(*what)

    if group.rank == last:
        monkeypatch.setattr(local, "Checkpoint", Failing)
    assert same(cut(group, model, shared_tmp / "cut", mine), plain)
    lines = reasons(capsys, group)
    if group.size > 1 and group.rank == 0:
        assert len(lines) == 1 and "Input/output error" in lines[0]


def test_rank_0_hashes_what_only_others_cut(group, model, shared_tmp, sent):
    """Its own shard is there, but not what it knew of the checkpoint's hashes."""
    plain = cut(group, model, shared_tmp)
    group.comm.Barrier()
    if group.rank == 0:
        (shared_tmp / "checkpoint.hashes").unlink()
    else:
        plain.path.unlink()
    group.comm.Barrier()
    sent.clear()
    assert same(cut(group, model, shared_tmp, ""), plain) and not sent
    shard = Shard(plain.path)
    assert np.count_nonzero(shard._sums) == len(shard.tensors)
    shard.close()
