"""Compile every kernel before it is needed, in a process that then ends.

The compiler needs more memory than many models' plans have, and what it took once stays in a
process's peak. So one rank of each node lets a child compile into numba's cache
(`python -m tpimpi.engine.warmup THREADS ENCODING...`), and all ranks then load from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tpimpi.memory.process import release, unwritten_parts

HEAD_DIM = 32  # a multiple of 16, as values are padded to


def warm_up(node, encodings: Iterable[str], threads: int) -> None:
    """Load every kernel for these encodings on all ranks of `node`, a communicator (collective)."""
    names = sorted(encodings)
    if node.rank == 0:
        _compile_in_child(names, threads)
    node.Barrier()
    call_kernels(names, threads)
    node.Barrier()


def _compile_in_child(encodings: list[str], threads: int) -> None:
    mode = "threads" if threads > 1 else "serial"
    stamp = Path(os.environ["NUMBA_CACHE_DIR"]) / f"{mode}-{'-'.join(encodings)}.compiled"
    if stamp.exists():
        return
    # The launcher's variables would make the child believe to be a rank.
    launcher = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_", "SLURM_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    command = [sys.executable, "-m", "tpimpi.engine.warmup", str(threads), *encodings]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:  # else the rank itself compiles, and says what is wrong
        stamp.touch()


def call_kernels(encodings: Iterable[str], threads: int) -> None:
    """Call every kernel for few and for many tokens, so that each variant is compiled or loaded.

    The compiler's library, some 60 MiB, also loads compiled kernels, and is of no use afterwards.
    """
    import numba

    from tpimpi.kernels.matmul import FEW
    from tpimpi.kernels.variants import MANY

    if threads > 1:
        numba.set_num_threads(threads)
    compiler = unwritten_parts("libllvmlite")
    release(compiler)
    for tokens in (1, max(MANY, FEW + 1)):  # at most a page
        for _ in _calls(encodings, tokens, threads):
            release(compiler)


def _calls(encodings: Iterable[str], tokens: int, threads: int) -> Iterator[None]:
    """Call one kernel after another."""
    from tpimpi.kernels.activation import silu_gate
    from tpimpi.kernels.attention import PAGE, append_kv, attention
    from tpimpi.kernels.matmul import matmul
    from tpimpi.kernels.norm import rmsnorm
    from tpimpi.kernels.rope import rope
    from tpimpi.model.encoding import ENCODINGS

    x = np.ones((tokens, HEAD_DIM), np.float32)
    out = np.empty_like(x)
    for encoding in encodings:
        weights = np.zeros((HEAD_DIM, HEAD_DIM), ENCODINGS[encoding].storage)
        yield matmul(x, weights, out, threads, encoding)
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
    yield attention(heads, keys, values, table, positions, slots, np.empty_like(heads), index,
                    np.float32(1), threads)  # fmt: skip


if __name__ == "__main__":
    call_kernels(sys.argv[2:], int(sys.argv[1]))
