"""The comparison as text: values, and how many times ours they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One column: its key in a row's figures, its title, its unit, how to show a value."""

    key: str
    title: str
    unit: str
    scale: float = 1.0
    decimals: int = 2
    compared: bool = True  # with a column of ratios

    def show(self, value: float) -> str:
        """Return a value in this metric's unit."""
        shown = value * self.scale
        fewer = max(len(f"{shown:.0f}") - 1, 0) if self.decimals > 1 else 0
        return f"{shown:.{max(self.decimals - fewer, 0)}f}"


def metrics(prompts: Sequence[int], step: int) -> list[Metric]:
    """Return the columns: prompts of these lengths, a token, a step of so many, memory."""
    return [
        *(Metric(f"first_{n}", f"first token, {n}", "s", decimals=3) for n in sorted(prompts)),
        Metric("decode", "decode", "ms/token", 1e3, 1),
        Metric("of_memory", "of read rate", "", 1, 2, compared=False),
        Metric("step", f"step of {step} tokens", "ms", 1e3, 1),
        Metric("peak", "peak memory", "MiB", 2**-20, 0),
    ]


def render(rows: list[dict], columns: list[Metric], ours: dict) -> str:
    """Return lines for people: a row a program, a value and a ratio to `ours` a metric.

    A row has `label`, `figures` by metric key, and `failed`: why it has none.
    """
    head, units = ["program"], [""]
    for metric in columns:
        head += [metric.title, "x ours"] if metric.compared else [metric.title]
        units += [metric.unit, ""] if metric.compared else [metric.unit]
    body = [_cells(row, columns, ours["figures"]) for row in rows]
    full = [head, units, *(line for line in body if len(line) == len(head))]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(line[0]) for line in [head, *body])
    lines = []
    for line in (head, units, ["-" * width for width in widths], *body):
        cells = [line[0].ljust(widths[0])]
        if len(line) == len(head):
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        else:
            cells += line[1:]  # why there are no figures, as wide as it likes
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cells(row: dict, columns: list[Metric], ours: dict) -> list[str]:
    if not row["figures"]:
        return [row["label"], row["failed"]]
    cells = [row["label"]]
    for metric in columns:
        value, own = row["figures"].get(metric.key), ours.get(metric.key)
        cells.append("-" if value is None else metric.show(value))
        if metric.compared:
            cells.append("-" if value is None or not own else f"{value / own:.2f}")
    return cells
