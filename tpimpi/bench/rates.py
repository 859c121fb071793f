"""For `tpimpi plan`: what each rank can read while all others read too, of memory and of disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpimpi.bench import limits
from tpimpi.comm.group import Group
from tpimpi.errors import MachineError
from tpimpi.memory.plan import Rates
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.paths import free_disk
from tpimpi.shards.layout import StoredTensor, shard_name
from tpimpi.shards.shard import Shard
from tpimpi.units import size

PROBE_BYTES, PROBE_SECONDS = 128 << 20, 0.5  # a file that is written to time the disk's reads


class _Probe:
    """A file of zeros on a disk, read like a shard of one tensor."""

    def __init__(self, folder: Path):
        while not folder.is_dir():
            folder = folder.parent
        free = free_disk(folder)
        nbytes = min(PROBE_BYTES, free // 4 // 2**20 * 2**20)
        if not nbytes:
            raise MachineError(
                f"the disk of {folder} has {size(free)} free, too few to time its reads; "
                "free some space or name another folder with --save-dir"
            )
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tpimpi-probe-", delete=False) as file:
            self.path = Path(file.name)
            try:
                for _ in range(0, nbytes, 1 << 20):
                    file.write(bytes(1 << 20))
                os.fsync(file.fileno())
            except OSError:
                self.path.unlink()
                raise
        columns = 1024
        panels = nbytes // ENCODINGS["f32"].panel_bytes(columns)
        self.fd = os.open(self.path, os.O_RDONLY)
        self.tensor = StoredTensor("probe", "f32", (panels * ROWS, columns), 0, in_panels=True)

    def __getitem__(self, _name: str) -> StoredTensor:
        return self.tensor

    def close(self) -> None:
        """Close and remove the file."""
        os.close(self.fd)
        self.path.unlink()


def read_rates(group: Group, folder: Path, names: Sequence[str], threads: int) -> Rates:
    """Measure this rank's rates (collective).

    The disk's is that of the tape's tensors `names` in a shard in `folder`, or of a file there.
    """
    rates = limits.memory_rates(group, threads, 3)[group.rank]
    source = None
    with group.together():
        path = folder / shard_name(group.rank, group.size)
        if path.exists():
            source = Shard(path)
            names = [name for name in names if name in source]  # it may be of another shape
        else:
            source, names = _Probe(folder), ["probe"]
    try:
        disk = limits.disk_rate(group, source, names, PROBE_SECONDS)
    finally:
        source.close()
    return Rates(disk, float(np.median(rates)))
