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
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_checkpoint import SHAPES, positive
from peers.cap import Cap, CapUnavailable, forget_cached, parse_size
from peers.child import run, turn
from peers.gguf_file import write_gguf
from peers.lineup import (
    PACKAGES,
    Program,
    capped,
    in_memory,
    mpirun,
    numbers_a_token,
    stored_encoding,
)
from peers.machine import describe
from peers.table import Metric, metrics, render

from tpimpi.checkpoint import Checkpoint
from tpimpi.config import ModelConfig
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import MachineError, UserError
from tpimpi.launch import available_cores, cache_directory

INTERRUPTED = 130
CAPPED_PROMPT, CAPPED_TOKENS = 8, 8


def say(text: str) -> None:
    """Tell the user how far it is."""
    print(text, file=sys.stderr, flush=True)


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
        "--cap", type=lambda text: None if text == "none" else parse_size(text),
        default=parse_size("1500MB"), metavar="SIZE",
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
    parser.add_argument("--lock", type=Path, metavar="FILE", help="held (flock) while one is timed")
    args = parser.parse_args()
    wrong = set(args.programs) - {"tpimpi", *PACKAGES}
    if wrong or "tpimpi" not in args.programs:
        parser.error(f"--programs must be tpimpi and some of {', '.join(PACKAGES)}")
    return args


def make_model(args, work: Path) -> Path:
    """Return the model directory, made if it is a shape."""
    if args.model:
        return args.model
    model = work / f"random-{args.shape}-bf16"
    if not model.exists():
        partial = model.with_suffix(".partial")
        command = [sys.executable, str(Path(__file__).with_name("make_checkpoint.py"))]
        subprocess.run([*command, "--shape", args.shape, "--output", str(partial)], check=True)
        partial.rename(model)
    return model


def make_gguf(args, checkpoint, config, stored: str, folder: Path) -> dict[str, Path]:
    """Return llama.cpp's files, by encoding; none if it is not asked for or can't be made."""
    if "llama.cpp" not in args.programs:
        return {}
    paths = {name: folder / f"{name}.gguf" for name in dict.fromkeys(("f32", stored))}
    for encoding, path in paths.items():
        if not path.exists():
            say(f"writing {path}")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                write_gguf(checkpoint, config, path, encoding if encoding == "f32" else None)
            except ModuleNotFoundError as error:
                say(missing(error.name))
                return {}
    return paths


def missing(package: str) -> str:
    """Return the sentence for a package that isn't there."""
    return f"{package} is not installed; get it with the peers extra: pip install -e '.[peers]'"


def convert(model: Path, ranks: list[int]) -> None:
    """Cut our shards, so that no measurement does."""
    for count in ranks:
        command = [*mpirun(count), sys.executable, "-m", "tpimpi", "convert", "--model", str(model)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise MachineError(f"`tpimpi convert` failed with {count} ranks, see above")


def settings_of(program: Program, config: ModelConfig, prompts, tokens, logits) -> str:
    """Return what a worker is told, as JSON."""
    return json.dumps({
        "program": program.kind, "model": program.model, "threads": program.threads,
        "flags": program.flags, "prompts": prompts, "tokens": tokens, "logits": logits,
        "vocab_size": config.vocab_size, "parent": os.getpid(),
    })  # fmt: skip


def rounds(args, programs: list[Program], config, logits: Path | None, cap: int | None) -> dict:
    """Run every program once a round; return its results by label, the failed one last."""
    prompts, tokens = ([CAPPED_PROMPT], CAPPED_TOKENS) if cap else (args.prompts, args.tokens)
    found: dict[str, list[dict]] = {program.label: [] for program in programs}
    for number in range(args.rounds):
        for program in programs:
            results = found[program.label]
            if results and "failed" in results[-1]:
                continue
            say(f"round {number + 1} of {args.rounds}: {program.label}")
            file = str(logits / f"{program.label}.npy") if logits and not results else None
            command = [*program.command(), settings_of(program, config, prompts, tokens, file)]
            with turn(args.lock):
                result = (
                    run_capped(command, args, program, cap) if cap else run(command, args.timeout)
                )
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


def rows_of(programs: list[Program], found: dict, memory_rate: float | None) -> list[dict]:
    """Return a row a program: medians over the rounds that gave a result."""
    rows = []
    for program in programs:
        good = [result for result in found[program.label] if "failed" not in result]
        bad = [result["failed"] for result in found[program.label] if "failed" in result]
        figures = {}
        if good:
            decode = statistics.median(s for result in good for s in result["token_seconds"])
            for length in good[0]["first_seconds"]:
                figures[f"first_{length}"] = statistics.median(
                    result["first_seconds"][length] for result in good
                )
            figures["decode"] = decode
            if memory_rate and program.weight_bytes:
                figures["of_memory"] = program.weight_bytes / memory_rate / decode
            peaks = [result["peak_bytes"] for result in good if result["peak_bytes"]]
            figures["peak"] = max(peaks) if peaks else None
        rows.append({"label": program.label, "ours": program.kind == "tpimpi", "figures": figures,
                     "failed": bad[0] if bad else "", "note": program.note})  # fmt: skip
    return rows


def agreement(programs: list[Program], found: dict, logits: Path) -> list[dict]:
    """Compare each program's greedy ids and first logits with ours, from the first round."""
    import numpy as np

    base, result = None, []
    for program in programs:
        file = logits / f"{program.label}.npy"
        if not file.exists() or "failed" in found[program.label][0]:
            continue
        ids, values = found[program.label][0]["ids"], np.load(file)  # [V]
        if base is None:
            base = (ids, values)
            continue
        same = next((i for i, (a, b) in enumerate(zip(*(ids, base[0]), strict=True)) if a != b),
                    len(ids))  # fmt: skip
        apart = float(np.abs(values - base[1]).max() / base[1].std())
        result.append({"label": program.label, "same_ids": same, "of": len(ids),
                       "logits_apart": apart, "exact": program.exact})  # fmt: skip
    return result


def say_agreement(agreed: list[dict], ours: str) -> list[str]:
    """Return lines about who computes the same as ours."""
    lines = [f"against {ours}: greedy ids that are the same from the first on; the largest "
             "difference of the prompt's logits, in their standard deviations"]  # fmt: skip
    for one in agreed:
        text = f"  {one['label']}: {one['same_ids']} of {one['of']} ids, {one['logits_apart']:.1e}"
        if one["exact"] and one["logits_apart"] > 1e-3:
            text += " - TOO FAR APART: these two don't compute the same model"
        lines.append(text)
    return lines


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
    stored, numbers = stored_encoding(checkpoint), numbers_a_token(checkpoint, config)
    folder = work / f"{config.name}-{checkpoint.fingerprint}"
    gguf = make_gguf(args, checkpoint, config, stored, folder)
    ranks = [1, 2, 4]
    convert(model, ranks)
    itemsize = ENCODINGS[stored].storage.itemsize
    shown = [f"{config.name}, {stored}, {numbers * itemsize / 1e9:.2f} GB of weights a token; "
             f"{threads} threads; medians of {args.rounds} rounds", describe()]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        place = Path(scratch)
        programs = in_memory(model, gguf, threads, ranks, numbers, itemsize)
        programs = [p for p in programs if p.package in args.programs]
        memory = Program("memory read rate", "memory", "", "", threads)
        found = rounds(args, [memory, *programs], config, place, None)
        rates = [r["bytes_per_second"] for r in found.pop(memory.label) if "failed" not in r]
        rate = statistics.median(rates) if rates else None
        rows, columns = rows_of(programs, found, rate), metrics(args.prompts)
        agreed = agreement(programs, found, place)
        capped_rows: list[dict] = []
        shards = sorted((cache_directory() / folder.name).glob("1*/*"))
        if args.cap:
            try:
                with Cap(args.cap):
                    pass  # can it be made at all?
                few = capped(model, gguf, shards, threads, args.cap, place / "offload")
                few = [p for p in few if p.package in args.programs]
                capped_rows = rows_of(few, rounds(args, few, config, None, args.cap), None)
            except CapUnavailable as error:
                say(f"no table under a memory cap: {error}")
    if rate:
        shown.append(f"memory read rate {rate / 1e9:.1f} GB/s, {threads} threads")
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
    if args.plot:
        plot(args.plot, rows, columns, capped_rows, few_columns, args.cap, shown)
    print(json.dumps({
        "model": config.name, "encoding": stored, "threads": threads, "machine": shown[1],
        "memory_bytes_per_second": rate, "in_memory": rows, "agreement": agreed,
        "cap_bytes": args.cap if capped_rows else None, "capped": capped_rows,
    }))  # fmt: skip


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
