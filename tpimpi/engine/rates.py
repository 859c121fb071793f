"""What each rank can do while all others do it too: products of weights in memory, reads of a disk.

All ranks measure at once, as they will run at once: so the rates of those that share a machine add
up to the machine's.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.errors import MachineError
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.paths import free_disk
from tpimpi.shards.layout import StoredTensor, shard_name
from tpimpi.shards.shard import Shard
from tpimpi.tape.tape import Tape
from tpimpi.units import size

KERNEL_BYTES = 128 << 20  # of weights: far more than most caches
# Of a few turns the second best counts: what else a machine does for a moment is not what it can
# do. Each is some whole periods in which a cgroup hands out a core's time, commonly 0.1 s.
TURNS, TURN_SECONDS = 5, 0.4
PROBE_BYTES, PROBE_SECONDS = 128 << 20, 0.5  # a file that is written to time the disk's reads
RING_BYTES = 32 << 20  # enough for all reads in flight


def kernel_rate(
    group: Group, config: ModelConfig, encoding: str, threads: int, nbytes: int = KERNEL_BYTES
) -> float:
    """Return bytes/s of weights in memory that products of one token go through (collective).

    The products are as large as those of this model's MLP; `nbytes` is the memory it takes.
    """
    columns = config.hidden_size
    panel = ENCODINGS[encoding].panel_bytes(columns)
    panels = max(1, config.intermediate_size // group.size // ROWS)  # of one product
    weights, rate = None, 0.0
    with group.together():
        products = max(1, nbytes // (panels * panel))
        memory = np.frombuffer(
            huge_pages(products * panels * panel), np.uint8, products * panels * panel
        )
        memory[...] = 1  # untouched memory is one page of zeros, which lies in the caches
        weights = memory.reshape(products, panels, panel)
        x = np.ones((1, columns), np.float32)  # [1, D]
        out = np.empty((1, panels * ROWS), np.float32)  # [1, N]
        matmul(x, [(weights[0], out)], threads, encoding)
    group.rest_until(group.comm.Ibarrier().Test)  # spinning would disturb those that are late
    with group.together():
        rates, done = [], 0
        for _ in range(TURNS):
            start, before = time.perf_counter(), done
            while (took := time.perf_counter() - start) < TURN_SECONDS:
                matmul(x, [(weights[done % len(weights)], out)], threads, encoding)
                done += 1
            rates.append((done - before) * panels * panel / took)
        rate = sorted(rates)[-2]
    return rate


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


def disk_rate(group: Group, folder: Path, names: Sequence[str], ring: int = RING_BYTES) -> float:
    """Return this rank's bytes/s from the tape without arithmetic, while all read (collective).

    It is that of the tape's tensors `names` in a shard in `folder`, or of a file there.
    """
    source: Shard | _Probe | None = None
    with group.together():
        path = folder / shard_name(group.rank, group.size)
        if path.exists():
            source = Shard(path)
            names = [name for name in names if name in source]  # it may be of another shape
        else:
            source, names = _Probe(folder), ["probe"]
    try:
        return _tape_rate(group, source, names, ring)
    finally:
        source.close()


def _tape_rate(group: Group, shard: Shard | _Probe, names: Sequence[str], ring: int) -> float:
    read, took = 0, PROBE_SECONDS
    with group.together():
        tape = Tape(shard, names, {}, ring)
    group.rest_until(group.comm.Ibarrier().Test)  # spinning would disturb those that are late
    try:
        with group.together():
            start = time.perf_counter()
            if tape.streamed_bytes:
                for _, weights in _laps(tape, names):
                    read += weights.nbytes
                    took = time.perf_counter() - start
                    if took > PROBE_SECONDS:
                        break
    finally:
        tape.close()
    return read / took


def _laps(tape: Tape, names: Sequence[str]):
    while True:
        for name in names:
            yield from tape.take(name)
