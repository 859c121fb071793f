#!/usr/bin/env python3
"""Time every strategy of the allreduce under mpirun, or draw what several such runs have found.

    mpirun -np 8 scripts/compare_sums.py --label "1 ms" >> sums.jsonl
    scripts/compare_sums.py --plot sums.png --found sums.jsonl

Each run prints one line of JSON: the seconds of a sum on the slowest rank, the median of rounds,
by strategy and bytes; and a table on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

BYTES = (4, 16 << 10, 32 << 10, 1 << 20)
ROUND_SECONDS, LONGEST = 0.25, 30.0  # of a round at least; a strategy that takes longer is left out


def measure(label: str, sizes: list[int], rounds: int) -> None:
    """Time all strategies (collective)."""
    from tpimpi import launch

    launch.prepare(1)
    world = launch.world()
    import numpy as np
    from mpi4py import MPI

    from tpimpi.comm.allreduce import STRATEGIES
    from tpimpi.comm.group import Group

    group = Group(world)
    group.patient = True  # ranks of emulated devices share cores
    found: dict[str, dict[str, float]] = {name: {} for name in STRATEGIES}

    def seconds(x, count: int) -> float:
        group.comm.Barrier()
        start = time.perf_counter()
        for _ in range(count):
            group.sums(x)
        return group.comm.allreduce((time.perf_counter() - start) / count, MPI.MAX)

    for nbytes in sizes:
        x = np.zeros(nbytes // 4, np.float32)
        for name in STRATEGIES:
            group.sums.short = group.sums.long = name
            first = seconds(x, 1)
            count = max(1, min(200, int(ROUND_SECONDS / max(first, 1e-6))))
            found[name][str(nbytes)] = statistics.median(seconds(x, count) for _ in range(rounds))
            if group.rank == 0:
                took = found[name][str(nbytes)] * 1e3
                print(f"{label}: {name:20s} {nbytes:8d} B {took:9.3f} ms", file=sys.stderr)
    if group.rank == 0:
        print(json.dumps({"label": label, "ranks": group.size, "seconds": found}), flush=True)
    group.close()


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", default="", help="what kind of link it is")
    parser.add_argument("--bytes", type=int, nargs="+", default=list(BYTES), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    args = parser.parse_args()
    measure(args.label, args.bytes, args.rounds)


if __name__ == "__main__":
    main()
