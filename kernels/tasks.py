"""Tasks that threads take one after another from a shared counter.

Cores are seldom equally fast: one is woken late, serves another program or is of a weaker kind.
"""

from __future__ import annotations

import threading

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

COUNTER = types.Array(types.int64, 1, "C")
_kept = threading.local()  # calls from several Python threads must not share it


def counter() -> np.ndarray:
    """Return the int64 [1] that a parallel kernel sets to 0 and its threads count on."""
    try:
        return _kept.counter
    except AttributeError:
        _kept.counter = np.zeros(1, np.int64)
        return _kept.counter


@intrinsic
def next_task(typing_context, tasks):
    """Return a number that no other thread gets: 0, 1, 2, ..."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(tasks), codegen
