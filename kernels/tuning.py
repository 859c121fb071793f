"""Measure which tiles are fast on this machine, for each of a few numbers of tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.kernels.panels import ROWS
from tpimpi.kernels.tiling import SIZES, Key, Tiling, candidates
from tpimpi.kernels.widening import WIDENINGS

_COLUMNS = 2048
_PASS_BYTES = 16 << 20  # of weights multiplied at a time: each time others, so no cache has them
_PASSES = 8  # before the same come again
_REPEATS = 5  # of which the shortest counts


def measure(encoding: str, threads: int) -> dict[int, Tiling]:
    """Return the fastest tiles for each of SIZES, by products of weights that come from memory."""
    panel = _COLUMNS * WIDENINGS[encoding].column_bytes
    panels = _PASS_BYTES // panel
    memory = np.frombuffer(huge_pages(_PASSES * panels * panel), np.uint8)
    memory[:: 4096] = 0  # until it is written to, all pages are one
    weights = memory.reshape(_PASSES, panels, panel)
    found, turn = {}, 0
    for tokens in SIZES:
        x = np.ones((tokens, _COLUMNS), np.float32)  # [T, K]
        out = np.empty((tokens, panels * ROWS), np.float32)  # [T, N]
        best: dict[Tiling, float] = {}
        for _ in range(_REPEATS):  # in turn, so that a change of the machine's speed meets all
            for tiling in candidates(tokens):
                start = time.perf_counter()
                matmul(x, [(weights[turn % _PASSES], out)], threads, encoding, tiling)
                best[tiling] = min(best.get(tiling, np.inf), time.perf_counter() - start)
                turn += 1
        found[tokens] = min(best, key=best.get)
    return found


def save(path: Path, measured: Mapping[int, Tiling]) -> None:
    """Write what was measured for one encoding and one or several threads."""
    text = json.dumps({str(size): list(tiling) for size, tiling in measured.items()})
    partial = path.with_name(f"{path.name}.{time.time_ns()}")
    partial.write_text(text)
    partial.replace(path)


def load(path: Path) -> dict[int, Tiling]:
    """Return what `save` wrote; nothing where it can't be read or was written by another version."""
    try:
        found = {int(size): Tiling(*tiling) for size, tiling in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    able = {size: candidates(size) for size in SIZES}
    return {size: tiling for size, tiling in found.items() if tiling in able.get(size, ())}
