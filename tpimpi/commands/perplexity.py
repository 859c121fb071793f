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
from tpimpi.progress import Progress
from tpimpi.shards.request import ShardRequest

SUMMARY = "score a text"


@dataclass(frozen=True)
class Options:
    """A text to score, in windows of so many tokens, and what that may take."""

    model: str
    shards: ShardRequest
    memory: MemoryRequest
    allreduce: str
    file: str
    window: int | None
    report: str | None
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    parser.add_argument(
        "--file", required=True, metavar="FILE", help="the text to score; - is stdin"
    )
    parser.add_argument(
        "--window", type=flags.tokens(2), metavar="N",
        help="tokens of one window, BOS (without one, the token before) and N - 1 tokens of the "
        "text, each scored once (default: 512, or the model's context if that is shorter)",
    )  # fmt: skip
    flags.add_running(parser)
    flags.add_report(parser)
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(
        args.model, flags.shard_request(args), flags.memory_request(args), args.allreduce,
        args.file, args.window, args.report,
        args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Score the text (collective)."""
    from tpimpi.commands import report
    from tpimpi.engine.figures import summary
    from tpimpi.engine.opened import OpenModel
    from tpimpi.engine.settings import LOGITS_BYTES
    from tpimpi.memory.account import Work

    model = OpenModel(group, options.model, options.shards)
    config, ids, window = model.config, [], 0
    with group.together():
        if group.rank == 0:
            ids = model.tokenizer.encode(read_text(options.file, "--file"), add_bos=False)
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
    rows = max(1, LOGITS_BYTES // (4 * config.vocab_size))  # logits of all tokens are asked for
    work = Work(window - 1, window, longest_chunk=rows, logits=rows)
    with model.load(options.memory, work, threads, options.allreduce) as llm:
        start = time.perf_counter()
        with Progress("scoring", len(ids), "tokens", speaks=group.rank == 0) as progress:
            score = llm.score(ids, window, progress.update)
        figures = llm.figures()
    if group.rank != 0:
        return
    value = math.exp(score.nll / score.tokens)
    content = summary(figures, score.tokens, 0, 0.0, time.perf_counter() - start)
    if options.report:
        report.write(options.report, content, figures)
    if options.json:
        print(json.dumps({"perplexity": value, "tokens": score.tokens, "nll": score.nll,
                          "window": window, "figures": content}))  # fmt: skip
    else:
        print(
            f"perplexity {value:.4f} over {score.tokens} tokens ({score.nll:.2f} nats, windows of "
            f"{window})"
        )
