"""Random weights of a shape: the same model over any number of ranks, whole, and finite."""

import numpy as np
import pytest

from tpimpi.comm.group import Group
from tpimpi.engine.session import load_session
from tpimpi.errors import UserError
from tpimpi.memory.account import Work
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import SHAPES, shape_config
from tpimpi.model.tensors import pieces
from tpimpi.shards.synthetic import RandomWeights, SyntheticSource


def source(group, folder, shape="tiny", encoding="bf16"):
    return SyntheticSource(group, shape_config(shape), encoding, folder)


@pytest.mark.parametrize(
    ("shape", "encoding"), [("tiny", "bf16"), ("tiny", "f16"), ("demo-tiny", "f32")]
)
def test_every_rank_holds_its_slices_of_one_model(comm, shared_tmp, shape, encoding):
    group = Group(comm)
    made = source(group, shared_tmp, shape, encoding)
    shard, written = made.shard(group)
    assert written and not made.sparse
    assert made.nbytes == sum(tensor.nbytes for tensor in shard.tensors)
    config = made.config
    weights, kind = RandomWeights(config.hidden_size, ENCODINGS[encoding]), ENCODINGS[encoding]
    whole = {p.source: p for p in pieces(config, Partition.of(config, [1]).ranks[0])}
    for piece in pieces(config, made.partition.ranks[group.rank]):
        found = shard.widened(piece.name)
        if len(piece.shape) == 1:
            assert abs(found.mean() - 1) < 0.1
            continue
        one = whole[piece.source]
        raw = weights.rows(one, 0, one.shape[0])  # [N, K]
        expected = kind.widen(raw)[piece.rows, piece.columns or slice(None)]
        np.testing.assert_array_equal(found, expected)
        if found.size > 500:
            assert 0.9 < found.std() * config.hidden_size**0.5 < 1.1
    shard.verify()
    first = {tensor.name: shard.widened(tensor.name) for tensor in shard.tensors}
    shard.close()
    assert not made.shard(group)[1]  # it is there
    again, written = made.shard(group, again=True)
    assert written
    for name, values in first.items():
        np.testing.assert_array_equal(again.widened(name), values)
    again.close()
    group.close()


def test_the_model_runs(comm, shared_tmp):
    group = Group(comm)
    made = source(group, shared_tmp)
    shard, _ = made.shard(group)
    session = load_session(group, made, shard, MemoryRequest(everything=True), Work(5, 16), 1)
    with session:
        if group.rank == 0:
            logits = session.engine.prefill([3, 1, 4, 1, 5])
            assert np.isfinite(logits).all() and 0.1 < logits.std() < 100
        session.finish()
    group.close()


def test_sparse_files_take_no_room_and_are_not_taken_for_others(comm, shared_tmp):
    group = Group(comm)
    made = source(group, shared_tmp, "llama2-70b")
    assert made.sparse  # whether asked or not: 129 GiB
    shard, _ = made.shard(group)
    status = shard.path.stat()
    assert status.st_size > 10 << 30 and status.st_blocks * 512 < 16 << 20
    assert not shard.widened("norm").any()
    shard.close()
    group.close()


def test_a_shard_of_another_dtype_is_refused(comm, shared_tmp):
    group = Group(comm)
    made = source(group, shared_tmp)
    made.shard(group)[0].close()
    other = source(group, shared_tmp, encoding="f32")
    with pytest.raises(UserError, match="fingerprint.*--split-bin"):
        other.shard(group)
    group.close()


def test_an_unknown_shape_is_refused_with_the_names():
    with pytest.raises(UserError, match=", ".join(SHAPES)):
        shape_config("huge")
