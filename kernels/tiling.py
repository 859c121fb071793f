"""Which tiles multiply so many tokens: measured on this machine once, or a guess until then.

A choice changes times, never numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tpimpi.kernels.panels import TILES

SIZES = (1, 2, 4, 8, 16, 32, 128)  # tokens for which tiles are measured; others go by the next
AHEADS = (0, 1024, 2048, 4096)  # bytes by which one tile fetches weights; 0: the machine alone does
MOST_SIDE = max(side for side, _, _ in TILES)
WIDE = 17  # tokens from which widening a chunk beforehand may pay


class Tiling(NamedTuple):
    """How a product is cut into tiles: a choice of times, not of numbers."""

    side: int  # panels side by side
    most: int  # tokens of a tile, at most
    ahead: int = AHEADS[0]  # bytes by which weights are fetched, where all tokens are in one tile
    wide: bool = False  # whether a chunk is widened once, before all tiles


Key = tuple[str, bool]  # encoding, whether by several threads
_measured: dict[Key, Mapping[int, Tiling]] = {}
_chosen: dict[tuple[int, bool, str], Tiling] = {}  # for each number of tokens that came


def candidates(tokens: int) -> list[Tiling]:
    """Return what may be good for so many tokens; the first is the guess."""
    found = []
    for side, least, most in TILES:
        if tokens < least or (tokens > most and most < TILES[0][2]):
            continue
        if tokens > most:  # the tiles fetch the next chunk
            found.append(Tiling(side, most))
        else:
            found += [Tiling(side, most, ahead) for ahead in AHEADS]
        if tokens >= WIDE:
            found.append(Tiling(side, most, wide=True))
    return found


def use(measured: Mapping[Key, Mapping[int, Tiling]]) -> None:
    """Take what was measured: the best for each of SIZES."""
    _measured.update(measured)
    _chosen.clear()


def widens(encoding: str, threads: int) -> bool:
    """Tell whether some products widen weights beforehand, and so use the tiles of float32."""
    measured = _measured.get((encoding, threads > 1), {})
    return any(tiling.wide for tiling in measured.values())


def tiling_for(tokens: int, threads: int, encoding: str) -> Tiling:
    """Return the tiles for a product of so many tokens."""
    key = tokens, threads > 1, encoding
    found = _chosen.get(key)
    if found is None:
        size = next((size for size in SIZES if size >= tokens), SIZES[-1])
        found = _measured.get((encoding, threads > 1), {}).get(size)
        if found is None or not _can(found, tokens):
            found = candidates(tokens)[0]
        _chosen[key] = found
    return found


def _can(tiling: Tiling, tokens: int) -> bool:
    """Tell whether there are such tiles for so many tokens: some are for more alone."""
    return any(tokens >= least for side, least, most in TILES if tiling[:2] == (side, most))
