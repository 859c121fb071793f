"""Rows that come in runs of any length become the same panels, with few rows kept over."""

import h5py
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import Kind, Piece, Tensor
from tpimpi.shards.gather import PACKED_BYTES, Gatherer
from tpimpi.shards.layout import Identity, StoredTensor
from tpimpi.shards.shard import Shard
from tpimpi.shards.writer import ShardWriter

BF16 = ENCODINGS["bf16"]
RUNS = st.lists(st.integers(1, 40) | st.integers(1, 700), min_size=1, max_size=20)


def matrix(rows, columns):
    return np.random.default_rng(rows).integers(1, 1 << 16, (rows, columns), np.uint16)


def cut(rows, runs):
    return np.split(rows, np.cumsum(runs)[:-1])


@settings(max_examples=60, deadline=None)
@given(RUNS, st.sampled_from([1, 7, 500, 4000, 40_000]))
def test_runs_of_any_length_become_the_same_panels(runs, columns):
    runs = runs if columns < 4000 else runs[:3]
    rows = matrix(sum(runs), columns)
    gatherer = Gatherer(StoredTensor("t", "bf16", rows.shape, 0, in_panels=True))
    found, came = [], 0
    for run in cut(rows, runs):
        buffer = run.copy()
        found += gatherer.panels(buffer)
        buffer[...] = 0  # it takes the next rows that a rank is sent
        came += len(run)
        out = sum(map(len, found))
        # At most fifteen rows are kept over, and none at the end.
        assert out == (came // 16 if came < len(rows) else -(-came // 16))
    assert all(p.nbytes <= max(PACKED_BYTES, BF16.panel_bytes(columns)) for p in found)
    np.testing.assert_array_equal(np.concatenate(found), BF16.pack(rows))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(RUNS, st.integers(0, 300)), min_size=1, max_size=4).filter(
        lambda many: any(columns for _, columns in many)
    ),
    st.randoms(),
)
def test_tensors_that_are_written_by_turns_keep_to_themselves(tmp_path_factory, many, random):
    """As the embedding and a head that is tied to it are, which come of the same tensor."""
    path = tmp_path_factory.mktemp("gather") / "shard.h5"
    pieces, whole = [], []
    for i, (lengths, columns) in enumerate(many):
        rows = matrix(sum(lengths), columns)
        kind = Kind.TABLE if i == 1 else Kind.MATRIX
        tensor = Tensor(f"t{i}", f"t{i}", rows.shape, kind)
        pieces.append(Piece(tensor, slice(0, len(rows)), None, rows.shape))
        whole.append((rows, iter(cut(rows, lengths))))
    identity = Identity("0123456789abcdef", "[]", 0, 1, "{}")
    writer = ShardWriter(path, identity, pieces, ["bf16"] * len(pieces))
    order = [i for i, (lengths, columns) in enumerate(many) for _ in lengths if columns]
    random.shuffle(order)
    for i in order:
        writer.write(i, next(whole[i][1]))
    for i in range(len(pieces)):
        writer.complete(i)
    writer.finish()
    writer.close()
    shard = Shard(path)
    shard.verify()
    shard.close()
    with h5py.File(path) as file:
        for i, (rows, _) in enumerate(whole):
            expected, stored = BF16.widen(rows), file[f"t{i}"]
            assert (
                stored.size == (16 * -(-len(rows) // 16) if i != 1 else len(rows)) * rows.shape[1]
            )
            for n in range(0, len(rows) if rows.size else 0, 13):
                found = stored[n] if i == 1 else stored[n // 16, :, n % 16]
                np.testing.assert_array_equal(found, expected[n])
