"""Load every kernel before it is needed, on all ranks, from numba's cache.

What isn't there yet is compiled first, on each node once, see `compilation`.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterable, Iterator

import numpy as np

from tpimpi import launch
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.engine.compilation import compile_missing, use_tilings
from tpimpi.errors import MachineError, UserError, describe
from tpimpi.memory.process import release, unwritten_parts
from tpimpi.progress import EVERY_SECONDS

HEAD_DIM = 32  # a multiple of 16, as values are padded to
NAPS = (0.0005, 0.02)  # seconds between two looks whether all ranks are here


def warm_up(group: Group, encodings: Iterable[str], threads: int) -> None:
    """Load every kernel for these encodings (collective). Raises UserError, MachineError."""
    names = sorted(encodings)
    with group.together():
        _start_threads(threads)
    cores = set().union(*group.node.allgather(launch.allowed_cores()))
    error: Exception | None = None
    if group.node.rank == 0:
        try:
            compile_missing(names, [min(threads, 2)], cores, group.rank == 0)
        except (UserError, MachineError) as e:
            error = e
        except OSError as e:
            error = MachineError(
                f"the kernels can't be compiled: {describe(e)}; name a folder that can be written "
                "and has some MiB free by XDG_CACHE_HOME, or by NUMBA_CACHE_DIR where that is set"
            )
    _rest_until_all_are_here(group)
    group.agree(error)
    use_tilings(names, threads)
    with group.together():
        _load(names, threads)
    group.node.Barrier()


def _load(encodings: Iterable[str], threads: int) -> None:
    try:
        call_kernels(encodings, threads)
    except (pickle.UnpicklingError, EOFError) as error:  # as numba puts it
        raise MachineError(
            f"compiled kernels in {os.environ['NUMBA_CACHE_DIR']} are damaged ({describe(error)}); "
            "remove that folder, and they are compiled again"
        ) from error


def _start_threads(threads: int) -> None:
    """Let numba start the threads, before time is spent on compiling for them."""
    if threads == 1:
        return
    import numba

    try:
        numba.set_num_threads(threads)
    except ValueError as error:  # such as a layer that is not installed
        layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
        said = " ".join(str(error).split()).rstrip(".")
        mend = "install GNU OpenMP (Debian and Ubuntu: apt install libgomp1), " * (layer == "omp")
        raise UserError(
            f"numba can't start {threads} threads with NUMBA_THREADING_LAYER={layer}: {said}; "
            f"{mend}name another layer, or take --threads 1"
        ) from None


def _rest_until_all_are_here(group: Group) -> None:
    """Sleep while others compile: MPI's own waiting would take the cores from them (collective)."""
    request, nap = group.comm.Ibarrier(), NAPS[0]
    told = time.monotonic()
    while not request.Test():
        time.sleep(nap)
        nap = min(1.5 * nap, NAPS[1])
        if group.rank == 0 and time.monotonic() - told > EVERY_SECONDS:
            told = time.monotonic()
            say("waiting for other machines to compile their kernels")


def call_kernels(encodings: Iterable[str], threads: int) -> None:
    """Call every kernel for few and for many tokens, so that each variant is compiled or loaded.

    The compiler's library, some 60 MiB, also loads compiled kernels, and is of no use afterwards.
    """
    from tpimpi.kernels.variants import MANY

    compiler = unwritten_parts("libllvmlite")
    release(compiler)
    for tokens in (1, MANY):  # at most a page
        for _ in _calls(encodings, tokens, threads):
            release(compiler)


def _calls(encodings: Iterable[str], tokens: int, threads: int) -> Iterator[None]:
    """Call one kernel after another, after the code that it calls."""
    from tpimpi.kernels.activation import silu_gate
    from tpimpi.kernels.append import append_kv
    from tpimpi.kernels.attention import PAGE, attention
    from tpimpi.kernels.matmul import matmul
    from tpimpi.kernels.norm import rmsnorm
    from tpimpi.kernels.panels import tile_of
    from tpimpi.kernels.rope import rope
    from tpimpi.kernels.tiles import tile
    from tpimpi.kernels.tiling import widens
    from tpimpi.model.encoding import ENCODINGS, ROWS

    x = np.ones((tokens, HEAD_DIM), np.float32)
    out = np.empty_like(x)
    for encoding in encodings:
        yield tile_of(encoding)
        nbytes = ENCODINGS[encoding].panel_bytes(HEAD_DIM)
        weights = np.zeros((HEAD_DIM // ROWS, nbytes), np.uint8)
        yield matmul(x, [(weights, out)], threads, encoding)
        if widens(encoding, threads):
            yield tile_of("f32")
    yield rmsnorm(x, x[0].copy(), 1e-5, out, threads)
    yield silu_gate(out, x, threads)
    heads = np.ones((tokens, 1, HEAD_DIM), np.float32)
    half = np.ones((tokens, HEAD_DIM // 2), np.float32)
    yield rope(heads, half, half, threads)
    keys = np.zeros((1, 1, HEAD_DIM, PAGE), np.float32)
    values = np.zeros((1, 1, PAGE, HEAD_DIM), np.float32)
    table, slots = np.zeros((1, 1), np.int32), np.zeros(tokens, np.int32)
    positions, index = np.arange(tokens, dtype=np.int32), np.zeros(1, np.int32)
    yield append_kv(heads, heads, keys, values, table, positions, slots, threads)
    yield tile()
    yield attention(heads, keys, values, table, positions, slots, np.empty_like(heads), index,
                    np.float32(1), threads)  # fmt: skip
