"""A shard of format 2, with matrices in rows: cut anew in the cache, else refused and kept."""

import json
import os
import zlib

import h5py
import numpy as np
import pytest

from tpimpi.errors import UserError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.shapes import shape_config
from tpimpi.shards.layout import PAGE
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource


def to_format_2(shard):
    """Write a shard anew as format 2 was, whole in every way: all rows, checksums, hashes, seal."""
    path, identity, tensors = shard.path, shard.identity, shard.tensors
    rows = [ENCODINGS[t.encoding].narrow(shard.widened(t.name)) for t in tensors]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    with h5py.File(path) as file:
        kinds = [file[t.name].id.get_type() for t in tensors]
    path.unlink()
    with h5py.File(
        path, "w", libver=("v110", "v110"), userblock_size=PAGE, alignment_threshold=1,
        alignment_interval=PAGE, meta_block_size=4 * len(tensors) * PAGE,
    ) as file:  # fmt: skip
        file.attrs.update({"format_version": 2, "rank": identity.rank, "size": identity.size})
        for name in ("fingerprint", "partition", "config"):
            file.attrs[name] = np.bytes_(getattr(identity, name))
        file["tape"] = np.array([t.name.encode() for t in tensors])
        file["checksums"] = np.array([(1 << 32) + zlib.crc32(r.tobytes()) for r in rows], np.uint64)
        file["sources"] = np.array([list(source) for source in shard.sources], np.uint8)
        for index, (tensor, kind) in enumerate(zip(tensors, kinds, strict=True)):
            space = h5py.h5s.create_simple(tensor.shape)
            h5py.h5d.create(file.id, tensor.name.encode(), kind, space, layout, links)
            file[tensor.name].attrs["encoding"] = np.bytes_(tensor.encoding)
            file[tensor.name].attrs["checksum_index"] = index
        offsets = [file[t.name].id.get_offset() for t in tensors]
        tables = [(file[n].id.get_offset(), file[n].nbytes) for n in ("checksums", "sources")]
    with path.open("r+b") as file:
        for offset, data in zip(offsets, rows, strict=True):
            if data.size:
                file.seek(offset)
                file.write(data.tobytes())
        size = file.seek(0, os.SEEK_END)
        first = min(o for o, data in zip(offsets, rows, strict=True) if data.size)
        file.seek(0)
        head, structures, written, at = file.read(first), 0, 0, PAGE
        for offset, nbytes in sorted(tables):
            structures = zlib.crc32(head[at:offset], structures)
            written = zlib.crc32(head[offset : offset + nbytes], written)
            at = offset + nbytes
        seal = {
            "size": size, "first": first, "tables": sorted(tables),
            "structures": zlib.crc32(head[at:], structures), "written": written,
        }  # fmt: skip
        page = f"tpimpi shard, format 2\n{json.dumps(seal)}\n".encode().ljust(PAGE - 4, b"\0")
        file.seek(0)
        file.write(page + zlib.crc32(page).to_bytes(4, "little"))


def made_old(group, source, everywhere=True):
    """Write all ranks' shards, or the last's, in format 2; return this rank's path and numbers."""
    shard, written = source.shard(group)
    assert written
    numbers = {t.name: shard.widened(t.name) for t in shard.tensors}
    if everywhere or group.rank == group.size - 1:
        to_format_2(shard)
    shard.close()
    group.comm.Barrier()
    return shard.path, numbers


def sources(group, directory, folder):
    yield Source(group, directory, ShardRequest(folder))
    yield SyntheticSource(
        group, shape_config("tiny"), "f16", ShardRequest(folder and folder / "random")
    )


@pytest.mark.parametrize("everywhere", [True, False])
def test_in_the_cache_it_is_cut_anew(group, references, everywhere):
    for source in sources(group, references / "yi", None):
        path, numbers = made_old(group, source, everywhere)
        again, written = source.shard(group)
        assert written and again.path == path
        again.verify()
        for name, values in numbers.items():
            np.testing.assert_array_equal(again.widened(name), values)
        again.close()


def test_in_a_folder_of_the_users_it_is_refused_and_kept(group, references, shared_tmp):
    for source in sources(group, references / "yi", shared_tmp / "mine"):
        path, _ = made_old(group, source)
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"has format version 2, .* needs 3; cut .*--split-bin"):
            source.shard(group)
        assert path.read_bytes() == before
        source.shard(group, again=True)[0].close()


def test_what_a_kill_left_of_it_is_not_gone_on_with(group, references):
    source = Source(group, references / "yi")
    path, numbers = made_old(group, source)
    path.rename(f"{path}.partial")
    group.comm.Barrier()
    again, written = source.shard(group)
    assert written
    np.testing.assert_array_equal(again.widened("head"), numbers["head"])
    again.verify()
    again.close()


def test_a_random_model_of_an_older_format_needs_its_room(group, monkeypatch):
    """It is written beside the old one, which goes only then."""
    source = SyntheticSource(group, shape_config("tiny"), "f16")
    made_old(group, source)
    monkeypatch.setattr("tpimpi.shards.synthetic.free_disk", lambda folder: 0)
    assert SyntheticSource(group, shape_config("tiny"), "f16").sparse
