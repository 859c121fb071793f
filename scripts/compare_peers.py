#!/usr/bin/env python3
"""Time other programs and ours on the same weights and threads, in memory and under a memory cap.

    pip install -e '.[mpich,peers]'
    python scripts/compare_peers.py --shape tinyllama-1.1b --plot peers.png

Each program runs in a process of its own, one after the other, round by round; medians of rounds.
A checkpoint of random weights and GGUF files of the same weights are made once and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from humanfriendly import InvalidSize, parse_size
from make_checkpoint import positive

from peers.cap import Cap, CapUnavailable, forget_cached
from peers.child import run
from peers.lineup import (
    PACKAGES,
    Program,
    capped,
    in_memory,
    numbers_a_token,
    stored_encoding,
)
from peers.machine import describe
from peers.prepare import convert, make_gguf, make_model, missing, say
from peers.results import agreement, rows_of, say_agreement
from peers.table import Metric, metrics, render
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import MachineError, UserError
from tpimpi.launch import available_cores
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import SHAPES
from tpimpi.paths import cache_directory
from tpimpi.shards.layout import shards_folder

INTERRUPTED = 130
CAPPED_PROMPT, CAPPED_TOKENS = 8, 8
STEP_TOKENS = 8  # that a pass decodes together: eight texts, or guesses that are checked


def size_or_none(text: str) -> int | None:
    """Return bytes of 1500MB or 2GiB, None of none."""
    try:
        return None if text == "none" else parse_size(text)
    except InvalidSize:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 1500MB, or none") from None


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face directory")
    source.add_argument("--shape", choices=SHAPES, help="random bf16 weights of this shape")
    parser.add_argument("--threads", type=positive, metavar="N", help="of each program (all cores)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument(
        "--prompts", type=lambda text: sorted({positive(n) for n in text.split(",")}),
        default=[64, 512], metavar="N,...", help="prompt lengths in tokens (64,512)",
    )  # fmt: skip
    parser.add_argument("--tokens", type=positive, default=32, metavar="N", help="decoded (32)")
    parser.add_argument(
        "--cap", type=size_or_none, default="1500MB", metavar="SIZE",
        help="of all memory of a program, page cache too, in the second table (1500MB; none: skip)",
    )  # fmt: skip
    parser.add_argument(
        "--programs", type=lambda text: text.split(","), metavar="NAME,...",
        default=["tpimpi", *PACKAGES], help=f"(tpimpi,{','.join(PACKAGES)})",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=positive, default=600, metavar="S", help="a process (600)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the tables as bars")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="where the files made are kept"
    )
    args = parser.parse_args()
    wrong = set(args.programs) - {"tpimpi", *PACKAGES}
    if wrong or "tpimpi" not in args.programs:
        parser.error(f"--programs must be tpimpi and some of {', '.join(PACKAGES)}")
    return args


def settings_of(program: Program, config: ModelConfig, prompts, tokens, step, logits) -> str:
    """Return what a worker is told, as JSON."""
    return json.dumps({
        "program": program.kind, "model": program.model, "threads": program.threads,
        "flags": program.flags, "prompts": prompts, "tokens": tokens, "step": step,
        "logits": logits, "vocab_size": config.vocab_size, "parent": os.getpid(),
    })  # fmt: skip


def rounds(args, programs: list[Program], config, logits: Path | None, cap: int | None) -> dict:
    """Run every program once a round; return its results by label, the failed one last."""
    prompts, tokens, step = args.prompts, args.tokens, STEP_TOKENS
    if cap:
        prompts, tokens, step = [CAPPED_PROMPT], CAPPED_TOKENS, 0
    found: dict[str, list[dict]] = {program.label: [] for program in programs}
    for number in range(args.rounds):
        for program in programs:
            results = found[program.label]
            if results and "failed" in results[-1]:
                continue
            say(f"round {number + 1} of {args.rounds}: {program.label}")
            file = str(logits / f"{program.label}.npy") if logits and not results else None
            settings = settings_of(program, config, prompts, tokens, step, file)
            command = [*program.command(), settings]
            result = run_capped(command, args, program, cap) if cap else run(command, args.timeout)
            if "missing" in result:
                result = {"failed": missing(result["missing"])}
            if "failed" in result:
                say(f"{program.label}: {result['failed']}")
            results.append(result)
    return found


def run_capped(command: list[str], args, program: Program, cap: int) -> dict:
    """Run a program in a cgroup of its own, with none of its files in the page cache."""
    still = forget_cached(program.files)
    with Cap(cap) as group:
        result = run(command, args.timeout, group)
        result["peak_bytes"] = group.peak_bytes()
    if still > 0.05:
        say(f"{still:.0%} of its files stayed in the page cache, as another program maps them; "
            "it had that memory beside the cap")  # fmt: skip
    return result


def compare(args) -> None:
    """Prepare, measure, print."""
    threads = args.threads or available_cores()
    if hasattr(os, "sched_setaffinity"):
        # Of all that is started from here: no program may take more cores than another.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    work = args.work_dir or cache_directory() / "peers"
    work.mkdir(parents=True, exist_ok=True)
    model = make_model(args, work)
    config = ModelConfig.from_directory(model)
    checkpoint = Checkpoint(model, config)
    stored, numbers = stored_encoding(checkpoint), numbers_a_token(config)
    folder = work / f"{config.name}-{checkpoint.fingerprint}"
    gguf = make_gguf(args, checkpoint, config, stored, folder)
    ranks = [1, 2, 4]
    convert(model, ranks)
    itemsize = ENCODINGS[stored].nbytes(1)
    shown = [f"{config.name}, {stored}, {numbers * itemsize / 1e9:.2f} GB of weights a token; "
             f"{threads} threads; medians of {args.rounds} rounds", describe()]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        place = Path(scratch)
        programs = in_memory(model, gguf, threads, ranks, numbers, itemsize)
        programs = [p for p in programs if p.package in args.programs]
        memory = Program("memory read rate", "memory", "", "", threads)
        found = rounds(args, [memory, *programs], config, place, None)
        rates = [r["bytes_per_second"] for r in found.pop(memory.label) if "failed" not in r]
        rate = max(rates, default=None)
        rows = rows_of(programs, found, rate)
        agreed = agreement(programs, found, place)
        alone = shards_folder(checkpoint.fingerprint, Partition.of(config, [1]))
        shards = sorted(alone.glob("*.h5"))
        few = capped(model, gguf, shards, threads, args.cap or 0, place / "offload")
        few = [p for p in few if p.package in args.programs]
        capped_rows = rows_of(few, under_cap(args, few, config), None)
    if rate:
        shown.append(
            f"memory read rate {rate / 1e9:.1f} GB/s, {threads} threads, the best of all rounds"
        )
    columns = metrics(args.prompts, STEP_TOKENS)
    few_columns = [Metric("decode", "decode", "ms/token", 1e3, 1),
                   Metric("peak", "peak of the cgroup", "MB", 1e-6, 0)]  # fmt: skip
    print("\n".join(["", *shown, "", render(rows, columns, rows[0]), ""]))
    print(f"x ours: divided by {rows[0]['label']}; above 1.00 ours needs less, below 1.00 more")
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        print(note)
    print("\n".join(say_agreement(agreed, rows[0]["label"])))
    if capped_rows:
        print(f"\nunder a cap of {args.cap / 1e6:.0f} MB over all of a program's memory, page "
              f"cache counted\n\n{render(capped_rows, few_columns, capped_rows[0])}\n")  # fmt: skip
        for row in capped_rows:
            if row["figures"] and row["failed"]:
                print(row["note"])
    if args.plot:
        plot(args.plot, rows, columns, capped_rows, few_columns, args.cap, shown)
    print(json.dumps({
        "model": config.name, "encoding": stored, "threads": threads, "machine": shown[1],
        "step_tokens": STEP_TOKENS,
        "memory_bytes_per_second": rate, "in_memory": rows, "agreement": agreed,
        "cap_bytes": args.cap if capped_rows else None, "capped": capped_rows,
    }))  # fmt: skip


def under_cap(args, programs: list[Program], config) -> dict:
    """Return the results under the cap; of none if there can't be one here."""
    if not args.cap:
        return {}
    try:
        with Cap(args.cap):
            pass  # can one be made at all?
        return rounds(args, programs, config, None, args.cap)
    except CapUnavailable as error:
        say(f"no table under a memory cap: {error}")
        return {}


def plot(path: Path, rows, columns, capped_rows, few_columns, cap, shown: list[str]) -> None:
    """Draw what there is."""
    try:
        from peers.plot import draw

        groups = [("All weights in memory", rows, [m for m in columns if m.compared])]
        if capped_rows:
            title = f"Under a cap of {cap / 1e6:.0f} MB, page cache counted"
            groups.append((title, capped_rows, few_columns))
        draw(path, groups, "\n".join(shown))
    except ModuleNotFoundError as error:
        say(missing(error.name))


def main() -> None:
    """Compare; end with 2 for a user's mistake, 1 for the machine's failure, 130 after Ctrl-C."""
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        compare(args)
    except (UserError, MachineError) as error:
        say(f"compare_peers: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        say("interrupted; the programs have been ended")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
