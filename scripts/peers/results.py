"""From the workers' results to rows: medians over rounds, and who computes the same."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np

from peers.lineup import Program


def rows_of(programs: list[Program], found: dict, memory_rate: float | None) -> list[dict]:
    """Return a row a program that was run: medians over the rounds that gave a result.

    `spread` has the least and the most by the same keys.
    """
    rows = []
    for program in programs:
        results = found.get(program.label)
        if not results:
            continue
        good = [result for result in results if "failed" not in result]
        bad = [result["failed"] for result in results if "failed" in result]
        samples = {}
        if good:
            for length in good[0]["first_seconds"]:
                samples[f"first_{length}"] = [r["first_seconds"][length] for r in good]
            samples["decode"] = [seconds for r in good for seconds in r["token_seconds"]]
            samples["step"] = [seconds for r in good for seconds in r["step_seconds"]]
            samples["peak"] = [r["peak_bytes"] for r in good if r["peak_bytes"]]
        figures = {key: statistics.median(values) for key, values in samples.items() if values}
        if "peak" in figures:
            figures["peak"] = max(samples["peak"])
        if "decode" in figures and memory_rate and program.weight_bytes:
            figures["of_memory"] = program.weight_bytes / memory_rate / figures["decode"]
        note = f"{program.label}, in a later round: {bad[0]}" if good and bad else program.note
        rows.append({
            "label": program.label, "ours": program.kind == "tpimpi", "figures": figures,
            "spread": {key: [min(v), max(v)] for key, v in samples.items() if v},
            "failed": bad[0] if bad else "", "note": note,
        })  # fmt: skip
    return rows


def agreement(programs: list[Program], found: dict, logits: Path) -> list[dict]:
    """Compare each program's likeliest ids and first logits with ours, from the first round."""
    base, result = None, []
    for program in programs:
        file = logits / f"{program.label}.npy"
        if not file.exists() or "failed" in found[program.label][0]:
            continue
        ids, values = found[program.label][0]["ids"], np.load(file)  # [V]
        if base is None:
            base = (ids, values)
            continue
        differ = [a != b for a, b in zip(ids, base[0], strict=True)]
        same = differ.index(True) if True in differ else len(ids)
        apart = float(np.abs(values - base[1]).max() / base[1].std())
        result.append({"label": program.label, "same_ids": same, "of": len(ids),
                       "logits_apart": apart, "exact": program.exact})  # fmt: skip
    return result


def say_agreement(agreed: list[dict], ours: str) -> list[str]:
    """Return lines about who computes the same as ours."""
    lines = [f"against {ours}: ids, decoded and then of all tokens of the steps, that are the same "
             "from the first on; the largest difference of the prompt's logits, in their standard "
             "deviations"]  # fmt: skip
    for one in agreed:
        text = f"  {one['label']}: {one['same_ids']} of {one['of']} ids, {one['logits_apart']:.1e}"
        if one["exact"] and one["logits_apart"] > 1e-3:
            text += " - TOO FAR APART: these two don't compute the same model"
        lines.append(text)
    return lines
