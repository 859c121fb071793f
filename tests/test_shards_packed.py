"""An encoding whose panels are bytes of its own: nothing else need know what they mean."""

from dataclasses import dataclass, fields

import h5py
import numpy as np
import pytest

from tpimpi.comm.group import Group
from tpimpi.model.encoding import ENCODINGS, Encoding
from tpimpi.model.shapes import shape_config
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource
from tpimpi.tape.tape import Tape


@dataclass(frozen=True)
class Headed(Encoding):
    """bf16 whose panels begin with a byte that all their others are turned by."""

    def panel_bytes(self, columns):
        return 1 + 32 * columns

    def pack(self, rows):
        plain = super().pack(rows)  # [P, 32 K]
        head = plain.sum(axis=1, dtype=np.uint8, keepdims=True) | 1  # [P, 1]
        return np.concatenate((head, plain ^ head), axis=1)

    def unpack(self, panels, rows, columns):
        return super().unpack((panels[:, 1:] ^ panels[:, :1]).copy(), rows, columns)


def rows_of(panels, tensor):
    """Return the rows [N, K] as bf16's bits, without the encoding's help."""
    (count, columns), plain = tensor.shape, panels[:, 1:] ^ panels[:, :1]
    bits = np.ascontiguousarray(plain).view(np.uint16).reshape(-1, columns, 16)  # [P, K, 16]
    return bits.transpose(0, 2, 1).reshape(-1, columns)[:count]


@pytest.fixture(params=["cut", "random"])
def made(request, comm, references, shared_tmp, monkeypatch):
    """A shard with plain panels as numbers by name, and one of the same model with heads."""
    group = Group(comm)

    def make(folder):
        if request.param == "cut":
            return Source(group, references / "llama3", ShardRequest(folder)).shard(group)[0]
        return SyntheticSource(group, shape_config("tiny"), "bf16", ShardRequest(folder)).shard(
            group
        )[0]

    plain = make(shared_tmp / "plain")
    numbers = {tensor.name: plain.widened(tensor.name) for tensor in plain.tensors}
    plain.close()
    bf16 = ENCODINGS["bf16"]
    given = {field.name: getattr(bf16, field.name) for field in fields(Encoding)}
    monkeypatch.setitem(ENCODINGS, "bf16", Headed(**given | {"packed": True}))
    headed = make(shared_tmp / "headed")
    yield numbers, headed
    headed.close()
    group.close()


def test_panels_of_bytes_are_stored_and_read_back(made):
    numbers, shard = made
    shard.verify()
    assert sum(tensor.panels for tensor in shard.tensors) > 5
    with h5py.File(shard.path) as file:
        for tensor in shard.tensors:
            dataset, expected = file[tensor.name], numbers[tensor.name]
            np.testing.assert_array_equal(shard.widened(tensor.name), expected)
            if not tensor.in_panels:  # the embedding and vectors are bf16 as ever
                np.testing.assert_array_equal(dataset[...].astype(np.float32), expected)
                continue
            assert (dataset.attrs["rows"], dataset.attrs["columns"]) == tensor.shape
            assert dataset.dtype == np.uint8 and dataset.chunks is None
            assert dataset.shape == (tensor.panels, 1 + 32 * tensor.shape[1])
            if tensor.panels:
                assert tensor.offset % 4096 == 0 and tensor.nbytes == dataset.nbytes
                found = rows_of(dataset[...], tensor).astype(np.uint32) << 16
                np.testing.assert_array_equal(found.view(np.float32), expected)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_panels_of_bytes_pass_over_the_tape(made, share):
    numbers, shard = made
    names = [tensor.name for tensor in shard.tensors if tensor.in_panels]
    tape = Tape(shard, names, {n: int(shard[n].panels * share) for n in names}, 0)
    for _ in range(2):
        for name in names:
            expected, encoding, end = numbers[name], ENCODINGS["bf16"], 0
            for row, panels in tape.take(name):
                assert row == end and panels.shape[1] == 1 + 32 * expected.shape[1]
                end = min(row + 16 * len(panels), len(expected))
                found = encoding.widen(encoding.unpack(panels, end - row, expected.shape[1]))
                np.testing.assert_array_equal(found, expected[row:end])
            assert end == (len(expected) if expected.size else 0)
    tape.close()
