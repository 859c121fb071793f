#!/usr/bin/env python3
"""Time every strategy of the allreduce under mpirun, or draw what several such runs have found.

    scripts/testbed up --devices 8 --delay 1ms --rate 300mbit
    scripts/testbed run -- python scripts/compare_sums.py --delay 1 >> sums.jsonl
    scripts/compare_sums.py --found sums.jsonl --plot sums.png

Each run prints one line of JSON: the seconds of a sum on the slowest rank, the median of rounds,
by strategy and bytes. With --found it prints all lines as one table, and draws it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

BYTES = (4, 16 << 10, 32 << 10, 1 << 20)
ROUND_SECONDS = 0.25  # of a round at least


def measure(delay: float, sizes: list[int], rounds: int) -> None:
    """Time all strategies (collective); print what was found on rank 0."""
    from tpimpi import launch

    threads = launch.prepare(None)
    world = launch.world()
    import numpy as np
    from mpi4py import MPI

    from tpimpi.comm.allreduce import STRATEGIES
    from tpimpi.comm.group import Group

    group = Group(world)
    group.patient = any(group.comm.allgather(group.crowded(threads)))
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
        print(json.dumps({"delay_ms": delay, "ranks": group.size, "seconds": found}), flush=True)
    group.close()


def table(runs: list[dict]) -> str:
    """Return all runs as a table in Markdown, ms; the fastest of each line is bold."""
    names = list(runs[0]["seconds"])
    lines = ["| delay, bytes | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for run in runs:
        for nbytes in run["seconds"][names[0]]:
            took = [1e3 * run["seconds"][name][nbytes] for name in names]
            cells = [f"**{t:.3g}**" if t == min(took) else f"{t:.3g}" for t in took]
            title = f"{run['delay_ms']:g} ms, {shown(int(nbytes))}"
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(nbytes: int) -> str:
    """Return a number of bytes for people."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:g} {unit}"
    return f"{nbytes} B"


def draw(path: str, runs: list[dict]) -> None:
    """Draw the times over the delay of a link, a panel for each length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    names = list(runs[0]["seconds"])
    sizes = list(runs[0]["seconds"][names[0]])
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(3.2 * len(sizes), 4), squeeze=False)
    delays = [run["delay_ms"] for run in runs]
    for panel, nbytes in zip(panels[0], sizes, strict=True):
        for name in names:
            panel.loglog(
                delays, [1e3 * run["seconds"][name][nbytes] for run in runs], marker="o", label=name
            )
        panel.set(title=shown(int(nbytes)), xlabel="delay of a link, ms", xticks=delays)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel(f"ms of a sum over {runs[0]['ranks']} ranks")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.0, help="of a link, in ms: a label")
    parser.add_argument("--bytes", type=int, nargs="+", default=list(BYTES), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--found", metavar="FILE", help="lines that runs have printed")
    parser.add_argument("--plot", metavar="FILE", help="draw them as PNG")
    args = parser.parse_args()
    if not args.found:
        measure(args.delay, args.bytes, args.rounds)
        return
    runs = [json.loads(line) for line in Path(args.found).read_text().splitlines()]
    runs.sort(key=lambda run: run["delay_ms"])
    print(table(runs))
    if args.plot:
        draw(args.plot, runs)


if __name__ == "__main__":
    main()
