"""An interrupted run goes on within a tensor, and only if that was cut from the files of today."""

import errno
import os
import shutil
import threading
import time

import numpy as np
import pytest

from support import content, cut, in_small_messages
from tpimpi.errors import MachineError, UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import shape_config
from tpimpi.model.tensors import pieces
from tpimpi.shards import feed as feed_module
from tpimpi.shards.begun import BEGUN, Begun, bytes_of_rows
from tpimpi.shards.layout import Identity
from tpimpi.shards.shard import Shard
from tpimpi.shards.writer import ShardWriter

NOW = b"n" * 20
CONFIG = ModelConfig.from_json(shape_config("demo-tiny").to_json())
PIECES = pieces(CONFIG, Partition.of(CONFIG, [1] * 8).ranks[0])  # the embedding among them
IDENTITY = Identity("0123456789abcdef", "[]", 0, 8, CONFIG.to_json())


def begin(path):
    return ShardWriter(path, IDENTITY, PIECES, ["bf16"] * len(PIECES))


def numbers(tensor):
    made = np.random.default_rng(abs(hash(tensor.shape)) % 1000)
    return made.integers(0, 1 << 16, tensor.shape, np.uint16)


def test_a_tensor_goes_on_after_its_last_whole_panel(tmp_path):
    writer = begin(tmp_path / "shard.h5")
    matrices = [i for i, t in enumerate(writer.tensors) if len(t.shape) == 2 and t.shape[0] > 20]
    kinds = {writer.tensors[i].in_panels for i in matrices}
    assert kinds == {True, False}  # the embedding lies in rows
    for index in matrices:
        writer.write(index, numbers(writer.tensors[index])[:19], NOW)
    begun_bytes = writer.kept
    writer.close()

    writer = begin(tmp_path / "shard.h5")
    assert not any(writer.done())
    assert sorted(writer.begun) == matrices
    for index in matrices:
        tensor, note = writer.tensors[index], writer.begun[index]
        assert note.rows == (16 if tensor.in_panels else 19) and note.origin == NOW
        assert writer.resume(index) == note.rows
    assert writer.kept == begun_bytes > 0
    for index, tensor in enumerate(writer.tensors):
        rows = numbers(tensor)
        writer.write(index, rows[writer.begun[index].rows :] if index in matrices else rows, NOW)
        writer.complete(index, bytes([1] * 32))
    assert writer.kept == writer.nbytes
    writer.finish()
    writer.close()

    second = int(time.time())  # HDF5 would note those in which objects were made
    while int(time.time()) == second:
        time.sleep(0.05)
    other = begin(tmp_path / "other.h5")
    for index, tensor in enumerate(other.tensors):
        other.write(index, numbers(tensor))
        other.complete(index, bytes([1] * 32))
    other.finish()
    other.close()
    assert (tmp_path / "shard.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_rows_that_are_damaged_are_not_believed(tmp_path):
    writer = begin(tmp_path / "shard.h5")
    index = next(i for i, t in enumerate(writer.tensors) if t.in_panels and t.shape[0] > 20)
    tensor, layout = writer.tensors[index], writer._layout
    writer.write(index, numbers(tensor)[:19], NOW)
    writer.close()
    whole = writer.partial.read_bytes()
    places = [tensor.offset, tensor.offset + bytes_of_rows(tensor, 16) - 1]
    places += [layout.sources + 32 * index + at for at in (0, 1, 7, 8, 11)]
    places += [layout.checksums + 8 * index + at for at in (0, 3, 4, 7)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1
        writer.partial.write_bytes(data)
        writer = begin(tmp_path / "shard.h5")
        assert not any(writer.done()) and not writer.begun, place
        writer.close()


def test_what_can_be_no_note_is_none(tmp_path):
    writer = begin(tmp_path / "shard.h5")
    writer.close()
    tensor = next(t for t in writer.tensors if t.in_panels and t.shape[0] > 20)
    vector = next(t for t in writer.tensors if len(t.shape) == 1)
    assert Begun.from_bytes(Begun(16, 7, NOW).to_bytes(), tensor) == Begun(16, 7, NOW)
    for rows in (0, 15, tensor.shape[0], 1 << 40):
        assert Begun.from_bytes(Begun(rows, 7, NOW).to_bytes(), tensor) is None
    assert Begun.from_bytes(Begun(1, 7, NOW).to_bytes(), vector) is None
    assert BEGUN + (1 << 32) - 1 < 1 << 64


def interrupted(group, model, folder, monkeypatch):
    """Cut until a rank's disk has failed in the middle of its tensors."""
    plain, count = os.pwrite, [0]

    def fails(fd, data, at):
        count[0] += isinstance(data, memoryview)
        if group.rank == group.size - 1 and count[0] > 60 and isinstance(data, memoryview):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr("tpimpi.shards.writer.os.pwrite", fails)
        with pytest.raises(MachineError, match=r"Input/output error.* are kept, and the same"):
            cut(group, model, folder)


def sent_bytes(group, model, folder, monkeypatch):
    """Cut what is left; return the path, and how many bytes of rows that took on all ranks."""
    taken = []
    cut_rows = feed_module.Feed._cut

    def watched(self, tensor, rows):
        found = cut_rows(self, tensor, rows)
        taken.extend(len(one) - 64 for _, one in found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(feed_module.Feed, "_cut", watched)
        path = cut(group, model, folder)
    return path, group.comm.bcast(sum(taken))


def test_only_rows_that_are_missing_are_sent(group, references, shared_tmp, monkeypatch):
    model = references / "yi"
    in_small_messages(monkeypatch, 300)
    path, whole = sent_bytes(group, model, shared_tmp / "plain", monkeypatch)
    interrupted(group, model, shared_tmp / "again", monkeypatch)
    seen = []
    with monkeypatch.context() as patch:
        plain = feed_module.Job.needs
        patch.setattr(
            feed_module.Job, "needs", lambda job, row: (seen.append(job.done), plain(job, row))[1]
        )
        other, less = sent_bytes(group, model, shared_tmp / "again", monkeypatch)
    assert less < whole
    if group.rank == 0:
        assert any(seen)  # something went on within a tensor
    assert content(other) == content(path)


def test_rows_of_files_that_changed_are_cut_anew(group, references, shared_tmp, monkeypatch):
    in_small_messages(monkeypatch, 300)
    model = shared_tmp / "model"
    if group.rank == 0:
        shutil.copytree(references / "yi", model)
    group.comm.Barrier()
    interrupted(group, model, shared_tmp / "again", monkeypatch)
    if group.rank == 0:  # a number in the middle of each tensor: the fingerprint stays the same
        path = model / "model.safetensors"
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        for at in range(start + 5000, len(data) - 5000, 3000):
            data[at] ^= 4
        path.write_bytes(data)
    group.comm.Barrier()
    in_small_messages(monkeypatch, 1 << 20)
    path = cut(group, model, shared_tmp / "plain")
    assert content(cut(group, model, shared_tmp / "again")) == content(path)


def test_a_file_that_changes_meanwhile_spoils_nothing(group, references, shared_tmp, monkeypatch):
    """Its hashes are known; it has other numbers for a while, and the old ones at the end."""
    model, folder = shared_tmp / "model", shared_tmp / "shards"
    if group.rank == 0:
        shutil.copytree(references / "yi", model)
    group.comm.Barrier()
    expected = content(cut(group, model, shared_tmp / "plain"))
    cut(group, model, folder)
    weights = model / "model.safetensors"
    plain, true, turn = feed_module.Feed._cut, weights.read_bytes(), threading.Lock()

    def changing(self, tensor, rows):
        with turn:  # of the threads that read
            if weights.read_bytes() == true:
                with weights.open("r+b") as file:
                    file.seek(len(true) // 4)
                    file.write(bytes(len(true) // 2))
        return plain(self, tensor, rows)

    with monkeypatch.context() as patch:
        patch.setattr(feed_module.Feed, "_cut", changing)
        with pytest.raises(UserError, match="changed while it was read; run the command again"):
            cut(group, model, folder, again=True)
    if group.rank == 0:
        weights.write_bytes(true)
    for path in folder.glob("*.h5"):
        if path.name.startswith(f"shard-{group.rank}-"):
            path.unlink()
    group.comm.Barrier()
    assert content(cut(group, model, folder)) == expected


def test_a_partial_that_was_cut_short_is_read_before_it_is_used(tmp_path):
    writer = begin(tmp_path / "shard.h5")
    largest = max(range(len(writer.tensors)), key=lambda i: writer.tensors[i].nbytes)
    for index, tensor in enumerate(writer.tensors):
        writer.write(index, numbers(tensor))
        writer.complete(index, bytes([1] * 32))
        if index == largest:  # what comes later makes the file as long as before
            os.truncate(writer.partial, tensor.offset + tensor.nbytes // 2)
    writer.finish()
    writer.close()
    shard = Shard(tmp_path / "shard.h5")
    with pytest.raises(MachineError, match="checksum of"):
        shard.verify_if_touched()
    shard.close()
