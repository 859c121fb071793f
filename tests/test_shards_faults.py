"""What spoils a shard: flipped bytes, other files in its place, another conversion, no room."""

import errno
import os
import random
import re
import time

import h5py
import numpy as np
import pytest

from tpimpi.checkpoint import fingerprint
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.errors import MachineError, UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import shape_config
from tpimpi.model.tensors import pieces
from tpimpi.shards import writer as writer_module
from tpimpi.shards.layout import PAGE, Identity, shard_name
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.seal import write_seal
from tpimpi.shards.shard import Shard, parse, read_layout
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter

CONFIG = ModelConfig.from_json(shape_config("demo-tiny").to_json())
PIECES = pieces(CONFIG, Partition.of(CONFIG, [1] * 40).ranks[1])  # a fortieth: a tiny file
IDENTITY = Identity("0123456789abcdef", "[]", 1, 40, CONFIG.to_json())


def begin(path):
    return ShardWriter(path, IDENTITY, PIECES, ["bf16"] * len(PIECES))


def fill(writer, count=None):
    numbers = np.random.default_rng(3)
    for index, tensor in enumerate(writer.tensors[:count]):
        writer.write(index, numbers.integers(0, 1 << 16, tensor.shape, np.uint16))
        writer.complete(index, bytes([index] * 32))


def make(path):
    writer = begin(path)
    fill(writer)
    writer.finish()
    writer.close()
    return path


def places(path, count):
    """Return bytes to flip: all of the seal's text, and some of everything else."""
    size = path.stat().st_size
    text = path.read_bytes()[:PAGE].index(b"\0") + 8
    first = min(t.offset for t in parse(path).tensors if t.nbytes)
    choice = random.Random(5)
    return [
        *range(text), PAGE - 1, *(choice.randrange(first) for _ in range(count)),
        *(choice.randrange(size) for _ in range(count)),
    ]  # fmt: skip


def flipped(path, data, place, bit):
    spoiled = bytearray(data)
    spoiled[place] ^= 1 << bit
    path.write_bytes(spoiled)


def tensor_at(tensors, place):
    return next((t for t in tensors if t.offset <= place < t.offset + t.nbytes), None)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path):
    path = make(tmp_path / "shard.h5")
    data, tensors = path.read_bytes(), parse(path).tensors
    first, choice = min(t.offset for t in tensors if t.nbytes), random.Random(7)
    for place in places(path, 250):
        flipped(path, data, place, choice.randrange(8))
        start = time.process_time()
        if place < first or tensor_at(tensors, place):
            with pytest.raises((MachineError, UserError), match="--split-bin"):
                Shard(path).verify()
        else:
            Shard(path).verify()  # behind the end of a tensor, where nobody reads
        assert time.process_time() - start < 1, place
    path.write_bytes(data)
    Shard(path).verify()


def test_a_flipped_byte_of_an_unfinished_shard_is_not_believed(tmp_path):
    path, half = tmp_path / "shard.h5", len(PIECES) // 2
    writer = begin(path)
    fill(writer, half)
    writer.close()
    expected = [bytes([i] * 32) for i in range(half)] + [None] * (len(PIECES) - half)
    data, layout = writer.partial.read_bytes(), parse(writer.partial)
    choice = random.Random(9)
    for place in places(writer.partial, 60):
        flipped(writer.partial, data, place, choice.randrange(8))
        start = time.process_time()
        writer = begin(path)
        for index, (found, true) in enumerate(zip(writer.done(), expected, strict=True)):
            # Another hash than the checkpoint's: it is written again.
            touched = layout.sources + 32 * index <= place < layout.sources + 32 * index + 32
            assert found in (None, true) or touched
            if tensor_at(layout.tensors, place) == layout.tensors[index]:
                assert found is None
        writer.close()
        assert time.process_time() - start < 1, place


@pytest.mark.parametrize("change", [-1, 1, PAGE])
def test_a_shard_of_another_length_is_refused_when_it_is_opened(tmp_path, change):
    path = make(tmp_path / "shard.h5")
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(MachineError, match="damaged or cut short: .*--split-bin"):
        Shard(path)


def test_an_unfinished_shard_under_a_finished_name_is_refused(tmp_path):
    writer = begin(tmp_path / "shard.h5")
    fill(writer, 3)
    writer.close()
    writer.partial.rename(writer.path)
    with pytest.raises(MachineError, match="not written to its end.*--split-bin"):
        Shard(writer.path)


def other_file(path, kind):
    match kind:
        case "text":
            path.write_text("this is no shard\n" * 1000)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "hdf5":
            with h5py.File(path, "w") as file:
                file["x"] = np.zeros(1000)
        case "sealed hdf5":
            with h5py.File(path, "w", userblock_size=PAGE) as file:
                file["x"] = np.zeros(1000)
            with path.open("r+b") as file:
                write_seal(file.fileno(), path.stat().st_size, path.stat().st_size, (), True)


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "pipe", "hdf5", "sealed hdf5"])
def test_another_file_in_its_place_is_refused_in_one_sentence(comm, references, shared_tmp, kind):
    group = Group(comm)
    name = shard_name(group.rank, group.size)
    other_file(shared_tmp / name, kind)
    with pytest.raises((MachineError, UserError), match=r"shard-0-of-.*h5 (is|has)") as caught:
        Source(group, references / "yi", ShardRequest(shared_tmp)).shard(group)
    assert "\n" not in str(caught.value)
    if kind in ("folder", "pipe"):
        with pytest.raises(UserError, match="no file; remove it"):
            Source(group, references / "yi", ShardRequest(shared_tmp)).shard(group, again=True)
    else:
        Source(group, references / "yi", ShardRequest(shared_tmp)).shard(group, again=True)[
            0
        ].close()
    group.close()


@pytest.mark.parametrize("kind", ["text", "folder", "pipe", "sealed hdf5"])
def test_another_file_under_the_working_name(tmp_path, kind):
    partial = tmp_path / "shard.h5.partial"
    other_file(partial, kind)
    if kind in ("folder", "pipe"):
        with pytest.raises(UserError, match="no file; remove it"):
            begin(tmp_path / "shard.h5")
    else:
        Shard(make(tmp_path / "shard.h5")).verify()


def test_a_shard_of_an_older_format_in_the_cache_is_cut_anew(
    comm, references, shared_tmp, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_tmp))
    group = Group(comm)
    source = Source(group, references / "yi")
    shard, _ = source.shard(group)
    shard.close()
    group.comm.Barrier()
    shard.path.write_bytes(shard.path.read_bytes()[PAGE:])  # as the first format began
    with pytest.raises(UserError, match="older format.*--split-bin"):
        Shard(shard.path)
    group.comm.Barrier()
    again, written = source.shard(group)
    assert written
    again.verify()
    again.close()
    group.close()


def test_a_write_that_ends_early_is_gone_on_with(tmp_path, monkeypatch):
    def short(fd, data, at, plain=os.pwrite):
        return plain(fd, data[:1000] if isinstance(data, memoryview) else data, at)

    monkeypatch.setattr(writer_module.os, "pwrite", short)
    shard = Shard(make(tmp_path / "shard.h5"))
    shard.verify()
    shard.close()


def test_a_lock_on_a_file_that_was_finished_meanwhile_is_not_enough(tmp_path, monkeypatch):
    first, plain = begin(tmp_path / "shard.h5"), writer_module.fcntl.flock
    fill(first)

    def late(fd, how):
        if not first.path.exists():  # the second has opened it, and has yet to lock it
            first.finish()
            first.close()
        plain(fd, how)

    monkeypatch.setattr(writer_module.fcntl, "flock", late)
    second = begin(tmp_path / "shard.h5")
    assert first.path.exists() and not any(second.done())
    second.write(0, np.ones(8, np.uint16))
    Shard(first.path).verify()
    with pytest.raises(MachineError, match="another conversion"):
        begin(tmp_path / "shard.h5")
    second.close()


def test_a_folder_that_cant_be_written_to_is_told_before_any_work(
    comm, references, monkeypatch, tmp_path
):
    group, read = Group(comm), []
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # where even root makes no folder
    source = Source(group, references / "yi")
    if source.checkpoint:
        monkeypatch.setattr(source.checkpoint, "read", lambda *what: read.append(what))
    with pytest.raises(UserError, match="/proc/nowhere.*can't be written to.*--save-dir"):
        source.shard(group)
    assert not read
    with pytest.raises(UserError, match="can't be written to"):
        Source(group, references / "yi", ShardRequest("/proc/nowhere/at-all")).shard(group)
    group.close()


def test_structures_lie_before_all_tensors_of_a_long_model(tmp_path):
    config = shape_config("llama2-70b")
    mine = pieces(config, Partition.of(config, [1] * 8).ranks[3])
    path = tmp_path / "shard.h5"
    identity = Identity("0123456789abcdef", "x" * 100_000, 3, 8, config.to_json())
    writer = ShardWriter(path, identity, mine, ["bf16"] * len(mine), sparse=True)
    layout = read_layout(writer.partial, finished=False)
    assert [t.name for t in layout.tensors] == [p.name for p in mine]
    assert layout.identity.partition == identity.partition
    first = min(t.offset for t in layout.tensors)
    assert max(at + nbytes for at, nbytes in layout.tables) <= first < 16 << 20
    writer.close()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_what_is_needed_and_keeps_nothing(tmp_path, monkeypatch):
    path = make(tmp_path / "shard.h5")
    nbytes = path.stat().st_size
    path.unlink()

    monkeypatch.setattr(writer_module.os, "posix_fallocate", full)
    with pytest.raises(MachineError, match="shard.h5 needs .* free; free some") as caught:
        begin(path)
    said = float(re.search(r"needs ([\d.]+) KiB", str(caught.value))[1])
    assert said == round(nbytes / 1024)
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_full_disk_would_need_counts_whole_panels(tmp_path, monkeypatch):
    """Where not even the file's structures have room, so that no length tells."""
    monkeypatch.setattr(writer_module, "create", full)
    with pytest.raises(MachineError) as caught:
        begin(tmp_path / "shard.h5")
    padded = [(n + 15) // 16 * 16 * k if p.streamed else n * k for p in PIECES
              for n, k in [(*p.shape, 1)[:2]]]  # fmt: skip
    assert sum(padded) > sum(p.size for p in PIECES)
    assert f"needs {round(2 * sum(padded) / 1024)} KiB" in str(caught.value)


def test_hashes_that_a_full_disk_does_not_take_leave_nothing(references, tmp_path, monkeypatch):
    config = ModelConfig.from_directory(references / "yi")
    checkpoint = Checkpoint(references / "yi", config)
    hashes = fingerprint.TensorHashes(checkpoint, tmp_path)
    monkeypatch.setattr(fingerprint.os, "replace", full)
    hashes.fill(["model.norm.weight"])
    checkpoint.close()
    assert not list(tmp_path.iterdir())
