"""The comparison as a picture: one panel a metric, one bar a program, ours in colour."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

from peers.table import Metric

OURS, OTHERS, INK, FAINT = "#1f6fb2", "#b9c0c7", "#222222", "#777777"


def draw(path: Path, groups: list[tuple[str, list[dict], list[Metric]]], footer: str) -> None:
    """Write a PNG (or what the suffix says): a row of panels for each (title, rows, metrics)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = max(len(metrics) for _, _, metrics in groups)
    heights = [len(rows) * 0.32 + 1.0 for _, rows, _ in groups]
    figure = pyplot.figure(figsize=(3.0 + 2.6 * width, sum(heights) + 0.5), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, rows, metrics) in zip(parts, groups, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        panels = part.subplots(1, width, sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=False):
            _panel(panel, rows, metric)
        for at, row in enumerate(rows):
            if row["failed"] and not row["figures"]:
                reason = shorten(row["failed"], 60, placeholder=" ...")
                panels[0].text(0, at, f" {reason}", va="center", fontsize=8, color=FAINT)
        for panel in panels[len(metrics) :]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9)
        for tick, row in zip(panels[0].get_yticklabels(), rows, strict=True):
            tick.set_color(OURS if row["ours"] else INK)
            tick.set_fontweight("bold" if row["ours"] else "normal")
        panels[0].invert_yaxis()
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=8, color=FAINT)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(panel, rows: list[dict], metric: Metric) -> None:
    values = [row["figures"].get(metric.key) for row in rows]
    shown = [value * metric.scale if value is not None else 0 for value in values]
    colours = [OURS if row["ours"] else OTHERS for row in rows]
    panel.barh(range(len(rows)), shown, color=colours, height=0.7)
    room = max(shown) or 1
    for at, value in enumerate(values):
        if value is not None:
            text = metric.show(value)
            panel.text(shown[at] + room * 0.02, at, text, va="center", fontsize=8.5, color=INK)
    panel.set_xlim(0, room * 1.25)
    unit = f" [{metric.unit}]" if metric.unit else ""
    panel.set_title(f"{metric.title}{unit}", fontsize=9.5, color=INK, loc="left")
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    panel.spines["left"].set_color("#999999")
