"""The empty file of a shard: all that describes its tensors, and room for their numbers."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.model.encoding import ENCODINGS, Encoding
from tpimpi.model.tensors import Piece
from tpimpi.shards.layout import FORMAT_VERSION, PAGE, Identity, StoredTensor, stored
from tpimpi.shards.shard import Layout, parse


def _hdf5_type(encoding: Encoding) -> h5py.h5t.TypeID:
    """Return the type of the encoding's numbers: a sign, the exponent, the mantissa."""
    bits = 1 + encoding.exponent + encoding.mantissa
    kind = h5py.h5t.IEEE_F32LE.copy()  # of bf16 it becomes the layout of HDF5 2.0's own
    kind.set_fields(bits - 1, encoding.mantissa, encoding.exponent, 0, encoding.mantissa)
    kind.set_size(bits // 8)
    kind.set_ebias((1 << encoding.exponent - 1) - 1)
    return kind


def _dataset(tensor: StoredTensor) -> tuple[h5py.h5t.TypeID, tuple[int, ...]]:
    """Return type and shape of what a tensor is in HDF5: its rows, or its panels."""
    encoding = ENCODINGS[tensor.encoding]
    if not tensor.in_panels:
        return _hdf5_type(encoding), tensor.shape
    kind = h5py.h5t.STD_U8LE if encoding.packed else _hdf5_type(encoding)
    return kind, (tensor.panels, *encoding.panel_shape(tensor.shape[1]))


def create(path: Path, identity: Identity, pieces: list[Piece], encodings: list[str]) -> Layout:
    """Create the file with all that describes it, HDF5's structures before all tensors."""
    groups = {above for piece in pieces for above in PurePosixPath(piece.name).parents}
    pages = len(pieces) + len(groups) + 16  # each object takes one, as all is aligned for tensors
    while True:
        _create_with(path, identity, pieces, encodings, pages * PAGE)
        layout = parse(path)
        if _tensors_lie_together(layout.tensors, path.stat().st_size):
            return layout
        pages += pages // 8


def _tensors_lie_together(tensors: list[StoredTensor], end: int) -> bool:
    stored = sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset)
    starts = [t.offset for t in stored[1:]] + [end]
    # Whatever else lay between would begin a page of its own.
    return all(at - t.offset - t.nbytes < PAGE for t, at in zip(stored, starts, strict=True))


def _create_with(
    path: Path, identity: Identity, pieces: list[Piece], encodings: list[str], structures: int
) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # the same shard is the same bytes, whenever it is made
    with h5py.File(
        path,
        "w",
        libver=("v110", "v110"),
        userblock_size=PAGE,
        meta_block_size=structures,
        alignment_threshold=1,
        alignment_interval=PAGE,
        locking=False,
    ) as file:
        file.attrs.update(
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": np.bytes_(identity.fingerprint),
                "partition": np.bytes_(identity.partition),
                "rank": identity.rank,
                "size": identity.size,
                "config": np.bytes_(identity.config),
            }
        )
        file.create_dataset("tape", data=np.array([piece.name.encode() for piece in pieces]))
        file.create_dataset("checksums", data=np.zeros(len(pieces), np.uint64))
        file.create_dataset("sources", data=np.zeros((len(pieces), HASH_BYTES), np.uint8))
        for above in dict.fromkeys(str(PurePosixPath(piece.name).parent) for piece in pieces):
            file.require_group(above)
        for index, (piece, encoding) in enumerate(zip(pieces, encodings, strict=True)):
            tensor = stored(piece, encoding)
            kind, shape = _dataset(tensor)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, piece.name.encode(), kind, space, layout)
            about = {"encoding": np.bytes_(encoding), "checksum_index": index}
            if tensor.in_panels:
                about |= dict(zip(("rows", "columns"), tensor.shape, strict=True))
            file[piece.name].attrs.update(about)
