"""Which tiles multiply so many tokens: measured on this machine once, or a guess until then.

A choice changes times, never numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tpimpi.kernels.panels import TILES

SIZES = (1, 2, 4, 8, 16, 64)  # tokens for which tiles are measured; others go by the next of these
AHEADS = (0, 1024, 2048, 4096)  # bytes by which one tile fetches weights; 0: the machine alone does
MOST_SIDE = max(side for side, _ in TILES)


class Tiling(NamedTuple):
    """Panels side by side, the most tokens of a tile, bytes by which weights are fetched ahead."""

    side: int
    most: int
    ahead: int


Key = tuple[str, bool]  # encoding, whether by several threads
_measured: dict[Key, Mapping[int, Tiling]] = {}
_chosen: dict[tuple[int, bool, str], Tiling] = {}  # for each number of tokens that came


def candidates(tokens: int) -> list[Tiling]:
    """Return what may be good for so many tokens; the first is the guess."""
    largest = max(most for side, most in TILES if side == TILES[0][0])
    able = [(side, most) for side, most in TILES if most >= min(tokens, largest)]
    found = []
    for side, most in able:
        aheads = AHEADS if tokens <= most else AHEADS[1:2]  # more tiles fetch whole chunks
        found += [Tiling(side, most, ahead) for ahead in (AHEADS[1], *aheads)]
    return list(dict.fromkeys(found))


def use(measured: Mapping[Key, Mapping[int, Tiling]]) -> None:
    """Take what was measured: the best for each of SIZES."""
    _measured.update(measured)
    _chosen.clear()


def tiling_for(tokens: int, threads: int, encoding: str) -> Tiling:
    """Return the tiles for a product of so many tokens."""
    key = tokens, threads > 1, encoding
    found = _chosen.get(key)
    if found is None:
        size = next((size for size in SIZES if size >= tokens), SIZES[-1])
        best = _measured.get((encoding, threads > 1), {})
        found = _chosen[key] = best.get(size) or candidates(size)[0]
    return found
