"""Conversion over all ranks, what HDF5 tools see, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from references import FAMILIES
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.errors import MachineError, UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import pieces
from tpimpi.shards.layout import PAGE
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.seal import write_seal
from tpimpi.shards.shard import parse
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter


def shards(group, directory, folder, again=False):
    return Source(group, directory, ShardRequest(folder)).shard(group, again)


def by_hdf5(dataset):
    """Return a tensor's rows as float32; what the last panel lacks must be stored as zeros."""
    stored = dataset[...].astype(np.float32)
    if "rows" not in dataset.attrs:
        return stored
    count, columns = dataset.attrs["rows"], dataset.attrs["columns"]
    assert stored.shape == ((count + 15) // 16 if columns else 0, columns, 16)
    rows = np.array([stored[n // 16, :, n % 16] for n in range(16 * len(stored))])
    if not len(stored):
        return np.zeros((count, columns), np.float32)
    assert not rows[count:].any()
    return rows[:count]


def unfinish(shard, missing):
    """Leave a shard as a kill does: under its working name, some tensors not yet written."""
    partial = shard.path.with_name(shard.path.name + ".partial")
    shard.path.rename(partial)
    layout = parse(partial)
    with partial.open("r+b") as file:
        for index in range(len(shard.tensors))[missing]:
            file.seek(layout.checksums + 8 * index)
            file.write(bytes(8))
        file.flush()
        first = min(t.offset for t in shard.tensors if t.nbytes)
        write_seal(file.fileno(), partial.stat().st_size, first, layout.tables, finished=False)
    return partial


@pytest.mark.parametrize("name", FAMILIES)
def test_every_shard_holds_its_slices(comm, references, shared_tmp, name):
    group, directory = Group(comm), references / name
    shard, written = shards(group, directory, shared_tmp)
    assert written
    config = ModelConfig.from_directory(directory)
    source = Checkpoint(directory, config)
    mine = Partition.of(config, [1] * group.size).ranks[group.rank]
    with h5py.File(shard.path) as file:
        for piece in pieces(config, mine):
            raw = source.read(piece.source, piece.rows, piece.columns)
            encoding = ENCODINGS[source.weight(piece.source).encoding]
            wide = encoding.widen(raw).reshape(piece.shape)
            np.testing.assert_array_equal(by_hdf5(file[piece.name]), wide)
            np.testing.assert_array_equal(shard.widened(piece.name), wide)
            assert (
                ("rows" in file[piece.name].attrs) == piece.streamed == shard[piece.name].in_panels
            )
            assert shard[piece.name].offset % 4096 == 0
    again, written = shards(group, directory, shared_tmp)
    assert not written
    again.close()
    shard.close()
    group.close()


def test_a_shard_of_another_model_is_refused_everywhere(comm, references, shared_tmp):
    group = Group(comm)
    shards(group, references / "llama3", shared_tmp)[0].close()
    with pytest.raises(UserError, match="fingerprint.*--split-bin"):
        shards(group, references / "yi", shared_tmp)
    shards(group, references / "yi", shared_tmp, again=True)[0].close()
    group.close()


@pytest.mark.parametrize("how", ["flip", "cut", "metadata", "version"])
def test_a_damaged_shard_is_refused_everywhere(comm, references, shared_tmp, how):
    group = Group(comm)
    shard, _ = shards(group, references / "llama2", shared_tmp)
    shard.close()
    group.comm.Barrier()
    if group.rank == group.size - 1:
        target, data = shard["layers/01/mlp/up_proj"], bytearray(shard.path.read_bytes())
        if how == "flip":
            data[target.offset + target.nbytes // 2] ^= 4
        elif how == "metadata":
            data[data.index(b"OHDR") + 10] ^= 0xFF
        elif how == "cut":
            del data[target.offset + 1 :]
        elif how == "version":  # as the first one began: with HDF5's own signature
            del data[:PAGE]
        shard.path.write_bytes(data)
    group.comm.Barrier()
    with pytest.raises((MachineError, UserError), match="--split-bin"):
        shards(group, references / "llama2", shared_tmp)
    shards(group, references / "llama2", shared_tmp, again=True)[0].close()
    group.close()


def test_conversion_goes_on_where_it_stopped(comm, references, shared_tmp, monkeypatch):
    group, directory = Group(comm), references / "tinyllama"
    shard, _ = shards(group, directory, shared_tmp)
    whole = [shard.widened(t.name) for t in shard.tensors if t.nbytes]
    shard.close()
    partial = unfinish(shard, slice(len(shard.tensors) // 2, None))
    layout = parse(partial)
    with partial.open("r+b") as file:
        file.seek(layout.checksums)
        file.write(np.uint64(12345 + (1 << 32)).tobytes())  # a wrong checksum is not believed
    written = []
    plain = ShardWriter.complete
    monkeypatch.setattr(
        ShardWriter, "complete", lambda self, i, s: (written.append(i), plain(self, i, s))[1]
    )
    shard, _ = shards(group, directory, shared_tmp)
    assert sorted(written) == [0, *range(len(shard.tensors) // 2, len(shard.tensors))]
    again = [shard.widened(t.name) for t in shard.tensors if t.nbytes]
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))
    shard.verify()
    shard.close()
    group.close()


def test_root_attributes_tell_what_a_shard_is(comm, references, shared_tmp):
    group = Group(comm)
    shard, _ = shards(group, references / "llama3", shared_tmp)
    with h5py.File(shard.path) as file:
        assert json.loads(file.attrs["config"])["num_heads"] == 6
        assert file.attrs["size"] == group.size and file.attrs["rank"] == group.rank
    shard.close()
    copy = shared_tmp / f"copy-{group.rank}"
    copy.mkdir()
    shutil.copy(shard.path, copy)
    group.close()


def test_the_script_in_the_docs_reads_a_shard(comm, references, shared_tmp):
    group = Group(comm)
    shard, _ = shards(group, references / "llama3", shared_tmp)
    page = (Path(__file__).parent.parent / "docs" / "shards.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    command = [sys.executable, "-c", script, str(shard.path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == f"rank {group.rank} of {group.size}"
    for line, tensor in zip(lines[1:], shard.tensors, strict=True):
        rows, columns = (*tensor.shape, 0)[:2]
        stored = ((rows + 15) // 16 if columns else 0, columns, 16)
        shape = stored if tensor.in_panels else tensor.shape
        largest = np.abs(shard.widened(tensor.name)[-1]).max() if tensor.nbytes else 0
        assert line == f"{tensor.name} {shape} {tensor.encoding} {largest!s}"
    shard.close()
    group.close()
