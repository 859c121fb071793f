"""What `tpimpi bench` prints for people: limits, memory, times beside their limits."""

from __future__ import annotations

from tpimpi.units import MIB

BOUND = {"disk": "disk", "memory": "memory", "flops": "FLOPs", "allreduce": "net"}


def text(result: dict) -> str:
    """Return the summary of a result of `bench`."""
    lines = [_title(result), "", *_limits(result), "", *_memory(result), "", *_times(result)]
    return "\n".join(lines)


def _title(result: dict) -> str:
    model, ranks, threads = result["model"], result["ranks"], sorted(set(result["threads"]))
    title = (
        f"{model['name']}, {model['num_layers']} layers, {result['encoding']} | "
        f"{_plural(ranks, 'rank')} x {'..'.join(map(str, threads))} "
        f"thread{'' if threads == [1] else 's'} on {_plural(result['nodes'], 'node')} | "
        f"{result['machine']['processor']} | context {result['context']}"
    )
    if result["sparse"]:
        title += "\nSPARSE FILES: no weights were on the disk; memory counts, times do not"
    return title


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _limits(result: dict) -> list[str]:
    found = result["limits"]
    lines = ["limits, all ranks together    median      quartiles"]
    for what, key, scale, unit in (
        ("memory, plain reads", "memory_bytes_per_second", 1e9, "GB/s"),
        ("disk, the tape alone", "disk_bytes_per_second", 1e9, "GB/s"),
        ("arithmetic, own product", "flops_per_second", 1e9, "GFLOP/s"),
    ):
        spread = found[key]
        if spread:
            low, middle, high = (spread[k] / scale for k in ("low", "median", "high"))
            lines.append(f"  {what:24s}{middle:10.2f}      {low:.2f} .. {high:.2f} {unit}")
    if result["ranks"] > 1:
        for tokens, spread in found["allreduce_seconds"].items():
            low, middle, high = (spread[k] * 1e6 for k in ("low", "median", "high"))
            what = f"allreduce of {_plural(int(tokens), 'row')}"
            lines.append(f"  {what:24s}{middle:10.0f}      {low:.0f} .. {high:.0f} us")
    return [*lines, "", *_tiles(result["tiles"])]


def _tiles(found: dict) -> list[str]:
    """Tell how products are cut: found when the kernels were compiled."""
    cells = []
    for tokens, tile in found.items():
        parts = -(-int(tokens) // tile["most"])
        cell = f"{tile['side']} x {-(-int(tokens) // parts)}"
        if parts == 1 and tile["ahead"]:
            cell += f" + {tile['ahead'] // 1024}"
        cells.append((tokens, cell))
    widths = [max(map(len, pair)) + 3 for pair in cells]
    titles = "tiles of products, tokens", "  panels x tokens + KiB"
    return [
        *(
            f"{title:28s}"
            + "".join(f"{cell[i]:>{w}s}" for cell, w in zip(cells, widths, strict=True))
            for i, title in enumerate(titles)
        ),
        "tiles: panels of 16 rows times tokens that are computed at once (many tokens are cut into "
        "equal\nparts), and how far ahead weights are fetched; measured when kernels were compiled",
    ]


def _memory(result: dict) -> list[str]:
    lines = ["memory, the largest of a rank    peak MiB  planned  resident  streamed a pass  ring"]
    for mode, m in result["modes"].items():
        kinds = ("peak_memory", "planned_memory", "resident", "streamed", "ring")
        peak, plan, resident, streamed, ring = (max(m[f"{k}_bytes"]) / MIB for k in kinds)
        line = f"  {mode:28s}{peak:11.0f}{plan:9.0f}{resident:10.0f}{streamed:17.0f}{ring:6.0f}"
        if m["disk_bytes_per_second"]:
            low, high = (m["disk_bytes_per_second"][k] / 1e9 for k in ("low", "high"))
            line += f"   disk {low:.2f} .. {high:.2f} GB/s"
        lines.append(line)
    return lines


def _times(result: dict) -> list[str]:
    modes = result["modes"].values()
    lines = [
        f"{'ms':16s}" + "".join(f"  {mode:32s}" for mode in result["modes"]),
        f"{'':16s}" + f"  {'  median   quartiles   of limit':32s}" * len(modes),
    ]
    for rows in zip(*(m["times"] for m in modes), strict=True):
        what, tokens = rows[0]["kind"], rows[0]["tokens"]
        label = f"prompt of {tokens}" if what == "prompt" else f"step of {_plural(tokens, 'row')}"
        lines.append(f"  {label:14s}" + "".join(f"  {_cell(row):32s}" for row in rows))
    lines.append(
        "step: tokens decoded at once at the context's end; prompt: time to first token; of limit: "
        "the\nleast time that disk, memory, FLOPs or allreduces (net) allow / the median"
    )
    return [line.rstrip() for line in lines]


def _cell(row: dict) -> str:
    spread = row["seconds"]
    if spread is None:
        return f"{'left out':>8s}"
    low, middle, high = (spread[k] * 1e3 for k in ("low", "median", "high"))
    digits = 1 if middle < 100 else 0
    quartiles = f"{low:.{digits}f}..{high:.{digits}f}" if spread["repeats"] > 1 else "once"
    return f"{middle:8.{digits}f} {quartiles:>12s} {row['fraction']:5.2f} {BOUND[row['bound_by']]}"
