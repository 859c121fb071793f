#!/usr/bin/env python3
"""Time this project's server beside llama.cpp's, on the same weights in float32 and threads.

    pip install -e '.[mpich,serve,peers]'
    python scripts/compare_servers.py --model DIR --clients 1,4,8

Clients ask at the same time, each with prompts of its own; what counts is how many tokens all of
them get a second. Servers run one after the other, round by round; medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from compare_peers import size_or_none
from make_checkpoint import positive

from peers.cap import Cap, CapUnavailable, forget_cached
from peers.gguf_file import write_gguf
from peers.lineup import stored_encoding
from peers.machine import describe
from peers.prepare import convert, say
from peers.servers import Answers, Running, Server, servers
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import MachineError, UserError
from tpimpi.launch import available_cores
from tpimpi.model.config import ModelConfig
from tpimpi.paths import cache_directory

CAPPED_TOKENS = 8
WORDS = (
    *("the", "of", "and", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his", "on"),
    *("be", "at", "by", "had", "not", "are", "but", "from"),
)


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR",
                        help="a Hugging Face directory with a tokenizer.model")  # fmt: skip
    parser.add_argument("--threads", type=positive, metavar="N", help="of each server (all cores)")
    parser.add_argument(
        "--clients", type=lambda text: [positive(n) for n in text.split(",")],
        default=[1, 4, 8], metavar="N,...", help="that ask at the same time (1,4,8)",
    )  # fmt: skip
    parser.add_argument("--requests", type=positive, default=2, metavar="N", help="of each (2)")
    parser.add_argument("--words", type=positive, default=16, metavar="N", help="of a prompt (16)")
    parser.add_argument("--tokens", type=positive, default=48, metavar="N", help="of answers (48)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument(
        "--cap", type=size_or_none, default="1500MB", metavar="SIZE",
        help="of all memory of a server, page cache too, in the second table (1500MB; none: skip)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=positive, default=900, metavar="S", help="of a request (900)"
    )
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where files made are kept")
    return parser.parse_args()


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Return prompts that begin differently."""
    own = random.Random(seed)
    return [" ".join(own.choice(WORDS) for _ in range(words)) for _ in range(count)]


def measure(
    args, gguf: dict[str, Path], cap: int | None
) -> tuple[dict[str, dict[int, list[Answers]]], dict[str, str]]:
    """Return what each server's clients got, by label and number of clients, a round each.

    And of servers that failed, how.
    """
    threads, most = args.threads or available_cores(), max(args.clients)
    context = 1024
    found: dict[str, dict[int, list[Answers]]] = {}
    failed: dict[str, str] = {}
    for number in range(args.rounds if cap is None else 1):
        for server in servers(args.model, gguf, threads, context, most, "max" if cap else None):
            say(f"round {number + 1}: {server.label}" + (f", {cap / 1e6:.0f} MB" if cap else ""))
            if server.label in failed:
                continue
            try:
                got = measure_one(args, server, number, cap)
            except MachineError as error:
                failed[server.label] = str(error)
                say(str(error))
                continue
            for clients, answers in got.items():
                found.setdefault(server.label, {}).setdefault(clients, []).append(answers)
    return found, failed


def measure_one(args, server: Server, number: int, cap: int | None) -> dict[int, Answers]:
    """Start a server and ask it with each number of clients. Raises MachineError."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        if cap is None:
            with Running(server, log) as running:
                return ask_all(args, running, args.tokens, number, args.requests)
        forget_cached(list(server.files))
        with Cap(cap) as group, Running(server, log, group) as running:
            return ask_all(args, running, CAPPED_TOKENS, number, 1)


def ask_all(args, running: Running, tokens: int, seed: int, requests: int) -> dict[int, Answers]:
    """Ask with each number of clients; once before, so that nothing is made ready meanwhile."""
    running.ask(prompts(1, 4, 99), 1, 2, args.timeout)
    found = {}
    for clients in args.clients:
        asked = prompts(clients * requests, args.words, 1000 * seed + clients)
        found[clients] = running.ask(asked, clients, tokens, args.timeout)
        say(f"  {clients} clients: {found[clients].rate:.2f} tokens/s")
    return found


def table(found: dict[str, dict[int, list[Answers]]], clients: list[int]) -> str:
    """Return tokens a second of all clients together, medians of rounds, and what ours is times."""
    rates = {
        label: [statistics.median(a.rate for a in rounds[n]) for n in clients]
        for label, rounds in found.items()
    }
    heads = [f"{n} client{'s' if n > 1 else ''}" for n in clients]
    lines = [f"| tokens/s | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    ours = next(iter(rates.values()))
    for label, row in rates.items():
        cells = [f"{rate:.2f}" for rate in row]
        if row is not ours:
            cells = [
                f"{rate:.2f} (ours x {o / rate:.2f})" for rate, o in zip(row, ours, strict=True)
            ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(args) -> None:
    """Prepare, measure, print."""
    vocabulary = args.model / "tokenizer.model"
    if not vocabulary.exists():
        raise UserError(f"{vocabulary} does not exist; llama.cpp's server needs its pieces")
    config = ModelConfig.from_directory(args.model)
    checkpoint = Checkpoint(args.model, config)
    work = args.work_dir or cache_directory() / "peers"
    folder = work / f"{config.name}-{checkpoint.fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    stored = stored_encoding(checkpoint)
    gguf = {name: folder / f"{name}-server.gguf" for name in dict.fromkeys(("f32", stored))}
    for name, path in gguf.items():
        if not path.exists():
            say(f"writing {path}")
            write_gguf(checkpoint, config, path, name, vocabulary)
    convert(args.model, [1])
    shown = f"{config.name}; {args.threads or available_cores()} threads; {describe()}"
    found = {"in memory": measure(args, {"f32": gguf["f32"]}, None)}
    if args.cap:
        try:
            found[f"under a cap of {args.cap / 1e6:.0f} MB"] = measure(args, gguf, args.cap)
        except CapUnavailable as error:
            say(str(error))
    print(f"\n{shown}")
    for title, (rows, failed) in found.items():
        print("\n".join([f"\n{title}\n", table(rows, args.clients), *failed.values()]))
    if "bf16" in gguf or "f16" in gguf:
        print("\nllama.cpp of stored weights rounds activations to them: not equal precision")
    kept = {
        title: {label: {n: [asdict(a) for a in got] for n, got in by.items()}
                for label, by in rows.items()}
        for title, (rows, _) in found.items()
    }  # fmt: skip
    print(f"\n{json.dumps(kept)}")


def main() -> int:
    """Run the script; return its exit code."""
    try:
        compare(arguments())
    except UserError as error:
        print(f"compare_servers: {error}", file=sys.stderr)
        return 2
    except MachineError as error:
        print(f"compare_servers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
