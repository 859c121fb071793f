"""Draw what `tpimpi doctor` found: latency and rate of each link, and what each device can do.

Colours are viridis and those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first
import numpy as np  # noqa: E402
from matplotlib.colors import LogNorm  # noqa: E402

from tpimpi.bench.examination import Examination  # noqa: E402

COLOURS = ("#0072B2", "#009E73", "#E69F00")
INK = "#333333"
CELL = 0.62  # inches of a link


def draw(path: str, found: Examination) -> None:
    """Write the PNG of an examination with speeds."""
    count = len(found.devices)
    with plt.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK}):
        square = 1.6 + CELL * max(count, 4)
        figure = plt.figure(figsize=(2 * square + 2.6, square + 3.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(square + 0.4, 2.8))
        left, right = above.subplots(1, 2)
        _heat(left, found, "Latency, ms one way", lambda link: link.latency * 1e3, "viridis_r")
        _heat(right, found, "Rate, Mbit/s", lambda link: link.rate * 8 / 1e6, "viridis")
        bars = below.subplots(1, 3)
        speeds = found.speeds
        for axes, title, values, colour in zip(
            bars,
            ("Product, GFLOP/s", "Memory, GB/s", "Disk, MB/s"),
            (
                [s.flops / 1e9 for s in speeds], [s.memory / 1e9 for s in speeds],
                [s.disk and s.disk / 1e6 for s in speeds],
            ),
            COLOURS, strict=True,
        ):  # fmt: skip
            _bars(axes, title, values, colour)
        figure.suptitle(_title(found), fontsize=12)
        figure.savefig(path, dpi=130, format="png")
        plt.close(figure)


def _title(found: Examination) -> str:
    hosts = [d.host for d in found.devices]
    what = f"{len(hosts)} rank{'s' * (len(hosts) > 1)} on {', '.join(dict.fromkeys(hosts))}"
    return what if len(what) <= 80 else f"{len(hosts)} ranks on {len(set(hosts))} hosts"


def _heat(axes, found: Examination, title: str, number: Callable, colours: str) -> None:
    """Draw a matrix with its numbers in it; a row sends."""
    count = len(found.devices)
    values = np.full((count, count), np.nan)
    for i, row in enumerate(found.links):
        for j, link in enumerate(row):
            if link is not None:
                values[i, j] = number(link)
    axes.set_title(title, loc="left", fontweight="bold")
    known = values[~np.isnan(values)]
    names = [f"{d.rank}" for d in found.devices]
    axes.set_xticks(range(count), names)
    axes.set_yticks(range(count), [f"{d.host}  {d.rank}"[-18:] for d in found.devices])
    axes.set(xlabel="to rank", ylabel="from")
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
    axes.set_facecolor("#F4F4F4")
    if not known.size:
        return
    # A decade at least, so that what differs by noise does not look different.
    middle = float(np.sqrt(known.min() * known.max()))
    low, high = min(known.min(), middle / 3), max(known.max(), middle * 3)
    image = axes.imshow(values, cmap=colours, norm=LogNorm(low, high))
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
            axes.text(
                j, i, _short(value), ha="center", va="center",
                color="white" if dark else "black", fontsize=9,
            )  # fmt: skip


def _bars(axes, title: str, values: Sequence[float | None], colour: str) -> None:
    names = [str(rank) for rank in range(len(values))]
    axes.bar(names, [value or 0 for value in values], color=colour, width=0.7)
    top = max(value or 0 for value in values) or 1.0
    for rank, value in enumerate(values):
        text = "none" if value is None else _short(value)
        axes.text(rank, (value or 0) + 0.02 * top, text, ha="center", va="bottom", fontsize=9)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xlabel="rank", ylim=(0, 1.15 * top), xlim=(-0.8, max(len(values), 2) - 0.2))
    axes.set_yticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
