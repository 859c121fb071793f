"""Measure which tiles are fast on this machine, for each of a few numbers of tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.kernels.panels import ROWS
from tpimpi.kernels.tiling import SIZES, Tiling, candidates
from tpimpi.kernels.widening import WIDENINGS

_COLUMNS = 2048
_PASSES, _PASS_BYTES = 8, 16 << 20  # of weights, each time others: no cache has them
_MANY, _LESS = 32, 4  # tokens from which arithmetic binds, and so fewer of the weights do
_REPEATS, _SECONDS = 7, 0.015  # of each way, at least; the shortest repeat counts
_CLEARLY = 0.97  # of the guess's time: what is hardly faster may be so by chance


def measure(encoding: str, threads: int) -> dict[int, Tiling]:
    """Return the fastest tiles for each of SIZES, by products of weights that come from memory."""
    panel = _COLUMNS * WIDENINGS[encoding].column_bytes
    panels = _PASS_BYTES // panel
    memory = np.frombuffer(huge_pages(_PASSES * panels * panel), np.uint8)
    memory[::4096] = 0  # until it is written to, all pages are one
    weights = memory.reshape(_PASSES, panels, panel)
    narrow = WIDENINGS[encoding].column_bytes < 4 * ROWS
    found, turn = {}, 0
    for tokens in SIZES:
        some = panels // _LESS if tokens >= _MANY else panels
        x = np.ones((tokens, _COLUMNS), np.float32)  # [T, K]
        out = np.empty((tokens, some * ROWS), np.float32)  # [T, N]
        ways = [tiling for tiling in candidates(tokens) if narrow or not tiling.wide]
        best, repeats = dict.fromkeys(ways, np.inf), 0
        end = time.perf_counter() + _SECONDS * len(ways)
        # In turn, so that a change of the machine's speed meets all.
        while repeats < _REPEATS or time.perf_counter() < end:
            for tiling in ways:
                start = time.perf_counter()
                matmul(x, [(weights[turn % _PASSES, :some], out)], threads, encoding, tiling)
                best[tiling] = min(best[tiling], time.perf_counter() - start)
                turn += 1
            repeats += 1
        guess, fastest = ways[0], min(best, key=best.get)
        found[tokens] = fastest if best[fastest] < _CLEARLY * best[guess] else guess
    return found


def to_json(measured: Mapping[int, Tiling]) -> dict[str, list[int]]:
    """Return what was measured in terms of JSON."""
    return {str(size): list(tiling) for size, tiling in measured.items()}


def from_json(fields: dict[str, list[int]]) -> dict[int, Tiling]:
    """Return what `to_json` was given, without what is no choice here. Raises ValueError."""
    try:
        found = {}
        for size, (side, most, ahead, wide) in fields.items():
            found[int(size)] = Tiling(side, most, ahead, wide)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"these are no tilings: {fields!r}") from error
    return {
        size: tiling
        for size, tiling in found.items()
        if size in SIZES and tiling in candidates(size)
    }
