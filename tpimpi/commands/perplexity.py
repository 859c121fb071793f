"""`tpimpi perplexity`: score a text in windows, each token once."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

from tpimpi.commands import flags
from tpimpi.commands.files import check_folder, read_text
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest

SUMMARY = "score a text"
LOGITS_BYTES = 32 << 20  # of rank 0, for the logits of one pass


@dataclass(frozen=True)
class Options:
    """A text to score, in windows of so many tokens, and what that may take."""

    model: str
    save_dir: str | None
    again: bool
    memory: MemoryRequest
    file: str
    window: int | None
    report: str | None
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    parser.add_argument("--file", required=True, metavar="TEXT", help="the text to score")
    parser.add_argument(
        "--window", type=flags.tokens(2), metavar="N",
        help="tokens of one window, BOS and N - 1 tokens of the text, each scored once "
        "(default: 512, or the model's context if that is shorter)",
    )  # fmt: skip
    flags.add_shards(parser)
    flags.add_memory(parser)
    flags.add_report(parser)
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(
        args.model, args.save_dir, args.split_bin, flags.memory_request(args), args.file,
        args.window, args.report, args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Score the text (collective)."""
    import numpy as np

    from tpimpi.checkpoint.tokenizer import load_tokenizer
    from tpimpi.commands import report
    from tpimpi.engine.figures import summary
    from tpimpi.engine.session import load
    from tpimpi.memory.account import Work
    from tpimpi.shards.source import Source

    source, ids, window = Source(group, options.model, options.save_dir), [], 0
    config = source.config
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(options.model, config)
            ids = tokenizer.encode(read_text(options.file, "--file"), add_bos=False)
            if len(ids) < 2:
                raise UserError(
                    f"{options.file} has {len(ids)} tokens; give a longer text to score"
                )
            if options.report:
                check_folder(options.report, "--report")
        window = options.window or min(512, config.max_positions)
        if window > config.max_positions:
            raise UserError(
                f"--window {window} is longer than the model's context of {config.max_positions}"
            )
    shard, _ = source.shard(group, options.again)
    rows = max(1, LOGITS_BYTES // (4 * config.vocab_size))  # logits of all tokens are asked for
    work = Work(window - 1, window, longest_chunk=rows, logits=rows)
    session = load(group, source, shard, options.memory, work, threads)
    losses, start = [], time.perf_counter()
    with session:
        if group.rank == 0:
            bos = [config.bos_token_id] if config.bos_token_id is not None else []
            step = window - len(bos)
            for at in range(0, len(ids), step):
                part = bos + ids[at : at + step]
                if len(part) > 1:
                    losses.append(session.engine.score(part))
        figures = session.finish()
    if group.rank != 0:
        return
    total, count = float(np.sum(np.concatenate(losses))), sum(len(part) for part in losses)
    value = math.exp(total / count)
    content = summary(figures, count, 0, 0.0, time.perf_counter() - start)
    if options.report:
        report.write(options.report, content, figures)
    if options.json:
        print(json.dumps({"perplexity": value, "tokens": count, "nll": total, "window": window,
                          "figures": content}))  # fmt: skip
    else:
        print(f"perplexity {value:.4f} over {count} tokens ({total:.2f} nats, windows of {window})")
