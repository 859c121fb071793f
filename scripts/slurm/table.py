#!/usr/bin/env python3
"""Show what compare.sbatch has measured, as a table in Markdown and, with --plot, as bars.

python scripts/slurm/table.py results/devices-17 --plot devices.png
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
TITLES = (
    "case", "ranks", "threads", "held", "ms a token", "compute", "disk", "network",
    "first token s", "peak MiB",
)  # fmt: skip
# Colours of Okabe and Ito, as in the plots of `tpimpi bench`.
PARTS = {"compute": "#56B4E9", "disk": "#D55E00", "network": "#F0E442"}


@dataclass(frozen=True)
class Row:
    """A case in one of its modes: times in seconds, the parts of a token as fractions of it."""

    name: str
    ranks: int
    threads: int
    mode: str
    token: float
    parts: dict[str, float]
    prompt: int | None  # tokens of the longest prompt that there was time for
    first: float | None
    peak: int


@dataclass(frozen=True)
class Failure:
    """A case without a result, and the sentence that says why."""

    name: str
    why: str


def read(folder: Path) -> list[Row | Failure]:
    """Return the rows of a folder of results, in the order of its list of cases."""
    found: list[Row | Failure] = []
    for line in (folder / "cases").read_text(errors="replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name = line.split()[0]
        result, log = folder / f"{name}.json", folder / f"{name}.log"
        if result.exists():
            found += rows_of(name, result)
        elif log.exists():
            found.append(Failure(name, reason(log.read_text(errors="replace"))))
        else:
            found.append(Failure(name, "it has not been run"))
    return found


def rows_of(name: str, result: Path) -> list[Row | Failure]:
    """Return the rows of a case's result, or that the file is none."""
    try:
        bench = json.loads(result.read_text())
        found = [row(name, bench, mode) for mode in bench["modes"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        found = []
    return found or [Failure(name, f"{result.name} is no result of `tpimpi bench`; run it again")]


def row(name: str, bench: dict, mode: str) -> Row | Failure:
    """Return the row of one mode of one line of `tpimpi bench --output json`."""
    measured = bench["modes"][mode]
    times = [t for t in measured["times"] if t["seconds"]]  # for others there was no time
    seconds = {(t["kind"], t["tokens"]): t["seconds"]["median"] for t in times}
    if ("step", 1) not in seconds:
        return Failure(name, f"there was no time for a token of mode {mode}; give --seconds more")
    prompt = max((tokens for kind, tokens in seconds if kind == "prompt"), default=None)
    return Row(
        name, bench["ranks"], max(bench["threads"]), mode, seconds["step", 1],
        parts(measured["one_token"]), prompt, seconds.get(("prompt", prompt)),
        max(measured["peak_memory_bytes"]),
    )  # fmt: skip


def parts(ranks: list[dict]) -> dict[str, float]:
    """Return the parts of one token on the rank that waits least in sums: others wait for it."""
    slowest = min(ranks, key=lambda rank: rank["network_seconds"])
    seconds = {
        "compute": slowest["compute_seconds"],
        "disk": slowest["disk_wait_seconds"],
        "network": slowest["network_seconds"],
    }
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def reason(log: str) -> str:
    """Return the last of tpimpi's sentences in a case's log, else its last line."""
    lines = [line for line in log.splitlines()[1:] if line.strip()]
    said = [line.removeprefix("tpimpi: ") for line in lines if line.startswith("tpimpi: ")]
    return (said or lines or ["it was interrupted"])[-1]


def table(rows: list[Row | Failure]) -> str:
    """Return the table in Markdown."""
    lines = [TITLES, ["---"] * len(TITLES)]
    for r in rows:
        if isinstance(r, Failure):
            lines.append([r.name, f"failed: {r.why}"])
            continue
        shares = [f"{r.parts[part]:.0%}" for part in PARTS]
        first = "" if r.first is None else f"{r.first:.2f} ({r.prompt})"
        lines.append([
            r.name, str(r.ranks), str(r.threads), r.mode, f"{r.token * 1e3:.1f}", *shares,
            first, f"{r.peak / MIB:.0f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(path: Path, rows: list[Row]) -> None:
    """Draw each row's time of a token, cut into its parts, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.4 * len(rows)), layout="constrained")
    places = range(len(rows))
    left = [0.0] * len(rows)
    for part, colour in PARTS.items():
        widths = [r.parts[part] * r.token * 1e3 for r in rows]
        axes.barh(places, widths, left=left, color=colour, edgecolor="#333333", label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, end, r in zip(places, left, rows, strict=True):
        axes.text(end, place, f" {r.token * 1e3:.1f}", va="center")
    axes.set_yticks(places, [f"{r.name}, {r.mode} ({r.ranks})" for r in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("ms a token, on the rank that the others wait for")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(PARTS), frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def main() -> None:
    """Print the table; draw the plot."""
    parser = argparse.ArgumentParser(description="Show what compare.sbatch has measured.")
    parser.add_argument("results", type=Path, help="the folder that compare.sbatch has told")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the times of a token as PNG"
    )
    options = parser.parse_args()
    if not (options.results / "cases").is_file():
        sys.exit(f"{options.results} is no folder of compare.sbatch: it has no list of cases")
    rows = read(options.results)
    print(table(rows))
    measured = [r for r in rows if isinstance(r, Row)]
    if options.plot and not measured:
        sys.exit("there is nothing to draw: no case has a result")
    if options.plot:
        draw(options.plot, measured)


if __name__ == "__main__":
    main()
