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
from tpimpi.model.tensors import Kind, Piece, Tensor, pieces
from tpimpi.shards.layout import PAGE, tape_layout
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.synthetic import BLOCK, SPARE_BYTES, RandomWeights, SyntheticSource


def source(group, folder, shape="tiny", encoding="bf16"):
    return SyntheticSource(group, shape_config(shape), encoding, ShardRequest(folder))


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
    at = PAGE
    for tensor in tape_layout(pieces(config, made.partition.ranks[group.rank]),
                              lambda _: encoding).values():  # fmt: skip
        assert tensor.offset % PAGE == 0 and tensor.offset >= at
        assert tensor.nbytes == shard[tensor.name].nbytes
        at = tensor.offset + tensor.nbytes
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


def test_a_matrix_larger_than_what_is_drawn_comes_in_runs():
    """A row is the same in whatever run and piece it comes; another tensor has other numbers."""
    weights, shape = RandomWeights(64, ENCODINGS["f32"]), (1500, 2001)
    assert shape[0] * shape[1] > 2 * BLOCK

    def rows(source, cut, columns):
        tensor = Tensor(source, source, shape, Kind.MATRIX)
        piece = Piece(tensor, cut, columns, (cut.stop - cut.start, shape[1]))
        found = [weights.rows(piece, 0, piece.shape[0])]
        while (row := sum(map(len, found))) < piece.shape[0]:
            found.append(weights.rows(piece, row, piece.shape[0] - row))
        return np.concatenate(found)

    whole = rows("a", slice(0, 1500), None)
    assert whole.shape == shape and np.unique(whole[:, 0]).size > 1400
    np.testing.assert_array_equal(rows("a", slice(700, 1500), slice(3, 9)), whole[700:, 3:9])
    assert (rows("b", slice(0, 3), None) != whole[:3]).mean() > 0.99
    bias = Tensor("c", "c", (900,), Kind.BIAS)
    vectors = [weights.vector(Piece(bias, cut, None, (cut.stop - cut.start,)))
               for cut in (slice(0, 900), slice(300, 500))]  # fmt: skip
    np.testing.assert_array_equal(vectors[1], vectors[0][300:500])


def test_the_model_runs(comm, shared_tmp):
    group = Group(comm)
    made = source(group, shared_tmp)
    shard, _ = made.shard(group)
    session = load_session(group, made, shard, MemoryRequest(everything=True), Work(5, 16), 1)
    with session:
        if group.rank == 0:
            logits = session.runner.prefill([3, 1, 4, 1, 5])
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


def test_some_room_is_left_on_the_disk(comm, shared_tmp, monkeypatch):
    group = Group(comm)
    need = group.node.allreduce(source(group, shared_tmp).nbytes)
    for free, sparse in ((need + SPARE_BYTES, False), (need + SPARE_BYTES - 1, True)):
        monkeypatch.setattr("tpimpi.shards.synthetic.free_disk", lambda _, free=free: free)
        assert source(group, shared_tmp).sparse == sparse
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
