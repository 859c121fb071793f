"""Many tokens times a panel of rows (Goto 2008, doi:10.1145/1356052.1356053).

A batch of tokens is packed once. A thread packs a panel of rows and multiplies it with all of them,
lane by lane: a lane of the panel stays in the first cache while those of the tokens pass.
"""

from __future__ import annotations

from numba import njit

from tpimpi.kernels.panels import (
    FEWER,
    LEVELS,
    LINE,
    MERGES,
    ORDER,
    ROWS,
    TILE,
    TOKENS,
    UNIT,
    UNROLL,
    add_lane,
    pack_rows,
    pack_tokens,
)  # fmt: skip
from tpimpi.kernels.vector import LANES

BATCH = 256  # tokens packed at once: a weight is widened once for all of them
_TOGETHER = 22  # groups of tokens whose sums, and one lane of them, stay in the second cache
_SUMS = _TOGETHER * LEVELS * TILE  # floats of a thread's sums


def groups_of(tokens):
    """Return how many groups of TOKENS and of FEWER tokens a batch of more than FEWER is cut into.

    Together they have less than UNIT places too many.
    """
    units = (tokens + UNIT - 1) // UNIT
    fewer = -units % 3
    return (units - 2 * fewer) // 3, fewer


def lane_floats(rows, columns):
    """Return the floats from one lane of a panel to the next: an odd number of cache lines.

    At a power of two all lanes would fall on the same few places of a cache.
    """
    lines = (rows * ((columns + LANES - 1) // LANES) + 15) // 16
    return (lines // 2 * 2 + 1) * 16


def packed_floats(tokens, columns):
    """Return the floats of a packed batch."""
    more, fewer = groups_of(tokens)
    return LANES * lane_floats(more * TOKENS + fewer * FEWER, columns)


def thread_floats(columns):
    """Return the floats of scratch a thread works in: its sums and a panel of weights."""
    return _SUMS + LANES * lane_floats(ROWS, columns)


_groups_of, _lane_floats = njit(nogil=True)(groups_of), njit(nogil=True)(lane_floats)


@njit(nogil=True)
def _place(group, more):
    """Return the first token of a group: the larger groups come first."""
    return min(group, more) * TOKENS + max(group - more, 0) * FEWER


@njit(nogil=True)
def pack_groups(x, start, stop, packed, part, parts):
    """Pack this part of the groups of tokens start .. stop - 1: for each lane, [K / 16, ., n]."""
    more, fewer = _groups_of(stop - start)
    groups, columns = more + fewer, x.shape[1]
    steps = (columns + LANES - 1) // LANES
    lane = _lane_floats(_place(groups, more), columns)
    for group in range(groups * part // parts, groups * (part + 1) // parts):
        first = _place(group, more)
        if group < more:
            pack_tokens(x, start + first, stop - 1, TOKENS, packed, first * steps, lane)
        else:
            pack_tokens(x, start + first, stop - 1, FEWER, packed, first * steps, lane)


@njit(nogil=True)
def multiply_panel(packed, w, out, start, stop, row, then, work):
    """Compute out[start:stop, row : row + ROWS] from packed tokens; `work` is a thread's scratch.

    Meanwhile the rows from `then` on are fetched into the second cache.
    """
    rows, columns = w.shape
    more, fewer = _groups_of(stop - start)
    groups, steps = more + fewer, (columns + LANES - 1) // LANES
    x_lane, w_lane = _lane_floats(_place(groups, more), columns), _lane_floats(ROWS, columns)
    pack_rows(w, row, rows - 1, work, _SUMS, w_lane)
    row_bytes = columns * w.itemsize
    ahead, end = then * row_bytes, min(then + ROWS, rows) * row_bytes
    fetched = steps // UNROLL * LINE  # bytes while one lane is added: enough, or all of them do
    idle = groups * LANES - max(end - ahead, 0) // max(fetched, 1)
    for first in range(0, groups, _TOGETHER):
        last = min(first + _TOGETHER, groups)
        for i in range(LANES):
            lane, merges = ORDER[i], MERGES[i]
            count = max(columns - lane + LANES - 1, 0) // LANES
            panel = _SUMS + lane * w_lane
            for group in range(first, last):
                at, inputs = (group - first) * LEVELS * TILE, lane * x_lane
                inputs += _place(group, more) * steps
                idle -= 1
                line = LINE if idle < 0 else 0
                if group < more:
                    add_lane(TOKENS, work, panel, at, merges, packed, inputs, count, w, ahead, line)
                else:
                    add_lane(FEWER, work, panel, at, merges, packed, inputs, count, w, ahead, line)
                ahead += line * (steps // UNROLL)
        for group in range(first, last):
            _store(work, (group - first) * LEVELS * TILE, out, start, stop, row, group, more)


@njit(nogil=True)
def _store(work, at, out, start, stop, row, group, more):
    """Write a group's results, those that are no repetitions."""
    token, sums = start + _place(group, more), at + (LEVELS - 1) * TILE
    count = min(TOKENS if group < more else FEWER, stop - token)
    width = min(ROWS, out.shape[1] - row)
    for t in range(count):
        for r in range(width):
            out[token + t, row + r] = work[sums + t * ROWS + r]
