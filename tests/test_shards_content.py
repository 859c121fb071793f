"""The shards that are used are of the checkpoint's content, and it is read no more than needed."""

import fcntl
import os
import shutil
import threading

import numpy as np
import pytest

from tpimpi.checkpoint import fingerprint
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards import shard as shard_module
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.shard import Shard, parse
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def model(group, references, shared_tmp):
    """A copy of a model that may be changed."""
    if group.rank == 0:
        shutil.copytree(references / "yi", shared_tmp / "model")
    group.comm.Barrier()
    return shared_tmp / "model"


@pytest.fixture
def hashed(monkeypatch):
    """The tensors that are read to be hashed, in a list that grows."""
    found, plain = [], fingerprint._hash
    monkeypatch.setattr(
        fingerprint, "_hash", lambda t, *more: (found.append(t), plain(t, *more))[1]
    )
    return found


def cut(group, directory, folder=None):
    shard, written = Source(group, directory, ShardRequest(folder)).shard(group)
    shard.close()
    return shard.path, written


def on_rank_0(group, action):
    """Let rank 0 do something to the model's directory."""
    if group.rank == 0:
        action()
    group.comm.Barrier()


def rewrite_rows(directory, tensor=EMBEDDING):
    """Change rows 45 to 55 of a tensor and set its file's times back."""
    checkpoint = Checkpoint(directory, ModelConfig.from_directory(directory))
    found, before = checkpoint.weight(tensor), os.stat(checkpoint.weight(tensor).path)
    checkpoint.close()
    row = found.nbytes // found.shape[0]
    with found.path.open("r+b") as file:
        file.seek(found.offset + 45 * row)
        data = np.frombuffer(file.read(10 * row), np.uint8)
        file.seek(found.offset + 45 * row)
        file.write((data ^ 1).tobytes())
    os.utime(found.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found.path.stat().st_size == before.st_size


def embedding(path):
    shard = Shard(path)
    values = shard.widened("embed")
    shard.close()
    return values


def test_weights_changed_in_place_are_cut_again(group, model):
    path, _ = cut(group, model)
    before = embedding(path) if group.rank == 0 else None
    on_rank_0(group, lambda: rewrite_rows(model))
    again, written = cut(group, model)
    assert written and again == path
    if group.rank == 0:
        differ = np.flatnonzero((embedding(path) != before).any(axis=1))
        assert list(differ) == list(range(45, 55))
    assert not cut(group, model)[1]


def test_weights_changed_in_place_are_refused_beside_the_users_shards(group, model, shared_tmp):
    cut(group, model, shared_tmp / "mine")
    on_rank_0(group, lambda: rewrite_rows(model, "model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(UserError, match="another model.layers.1.mlp.down_proj.weight.*--split-bin"):
        cut(group, model, shared_tmp / "mine")


def test_a_first_run_reads_the_checkpoint_once(group, model, hashed, monkeypatch):
    read, plain = [], Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, *what: (read.append(d := plain(self, *what)), d)[1]
    )
    cut(group, model)
    assert not hashed
    if group.rank == 0:
        checkpoint = Checkpoint(model, ModelConfig.from_directory(model))
        assert sum(d.nbytes for d in read) == sum(t.nbytes for t in checkpoint.tensors.values())
        checkpoint.close()
    assert not cut(group, model)[1] and not hashed


def test_a_touched_checkpoint_is_read_but_not_cut(group, model, hashed):
    cut(group, model)
    on_rank_0(group, lambda: os.utime(model / "model.safetensors"))
    assert not cut(group, model)[1]
    assert bool(hashed) == (group.rank == 0)
    hashed.clear()
    assert not cut(group, model)[1] and not hashed


def test_a_copied_checkpoint_is_read_but_not_cut(group, model, hashed):
    path, _ = cut(group, model)
    copy = model.with_name("another-name")
    on_rank_0(group, lambda: shutil.copytree(model, copy))
    assert cut(group, copy) == (path, False)
    assert bool(hashed) == (group.rank == 0)
    hashed.clear()
    assert not cut(group, copy)[1] and not cut(group, model)[1] and not hashed


def test_a_renamed_checkpoint_is_not_even_read(group, model, hashed):
    path, _ = cut(group, model)
    renamed = model.with_name("another-name")
    on_rank_0(group, lambda: model.rename(renamed))
    assert cut(group, renamed) == (path, False) and not hashed


def test_notes_that_are_damaged_are_not_believed(group, model, hashed):
    path, _ = cut(group, model)
    if group.rank == 0:
        notes = path.parent.parent / "checkpoint.hashes"
        text = notes.read_text()
        notes.write_text(text[:-9] + ("0" if text[-9] != "0" else "1") + text[-8:])
    assert not cut(group, model)[1]
    assert bool(hashed) == (group.rank == 0)


@pytest.mark.parametrize("changed", [False, True])
def test_a_conversion_killed_before_its_end_goes_on(group, model, hashed, monkeypatch, changed):
    # All ranks stop at once, after the first tensors, and nothing was noted.
    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", stop)
        patch.setattr(fingerprint.TensorHashes, "save", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            cut(group, model)
    folder = Source(group, model).folder
    partial = folder / f"shard-{group.rank}-of-{group.size}.h5.partial"
    layout = parse(partial)
    half = len(layout.tensors) // 2
    with partial.open("r+b") as file:
        file.seek(layout.checksums + 8 * half)
        file.write(bytes(8 * (len(layout.tensors) - half)))
    if changed:
        on_rank_0(group, lambda: rewrite_rows(model, "model.layers.0.self_attn.q_proj.weight"))
    written, plain = [], ShardWriter.complete
    monkeypatch.setattr(
        ShardWriter, "complete", lambda self, i, s: (written.append(i), plain(self, i, s))[1]
    )
    hashed.clear()
    path, _ = cut(group, model)
    names = [layout.tensors[i].name for i in written if i < half]
    assert names == (["layers/00/attn/q_proj"] if changed else [])
    assert sorted(i for i in written if i >= half) == list(range(half, len(layout.tensors)))
    assert not cut(group, model)[1]


def test_a_checkpoint_that_changes_while_it_is_cut_is_refused(group, model, monkeypatch):
    plain = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read",
        lambda self, *what: (os.utime(model / "model.safetensors"), plain(self, *what))[1],
    )  # fmt: skip
    with pytest.raises(UserError, match="changed while it was read"):
        cut(group, model)
    monkeypatch.undo()


def test_a_checkpoint_replaced_after_it_was_opened_is_refused(group, model):
    # As while a prompt is awaited on standard input.
    source = Source(group, model)
    other = model.with_name("other")

    def replace():
        shutil.copytree(model, other)
        rewrite_rows(other)
        (other / "model.safetensors").rename(model / "model.safetensors")

    on_rank_0(group, replace)
    with pytest.raises(UserError, match="model.safetensors changed while it was read"):
        source.shard(group)
    path, written = cut(group, model)
    assert written
    if group.rank == 0:
        shard = Shard(path)
        checkpoint = Checkpoint(model, ModelConfig.from_directory(model))
        true = checkpoint.read(EMBEDDING, slice(45, 46), None)
        assert (shard.widened("embed", slice(45, 46)) == ENCODINGS["bf16"].widen(true)).all()
        shard.close()
        checkpoint.close()


def test_weights_changed_through_a_map_are_cut_again(group, model):
    told = None
    if group.rank == 0:
        checkpoint = Checkpoint(model, ModelConfig.from_directory(model))
        tensor = checkpoint.weight(EMBEDDING)
        checkpoint.close()
        with tensor.path.open("rb") as file:
            os.fsync(file)
        mapped = np.memmap(tensor.path, np.uint8, "r+")
        middle, before = tensor.offset + tensor.nbytes // 2, tensor.path.stat()
        mapped[middle] ^= 1
        told = tensor.path.stat().st_ctime_ns != before.st_ctime_ns
    if not group.comm.bcast(told):
        pytest.skip("this file system never tells of writes through maps, as tmpfs")
    cut(group, model)
    if group.rank == 0:
        mapped[middle] ^= 1  # of a page that has not gone to the disk by itself
    group.comm.Barrier()
    assert cut(group, model)[1]


def test_a_shard_replaced_while_it_is_opened_is_not_taken_for_the_other(group, model, monkeypatch):
    path, _ = cut(group, model)
    other = path.with_name(f"other-{group.rank}")
    shutil.copy(path, other)
    plain = shard_module.read_layout

    def late(path):
        if other.exists():
            os.replace(other, path)
        return plain(path)

    monkeypatch.setattr(shard_module, "read_layout", late)
    shard = Shard(path)
    assert os.path.samestat(os.fstat(shard.fd), path.stat())
    shard.close()


def test_a_shard_replaced_after_it_was_cut_is_refused(group, model, monkeypatch):
    first, _ = cut(group, model)
    kept = first.with_name(f"kept-{group.rank}")
    shutil.copy(first, kept)
    on_rank_0(group, lambda: rewrite_rows(model))
    plain = ShardWriter.close
    monkeypatch.setattr(
        ShardWriter, "close", lambda self: (plain(self), os.replace(kept, self.path))
    )
    with pytest.raises(UserError, match=f"was cut from another {EMBEDDING}"):
        cut(group, model)


def test_shards_that_are_removed_while_they_are_waited_for_are_cut(group, model):
    path, _ = cut(group, model)
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as `tpimpi cache --remove` does

    def remove():
        path.unlink()
        os.close(fd)

    timer = threading.Timer(0.5, remove)
    timer.start()
    assert cut(group, model) == (path, True)
    timer.join()
    assert not cut(group, model)[1]
