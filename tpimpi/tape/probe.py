"""How fast a disk is read by a tape; and a file that stands for a shard where there is none yet."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpimpi.errors import MachineError
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.paths import free_disk, there
from tpimpi.shards.layout import StoredTensor
from tpimpi.tape.tape import Tape
from tpimpi.units import size

MARK = ".tpimpi-probe-"  # how the names of such files begin
NAME = "probe"  # of its tensor
PIECE_BYTES, MOST_PIECES = 2 << 20, 24  # written one by one, each to the disk itself
COLUMNS = 1024  # of the tensor


class Probe:
    """A file of random numbers in a folder, read like a shard of one tensor."""

    def __init__(self, folder: Path, seconds: float):
        """Write for about `seconds`. Raises OSError, and MachineError where there is no room."""
        folder = there(folder)
        free = free_disk(folder)
        if free < 4 * PIECE_BYTES:
            raise MachineError(
                f"the disk of {folder} has {size(free)} free, too few to time it; free some space "
                "or name another folder with --save-dir"
            )
        file, name = tempfile.mkstemp(prefix=MARK, dir=folder)
        self.path, self.fd = Path(name), file
        piece = np.random.default_rng(0).bytes(PIECE_BYTES)  # zeros may be stored as nothing
        pieces, start = 0, time.perf_counter()
        try:
            while pieces < MOST_PIECES and time.perf_counter() - start < seconds:
                os.write(file, piece)
                os.fsync(file)
                pieces += 1
        except OSError:
            self.close()
            raise
        self.write_rate = pieces * PIECE_BYTES / (time.perf_counter() - start)
        panels = pieces * PIECE_BYTES // ENCODINGS["f32"].panel_bytes(COLUMNS)
        self._tensor = StoredTensor(NAME, "f32", (panels * ROWS, COLUMNS), 0, in_panels=True)

    def __getitem__(self, _name: str) -> StoredTensor:
        return self._tensor

    def close(self) -> None:
        """Close and remove the file."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


def reading_rate(tape: Tape, names: Sequence[str], seconds: float) -> float:
    """Return the bytes/s that pass through a tape of tensors `names`, over some seconds.

    0 where nothing streams. Raises MachineError.
    """
    read, start = 0, time.perf_counter()
    while tape.streamed_bytes:
        for name in names:
            for _, weights in tape.take(name):
                read += weights.nbytes
                took = time.perf_counter() - start
                if took > seconds:
                    return read / took
    return 0.0
