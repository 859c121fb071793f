"""Draw what `tpimpi bench` found: the roofline with our points in it, and one token's timeline.

The roofline is that of Williams, Waterman and Patterson 2009 (doi:10.1145/1498765.1498785).
Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first

from tpimpi.bench.timeline import DISK, NETWORK  # noqa: E402

MODES = {"window": ("#0072B2", "o"), "budget": ("#E69F00", "D"), "resident": ("#009E73", "s")}
PARTS = {"compute": "#56B4E9", DISK: "#D55E00", NETWORK: "#F0E442"}
INK, FAINT = "#333333", "#CCCCCC"
HEIGHT = 0.72  # of a rank's bar, of 1
RISE = "along the rise"


def draw(path: str, result: dict, intervals: dict[str, Sequence[dict]]) -> None:
    """Write the PNG; `intervals` are each mode's last steps of all ranks (`Recorder.last`)."""
    bars = sum(len(steps) for steps in intervals.values())
    style = {"font.size": 10, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(14, max(6.2, 1.8 + 0.34 * bars)), width_ratios=(1.15, 1),
            layout="constrained",
        )  # fmt: skip
        _roofline(left, result)
        _timeline(right, intervals)
        figure.suptitle(_title(result), fontsize=12)
        figure.canvas.draw()  # only now are the axes where they stay
        _turn(left)
        figure.savefig(path, dpi=150, format="png")
        plt.close(figure)


def _title(result: dict) -> str:
    threads = sorted(set(result["threads"]))
    many = "" if threads == [1] else "s"
    title = (
        f"{result['model']['name']}, {result['encoding']}: {result['ranks']} "
        f"rank{'' if result['ranks'] == 1 else 's'} x {'..'.join(map(str, threads))} thread{many}, "
        f"{result['machine']['processor']}"
    )
    return title + ("\nSPARSE FILES: times do not count" if result["sparse"] else "")


def _roofline(axes, result: dict) -> None:
    found = result["limits"]
    memory = found["memory_bytes_per_second"]["median"] / 1e9  # GB/s
    flops = found["flops_per_second"]["median"] / 1e9  # GFLOP/s
    points = {
        mode: [(r["flops"] / r["memory_bytes"], r) for r in m["times"] if r["seconds"]]
        for mode, m in result["modes"].items()
    }
    xs = [x for rows in points.values() for x, _ in rows]
    ys = [r["flops"] / r["seconds"]["median"] / 1e9 for rows in points.values() for _, r in rows]
    first, last = min(xs) / 2, max(*xs, 2 * flops / memory) * 2.5
    axes.set(xscale="log", yscale="log", xlim=(first, last))
    axes.set_ylim(min([*ys, memory * first]) / 2, max([flops, *ys]) * 2.2)
    _ceiling(axes, memory, flops, first, last, INK, "-", f"memory {memory:.1f} GB/s")
    axes.text(last / 1.1, flops * 1.06, f"arithmetic {flops:.0f} GFLOP/s", ha="right", va="bottom")
    for mode, rows in points.items():
        colour, marker = MODES[mode]
        rates = result["modes"][mode]["disk_bytes_per_second"]
        if rates and rows[0][1]["streamed_bytes"]:
            share = rows[0][1]["streamed_bytes"] / rows[0][1]["memory_bytes"]
            disk = rates["median"] / 1e9
            text = f"disk {disk:.2f} GB/s" + (f", {share:.0%} streamed" if share < 0.95 else "")
            _ceiling(axes, disk / share, flops, first, last, colour, "--", text)
        for kind, filled in (("step", True), ("prompt", False)):
            mine = [(x, r) for x, r in rows if r["kind"] == kind]
            axes.plot(
                [x for x, _ in mine],
                [r["flops"] / r["seconds"]["median"] / 1e9 for _, r in mine],
                marker, color=colour, markersize=8, markeredgewidth=1.8, zorder=3,
                markerfacecolor=colour if filled else "white",
                label=f"{mode}, {'steps' if filled else 'prompts'}",
            )  # fmt: skip
    _name_columns(axes, points)
    axes.set_xlabel("FLOP per byte of weights, keys and values")
    axes.set_ylabel("GFLOP/s of all ranks")
    axes.set_title("Roofline", loc="left", fontweight="bold")
    axes.grid(which="major", color=FAINT, linewidth=0.5)
    axes.legend(
        title="numbers: tokens", loc="lower right", frameon=True, framealpha=0.95, edgecolor=FAINT
    )


def _ceiling(axes, slope, most, first, last, colour, style, text) -> None:
    """Draw y = slope x up to `most`, then `most`, with its name along the rise."""
    corner = min(most / slope, last)
    axes.plot([first, corner, last], [slope * first, slope * corner, most], style, color=colour,
              linewidth=1.6, zorder=2)  # fmt: skip
    x = first * 1.15
    axes.text(
        x, slope * x * 1.07, text, color=colour, va="bottom", rotation_mode="anchor", gid=RISE,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}, zorder=2.5,
    )  # fmt: skip


def _turn(axes) -> None:
    """Turn the names of ceilings along y = x of the finished axes."""
    (x0, y0), (x1, y1) = axes.transData.transform([(1, 1), (10, 10)])
    for text in axes.texts:
        if text.get_gid() == RISE:
            text.set_rotation(math.degrees(math.atan2(y1 - y0, x1 - x0)))


def _name_columns(axes, points: dict) -> None:
    """Write beside the highest points how many tokens they are of: modes share their columns."""
    columns: dict[tuple[str, int], tuple[float, float]] = {}
    for rows in points.values():
        for x, row in rows:
            key = (row["kind"], row["tokens"])
            y = row["flops"] / row["seconds"]["median"] / 1e9
            columns[key] = max(columns.get(key, (x, 0.0)), (x, y), key=lambda c: c[1])
    for (kind, tokens), (x, y) in columns.items():
        right = kind == "step"
        axes.annotate(
            f"{tokens}", (x, y), xytext=(6 if right else -6, -5), textcoords="offset points",
            ha="left" if right else "right", va="top", fontsize=9, fontweight="bold",
        )  # fmt: skip


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def _timeline(axes, intervals: dict[str, Sequence[dict]]) -> None:
    labels, row = [], 0.0
    for mode, steps in intervals.items():
        longest = max(step["seconds"] for step in steps)
        for rank, step in enumerate(steps):
            scale = 100 / longest
            axes.broken_barh([(0, step["seconds"] * scale)], (row, HEIGHT), color=PARTS["compute"])
            for what in (DISK, NETWORK):
                spans = [(a * scale, (b - a) * scale) for w, a, b in step["waits"] if w == what]
                axes.broken_barh(spans, (row, HEIGHT), color=PARTS[what], linewidth=0)
            axes.text(101.5, row + HEIGHT / 2, _milliseconds(step["seconds"]), va="center")
            labels.append(
                (row + HEIGHT / 2, f"{mode}\nrank {rank}" if not rank else f"rank {rank}")
            )
            row += 1
        row += 0.6
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
    axes.set(xlim=(0, 100), ylim=(row - 0.6, -0.2))
    axes.set_xlabel("% of the token's time on the slowest rank")
    axes.set_title("One token on each rank", loc="left", fontweight="bold", pad=26)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in PARTS.values()]
    axes.legend(patches, PARTS, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False,
                borderaxespad=0.3)  # fmt: skip
