"""`tpimpi perplexity`: score a text in windows, each token once."""

from __future__ import annotations

import json
import math
import time

import numpy as np

from tpimpi import report, runtime
from tpimpi.comm import Group
from tpimpi.errors import UserError
from tpimpi.files import check_report, read_text
from tpimpi.flags import memory_request
from tpimpi.plan import Work
from tpimpi.source import Source
from tpimpi.tokenizer import load_tokenizer

LOGITS_BYTES = 32 << 20  # of rank 0, for the logits of one pass


def perplexity(args, group: Group, threads: int) -> None:
    """Score the text of `args` (collective)."""
    source, ids, window = Source(args, group), [], 0
    config = source.config
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(args.model, config)
            ids = tokenizer.encode(read_text(args.file, "--file"), add_bos=False)
            if len(ids) < 2:
                raise UserError(f"{args.file} has {len(ids)} tokens; give a longer text to score")
            check_report(args)
        window = args.window or min(512, config.max_positions)
        if window > config.max_positions:
            raise UserError(
                f"--window {window} is longer than the model's context of {config.max_positions}"
            )
    shard, _ = source.shard(args, group)
    rows = max(1, LOGITS_BYTES // (4 * config.vocab_size))  # logits of all tokens are asked for
    work = Work(window - 1, window, longest_chunk=rows, logits=rows)
    session = runtime.load(group, source, shard, memory_request(args), work, threads)
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
    summary = report.summary(figures, count, 0, 0.0, time.perf_counter() - start)
    if args.report:
        report.write(args.report, summary, figures)
    if args.output == "json":
        print(json.dumps({"perplexity": value, "tokens": count, "nll": total, "window": window,
                          "figures": summary}))  # fmt: skip
    else:
        print(f"perplexity {value:.4f} over {count} tokens ({total:.2f} nats, windows of {window})")
