"""What the tape serves, and what it does where reads fail."""

import errno
import os

import numpy as np
import pytest

from tpimpi.comm.group import Group
from tpimpi.errors import MachineError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source
from tpimpi.tape.reads import streamed_lap
from tpimpi.tape.tape import Tape


def shards(group, directory, folder):
    return Source(group, directory, ShardRequest(folder)).shard(group)


def taken(tape, tensor):
    """Return the rows [N, K] of the tape's next tensor as float32."""
    encoding, rows = ENCODINGS[tensor.encoding], [np.zeros((0, tensor.shape[1]), np.float32)]
    for row, panels in tape.take(tensor.name):
        assert row == sum(map(len, rows)) and panels.flags.c_contiguous
        count = min(16 * len(panels), tensor.shape[0] - row)
        rows.append(encoding.widen(encoding.unpack(panels, count, tensor.shape[1])))
    return np.concatenate(rows).reshape(tensor.shape)


@pytest.mark.parametrize("ring", [0, 9000, 1 << 20])
@pytest.mark.parametrize("kept", ["none", "some", "all"])
def test_tape_gives_the_same_weights_lap_after_lap(comm, references, shared_tmp, ring, kept):
    group = Group(comm)
    shard, _ = shards(group, references / "llama31", shared_tmp)
    names = [t.name for t in shard.tensors if len(t.shape) == 2 and t.name != "embed"]
    panels = {name: shard[name].panels for name in names}
    some = {name: panels[name] * (i % 3) // 2 for i, name in enumerate(names)}
    resident = {"none": {}, "some": some, "all": panels}[kept]
    tape = Tape(shard, names, resident, ring)
    lap = streamed_lap([shard[name] for name in names], resident)
    assert 2 * lap.largest <= tape.ring_bytes  # one is read while another is used
    for _ in range(3):
        for name in names:
            np.testing.assert_array_equal(taken(tape, shard[name]), shard.widened(name))
    tape.close()
    shard.close()
    group.close()


@pytest.mark.parametrize("kept", ["none", "some", "all"])
def test_kept_tensors_are_taken_at_once(comm, references, shared_tmp, kept):
    """Whatever is taken at once, or refused, the laps go on as if tensors were taken singly."""
    group = Group(comm)
    shard, _ = shards(group, references / "llama31", shared_tmp)
    names = [t.name for t in shard.tensors if t.in_panels]
    streams = {"none": set(names), "some": set(names[5:9]), "all": set()}[kept]
    resident = {n: shard[n].panels if n not in streams else 0 for n in names}
    expected = {n: shard.widened(n) for n in names}
    tape, groups = Tape(shard, names, resident, 0), [names[i : i + 3] for i in range(0, 99, 3)]
    groups = [some for some in groups if some]
    for lap in range(3):
        read = lap > 0 or not any(shard[n].nbytes for n in names)
        for some in groups:
            if len(groups) > 1:
                other = groups[groups.index(some) - 1]
                assert tape.take_kept(other) is None
            panels = tape.take_kept(some)
            # What has no panels never streams, whatever the others do.
            whole = read and not any(n in streams and shard[n].panels for n in some)
            assert (panels is not None) == whole, (lap, some)
            if panels is None:
                for name in some:
                    np.testing.assert_array_equal(taken(tape, shard[name]), expected[name])
                continue
            for name, found in zip(some, panels, strict=True):
                tensor, encoding = shard[name], ENCODINGS[shard[name].encoding]
                assert found.dtype == np.uint8 and len(found) == tensor.panels
                if tensor.panels:
                    rows = encoding.widen(encoding.unpack(found, *tensor.shape))
                    np.testing.assert_array_equal(rows, expected[name])
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
        np.testing.assert_array_equal(taken(tape, shard[name]), shard.widened(name))
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
