"""What the tape serves, and what it does where reads fail."""

import errno
import os

import numpy as np
import pytest

from tpimpi.comm.group import Group
from tpimpi.errors import MachineError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.source import Source
from tpimpi.tape.tape import Tape


def shards(group, directory, folder):
    return Source(group, directory, folder).shard(group)


@pytest.mark.parametrize("ring", [0, 9000, 1 << 20])
@pytest.mark.parametrize("kept", ["none", "some", "all"])
def test_tape_gives_the_same_weights_lap_after_lap(comm, references, shared_tmp, ring, kept):
    group = Group(comm)
    shard, _ = shards(group, references / "llama31", shared_tmp)
    names = [t.name for t in shard.tensors if len(t.shape) == 2 and t.name != "embed"]
    rows = {name: shard[name].shape[0] for name in names}
    some = {name: rows[name] * (i % 3) // 2 for i, name in enumerate(names)}
    resident = {"none": {}, "some": some, "all": rows}[kept]
    tape = Tape(shard, names, resident, ring)
    for _ in range(3):
        for name in names:
            rows = [w.copy() for _, w in tape.take(name)]
            wide = shard.widened(name)
            if wide.size:
                encoding = ENCODINGS[shard[name].encoding]
                np.testing.assert_array_equal(encoding.widen(np.concatenate(rows)), wide)
    tape.close()
    shard.close()
    group.close()


def test_tape_without_direct_reads(comm, references, shared_tmp, monkeypatch):
    plain = os.open

    def refuse_direct(path, flags, *more):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain(path, flags, *more)

    group = Group(comm)
    shard, _ = shards(group, references / "yi", shared_tmp)
    monkeypatch.setattr(os, "open", refuse_direct)
    names = [t.name for t in shard.tensors if len(t.shape) == 2 and t.name != "embed"]
    tape = Tape(shard, names, {}, 0)
    for name in names * 2:
        rows = [w.copy() for _, w in tape.take(name)]
        if rows:
            encoding = ENCODINGS[shard[name].encoding]
            np.testing.assert_array_equal(encoding.widen(np.concatenate(rows)), shard.widened(name))
    tape.close()
    shard.close()
    group.close()


def test_a_file_that_vanishes_under_the_tape_is_told(comm, references, shared_tmp):
    group = Group(comm)
    shard, _ = shards(group, references / "llama31", shared_tmp)
    names = [t.name for t in shard.tensors if len(t.shape) == 2 and t.name != "embed" and t.nbytes]
    with shard.path.open("r+b") as file:
        file.truncate(shard[names[-1]].offset)
    tape = Tape(shard, names, {}, 0)
    with pytest.raises(MachineError, match="ended at byte"):
        for name in names:
            for _ in tape.take(name):
                pass
    tape.close()
    group.close()
