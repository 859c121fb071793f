#!/usr/bin/env python3
"""Measure what binds decoding on this machine: the memory's and the disk's read rate.

    mpirun -np 2 python scripts/measure_limits.py [--shards DIR]

All ranks read at once, each with its share of the cores; medians of repeats, summed over ranks.
The disk is read by the program's own tape, without arithmetic, from shards that
`tpimpi convert --save-dir DIR` made for the same number of ranks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from tpimpi import launch


def memory_rate(comm, threads: int, mebibytes: int, repeats: int) -> float:
    """Return bytes/s of a plain sum over float32 arrays far bigger than the caches, all ranks."""
    import numba
    import numpy as np

    @numba.njit(parallel=True, fastmath=True)
    def total(x):
        sums = 0.0
        for i in numba.prange(x.shape[0]):
            sums += x[i]
        return sums

    numba.set_num_threads(threads)
    data = np.ones(mebibytes << 18, np.float32)
    total(data)
    return rate(comm, data.nbytes, repeats, lambda: total(data))


def disk_rate(comm, folder: Path, laps: int) -> float:
    """Return bytes/s of laps over the whole tape through a ring, all ranks."""
    from tpimpi.shard import Shard, shard_name
    from tpimpi.tape import Tape

    shard = Shard(folder / shard_name(comm.rank, comm.size))
    names = [t.name for t in shard.tensors if len(t.shape) == 2 and t.name != "embed"]
    tape = Tape(shard, names, set(), 64 << 20)

    def lap():
        for name in names:
            for _ in tape.take(name):
                pass

    lap()
    found = rate(comm, tape.streamed_bytes, laps, lap)
    tape.close()
    return found


def rate(comm, nbytes: int, repeats: int, work) -> float:
    """Return the median over repeats of all ranks' bytes by the slowest rank's seconds."""
    seconds = []
    for _ in range(repeats):
        comm.Barrier()
        start = time.perf_counter()
        work()
        seconds.append(max(comm.allgather(time.perf_counter() - start)))
    return sum(comm.allgather(nbytes)) / statistics.median(seconds)


def main() -> None:
    """Print the rates in GB/s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, metavar="DIR", help="folder of the ranks' shards")
    parser.add_argument("--mebibytes", type=int, default=512, help="memory a rank (default: 512)")
    parser.add_argument("--repeats", type=int, default=9, help="(default: 9)")
    args = parser.parse_args()
    threads = launch.prepare(None)
    comm = launch.world()
    memory = memory_rate(comm, threads, args.mebibytes, args.repeats)
    disk = disk_rate(comm, args.shards, args.repeats) if args.shards else None
    if comm.rank == 0:
        print(f"memory {memory / 1e9:.1f} GB/s ({comm.size} ranks x {threads} threads)")
        if disk:
            print(f"disk {disk / 1e9:.2f} GB/s ({comm.size} ranks, laps of the tape)")


if __name__ == "__main__":
    main()
