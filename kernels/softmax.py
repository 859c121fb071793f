"""The softmax taken online, page by page (Milakov 2018, arXiv:1805.02867), for rows of queries.

A row sums SPAN pages at a time, in order, and then the spans in order: one order for all, whether
one thread walks all spans or many walk one each.
"""

from __future__ import annotations

import numpy as np

from tpimpi.kernels.arithmetic import bits_of, exp32, fma32
from tpimpi.kernels.tiles import PAGE, add_values, score_rows, weigh
from tpimpi.kernels.variants import inner

ROWS = 48  # rows that walk the pages together at most
SPAN = 8  # pages that are summed before they meet the others'
_MASKED = np.float32(-np.inf)


def work_floats(head_dim: int, padded: int) -> int:
    """Return the floats that ROWS rows work in: whole cache lines."""
    floats = ROWS * (head_dim + PAGE + 2 * padded + 6)
    return -(-floats // 16) * 16


@inner
def places(head_dim, padded):
    """Return where in a thread's memory the rows' scores, totals, findings and figures begin.

    First come the queries [ROWS, Hd]. Scores, later weights [ROWS, PAGE]; totals of a span
    [ROWS, Hd']; what all spans so far have found [ROWS, Hd' + 2]: total, highest score, sum of
    weights; then [ROWS] each: a span's highest scores, its sums of weights, what a new page leaves
    of the totals, last positions (the bits of int32).
    """
    scores = ROWS * head_dim
    totals = scores + ROWS * PAGE
    found = totals + ROWS * padded
    return scores, totals, found, found + ROWS * (padded + 2)


@inner
def last_positions(head_dim, padded):
    """Return where the rows' last positions begin, the bits of int32 [ROWS]."""
    return places(head_dim, padded)[3] + 3 * ROWS


@inner
def first_seen(position, window):
    """Return the first position that a token sees: `window` of them, its own the last."""
    return max(position - window + 1, 0)


@inner
def _sees(position, window, start):
    """Return whether a token sees anything of the page of positions start, ..."""
    return start <= position and first_seen(position, window) < start + PAGE


@inner
def _page(tile, rows, first, start, keys, values, page, ahead, head, lasts, window, work):
    """Attend with 1, 2, 3, 4 or 6 rows to what each sees of the page of positions start, ..."""
    head_dim, padded = keys.shape[2], values.shape[3]
    scores, totals, _, best = places(head_dim, padded)
    shrink, row_scores = best + 2 * ROWS, scores + first * PAGE
    score_rows(tile, rows, work, keys, page, ahead, head, first * head_dim, row_scores)
    common = PAGE
    for r in range(first, first + rows):
        position = bits_of(work[lasts + r])
        count = min(position - start + 1, PAGE)
        common = min(common, count)
        low = first_seen(position, window) - start
        weigh(tile, work, scores + r * PAGE, low, count, best + r, ROWS)
    row_totals = totals + first * padded
    add_values(
        tile, rows, work, values, page, ahead, head, row_scores, row_totals, shrink + first, 0,
        common,
    )  # fmt: skip
    for r in range(first, first + rows):  # in a prompt, a token sees more than those before it
        count = min(bits_of(work[lasts + r]) - start + 1, PAGE)
        if count > common:
            work[shrink + r] = np.float32(1.0)
            add_values(
                tile, 1, work, values, page, page, head, scores + r * PAGE, totals + r * padded,
                shrink + r, common, count,
            )  # fmt: skip


@inner
def walk_span(tile, rows, keys, values, head, pages, span, first, final, window, work):
    """Attend with rows of one sequence and KV head to the pages of one span, from nothing.

    The pages go from `first` to `final`, the first and the last that any row sees.
    """
    head_dim, padded = keys.shape[2], values.shape[3]
    lasts = last_positions(head_dim, padded)
    _, totals, _, best = places(head_dim, padded)
    for i in range(totals, totals + rows * padded):  # loops: numba takes seconds to compile slices
        work[i] = np.float32(0.0)
    for r in range(best, best + rows):
        work[r], work[r + ROWS] = _MASKED, np.float32(0.0)
    for number in range(max(span * SPAN, first), min(span * SPAN + SPAN, final + 1)):
        page, ahead = pages[number], pages[min(number + 1, final)]
        start, r = number * PAGE, 0
        while r < rows:
            left = 0  # rows from r on that see something of this page
            while r + left < rows and left <= 9:
                if not _sees(bits_of(work[lasts + r + left]), window, start):
                    break
                left += 1
            if left == 0:
                r += 1
                continue
            together = left
            if left > 4:
                together = 6 if left == 6 or left >= 9 else (left + 1) // 2
            _page(tile, together, r, start, keys, values, page, ahead, head, lasts, window, work)
            ahead = page  # fetched once is enough
            r += together


@inner
def keep_span(found, row, head_dim, padded, work):
    """Copy what a row found in a span to found [Hd' + 2]."""
    _, totals, _, best = places(head_dim, padded)
    for d in range(padded):
        found[d] = work[totals + row * padded + d]
    found[padded], found[padded + 1] = work[best + row], work[best + ROWS + row]


@inner
def add_span(found, total, best, weight):
    """Add what a row found in a span to what it found in those before; found [Hd' + 2]."""
    size = total.shape[0]
    new = max(found[size], best)
    old_factor, factor = exp32(found[size] - new), exp32(best - new)
    for d in range(size):
        found[d] = fma32(total[d], factor, found[d] * old_factor)
    found[size] = new
    found[size + 1] = fma32(weight, factor, found[size + 1] * old_factor)
