#!/usr/bin/env python3
"""Measure one program in this process (or, under mpirun, on these ranks); print one JSON line.

Started by scripts/compare_peers.py with its settings as JSON. Exit code 3: a package is missing.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

MISSING = 3
STEPS = 8  # that are timed, where steps are asked for


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """Return the prompt that every program gets: the first of the same random ids."""
    import numpy as np

    random = np.random.default_rng(0)
    return random.integers(min(3, vocab_size - 1), vocab_size, count).tolist()


def measure(program, settings: dict) -> dict:
    """Time prompts, tokens and steps on a program that has been warmed up by a pass of each.

    Seconds from ids to the next id, by prompt length; seconds of each decoded token after the
    shortest prompt; then seconds of each step: `step` more tokens of the same text in one pass, at
    consecutive positions, with the logits of all, which is `tpimpi bench`'s step of as many rows.
    The likeliest ids after the shortest prompt, each decoded token and each token of the steps.
    """
    import numpy as np

    lengths, step = sorted(settings["prompts"], reverse=True), settings["step"]
    ids = prompt_ids(max(lengths[0], step), settings["vocab_size"])
    program.step(int(program.prefill(ids[: lengths[0]]).argmax()), lengths[0])
    if step:
        program.step_of(ids[:step], lengths[0] + 1)
    first, seconds, token = {}, [], 0
    for length in lengths:
        program.reset()
        start = time.perf_counter()
        logits = program.prefill(ids[:length])
        token = int(logits.argmax())
        first[length] = time.perf_counter() - start
        if settings.get("logits") and length == lengths[-1]:
            np.save(settings["logits"], logits)
    generated = [token]
    end = lengths[-1] + settings["tokens"]
    for position in range(lengths[-1], end):
        start = time.perf_counter()
        token = int(program.step(token, position).argmax())
        seconds.append(time.perf_counter() - start)
        generated.append(token)
    together = []
    for number in range(STEPS if step else 0):
        start = time.perf_counter()
        likeliest = program.step_of(ids[:step], end + number * step).argmax(axis=1)  # [step]
        together.append(time.perf_counter() - start)
        generated += likeliest.tolist()
    return {"first_seconds": first, "token_seconds": seconds, "step_seconds": together,
            "ids": generated}  # fmt: skip


def context_of(settings: dict) -> int:
    """Return the most tokens that a text has in `measure`."""
    prompts, step = settings["prompts"], settings["step"]
    return max(max(prompts) + 1 + step, min(prompts) + settings["tokens"] + STEPS * step)


def memory_rate(threads: int, mebibytes: int = 512, repeats: int = 25) -> float:
    """Return the bytes/s of a plain sum over float32 numbers far bigger than the caches.

    The fastest of the repeats: it stands for a limit, which other programs can only lower.
    """
    from tpimpi import launch

    launch.prepare(threads)
    import numba
    import numpy as np

    @numba.njit(parallel=True, fastmath=True)
    def total(x):
        result = np.float32(0)
        for i in numba.prange(x.shape[0]):
            result += x[i]
        return result

    numba.set_num_threads(threads)
    data, seconds = np.ones(mebibytes << 18, np.float32), []
    total(data)
    for _ in range(repeats):
        start = time.perf_counter()
        total(data)
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def launchers_peak(until: int) -> int:
    """Return the summed peaks of the processes between this one and the one `until`."""
    pid, total = os.getppid(), 0
    while pid not in (0, 1, until):
        total += peak_bytes(pid)
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        pid = int(after_name.split()[1])
    return total


def run(settings: dict) -> dict | None:
    """Do what the settings say; None on ranks other than 0."""
    kind, threads = settings["program"], settings["threads"]
    if kind == "memory":
        return {"bytes_per_second": memory_rate(threads)}
    step = settings["step"]
    longest = max(*settings["prompts"], step)
    given = settings["model"], threads, longest, context_of(settings), settings["flags"]
    if kind == "tpimpi":
        from peers.programs import run_tpimpi

        result = run_tpimpi(*given, max(1, step), lambda program: measure(program, settings))
    else:
        from peers.programs import LlamaCpp, Transformers

        result = measure({"llama.cpp": LlamaCpp, "transformers": Transformers}[kind](*given),
                         settings)  # fmt: skip
        result["peak_bytes"] = peak_bytes(os.getpid())
    if result:
        result["peak_bytes"] += launchers_peak(settings["parent"])
    return result


def main() -> None:
    """Measure, print, exit."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    settings = json.loads(sys.argv[1])
    try:
        result = run(settings)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), flush=True)
        sys.exit(MISSING)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # other ranks wait for this one: mpirun ends them when one has failed
    if result is not None:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
