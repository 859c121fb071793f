"""What each rank can do while all others do it too: products of weights in memory, reads of a disk.

All ranks measure at once, as they will run at once: so the rates of those that share a machine add
up to the machine's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.shards.layout import shard_name
from tpimpi.shards.shard import Shard
from tpimpi.tape.probe import NAME, Probe, reading_rate
from tpimpi.tape.tape import Tape

KERNEL_BYTES = 128 << 20  # of weights: far more than most caches
# Of a few turns the second best counts: what else a machine does for a moment is not what it can
# do. Each is some whole periods in which a cgroup hands out a core's time, commonly 0.1 s.
TURNS, TURN_SECONDS = 5, 0.4
WRITE_SECONDS, READ_SECONDS = 1.0, 0.5  # of a disk without a shard, and of any
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
            start, before, took = time.perf_counter(), done, 0.0
            while took < TURN_SECONDS:  # one at least, however long this process got no core
                matmul(x, [(weights[done % len(weights)], out)], threads, encoding)
                done += 1
                took = time.perf_counter() - start
            rates.append((done - before) * panels * panel / took)
        rate = sorted(rates)[-2]
    return rate


def disk_rate(group: Group, folder: Path, names: Sequence[str], ring: int = RING_BYTES) -> float:
    """Return this rank's bytes/s from the tape without arithmetic, while all read (collective).

    It is that of the tape's tensors `names` in a shard in `folder`, or of a file there. Never 0.
    """
    source: Shard | Probe | None = None
    with group.together():
        path = folder / shard_name(group.rank, group.size)
        if path.exists():
            source = Shard(path)
            # It may be of another shape, or of a rank that owned nothing.
            names = [name for name in names if name in source and source[name].nbytes]
            if not names:
                source.close()
        if not path.exists() or not names:
            source, names = Probe(folder, WRITE_SECONDS), [NAME]
    tape, rate = None, 0.0
    try:
        with group.together():
            tape = Tape(source, names, {}, ring)
        group.rest_until(group.comm.Ibarrier().Test)  # spinning would disturb those that are late
        with group.together():
            rate = reading_rate(tape, names, READ_SECONDS)
    finally:
        if tape is not None:
            tape.close()
        source.close()
    return rate
