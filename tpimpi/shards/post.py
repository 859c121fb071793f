"""How rank 0 hands pieces of tensors to the ranks that own them: a header, then rows.

A header is [tensor, rows that follow, 4 words of hash]. No rows: the tensor has come to its end,
and the hash is that of its source. Tensor -1: nothing more will come. Whoever gets rows packs them.
"""

from __future__ import annotations

import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.comm.group import Group
from tpimpi.errors import MachineError, describe
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.writer import ShardWriter

TAG = 7


class Post:
    """What rank 0 sends with; its own pieces go to its own writer."""

    def __init__(self, group: Group, writer: ShardWriter | None):
        self._comm, self._writer = group.comm, writer

    def deliver(self, rank: int, index: int, rows: np.ndarray) -> None:
        """Write the next raw rows of a rank's tensor `index`."""
        if rank == 0:
            _write(self._writer, index, rows)
        else:
            self._comm.Send(_header(index, len(rows)), dest=rank, tag=TAG)
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
            self._comm.Send(data, dest=rank, tag=TAG)

    def complete(self, rank: int, index: int, source: bytes) -> None:
        """Say that a tensor has come to its end, and the hash of what it was cut from."""
        if rank == 0:
            self._writer.complete(index, source)
        else:
            self._comm.Send(_header(index, 0, source), dest=rank, tag=TAG)

    def end(self, rank: int) -> None:
        """Say that nothing more will come."""
        self._comm.Send(_header(-1, 0), dest=rank, tag=TAG)


def receive_all(group: Group, writer: ShardWriter) -> None:
    """Write what rank 0 sends, until it says that nothing more will come."""
    header, data = _header(0, 0), np.empty(0, np.uint8)
    while True:
        # Waiting in MPI would take a core from rank 0, where that is on this machine.
        group.rest_until(lambda: group.comm.Iprobe(source=0, tag=TAG))
        group.comm.Recv(header, source=0, tag=TAG)
        index, rows = (int(value) for value in header[:2])
        if index < 0:
            return
        if rows == 0:
            writer.complete(index, header[2:].tobytes())
            continue
        tensor = writer.tensors[index]
        encoding, shape = ENCODINGS[tensor.encoding], (rows, *tensor.shape[1:])
        nbytes = encoding.nbytes(*shape)
        if data.nbytes < nbytes:
            data = np.empty(nbytes, np.uint8)
        group.comm.Recv(data[:nbytes], source=0, tag=TAG)
        _write(writer, index, encoding.raw(data, shape))


def _header(index: int, rows: int, source: bytes = bytes(HASH_BYTES)) -> np.ndarray:
    return np.array([index, rows, *np.frombuffer(source, np.int64)], np.int64)


def _write(writer: ShardWriter, index: int, rows: np.ndarray) -> None:
    try:
        writer.write(index, rows)
    except OSError as error:
        raise MachineError(
            f"writing {writer.partial} failed ({describe(error)}); what is written is kept, and "
            "the same command goes on from there"
        ) from error
