"""`tpimpi generate`: text that appears as it is made, on rank 0, with all ranks computing."""

from __future__ import annotations

import json
import sys
import time

from tpimpi import report, runtime
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.errors import UserError
from tpimpi.files import check_report, read_text
from tpimpi.flags import memory_request
from tpimpi.plan import MemoryPlan, Work
from tpimpi.sampler import Sampler, SamplingSettings
from tpimpi.source import Source
from tpimpi.tokenizer import TextStream, Tokenizer, load_tokenizer


def _prompt_ids(args, config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    text = args.prompt if args.prompt is not None else read_text(args.prompt_file, "--prompt-file")
    text = args.prefix + text
    if not text:
        raise UserError("the prompt is empty; give some text with --prompt or --prompt-file")
    ids = tokenizer.encode(text, add_bos=not args.no_bos)
    if not ids:
        raise UserError("the prompt has no tokens; give some more text")
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives id {max(ids)}, but the model's vocabulary has "
            f"{config.vocab_size} tokens; they are of different models"
        )
    if len(ids) >= config.max_positions:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the model's context {config.max_positions}; "
            "shorten it so that something can follow"
        )
    return ids


def generate(args, group: Group, threads: int) -> None:
    """Generate text after the prompt of `args` (collective)."""
    begin = time.perf_counter()
    source, tokenizer, ids = Source(args, group), None, []
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(args.model, source.config)
            ids = _prompt_ids(args, source.config, tokenizer)
            check_report(args)
    shard, _ = source.shard(args, group)
    prompt = group.comm.bcast(len(ids))
    context = min(prompt + args.length, source.config.max_positions)
    session = runtime.load(
        group, source, shard, memory_request(args), Work(prompt, context), threads
    )
    result: dict = {}
    with session:
        if group.rank == 0:
            settings = SamplingSettings(
                args.temperature, args.top_k, args.top_p, args.min_p, args.repeat_penalty, args.seed
            )
            length = min(args.length, session.plan.context - len(ids))
            _say_memory(session.plan)
            _say_length(args.length, length, session.plan.context, source.config.max_positions)
            result = _write_text(args, source.config, session.engine, tokenizer, ids,
                                 Sampler(settings), length)  # fmt: skip
        figures = session.finish()
    if group.rank == 0:
        summary = report.summary(figures, len(ids), len(result["generated_ids"]),
                                 result.pop("first"), result.pop("total"))  # fmt: skip
        summary["launch_to_end_seconds"] = time.perf_counter() - begin
        if args.report:
            report.write(args.report, summary, figures)
        if args.output == "json":
            print(json.dumps({"prompt_ids": ids} | result | {"figures": summary}), flush=True)
        else:
            print(report.line(summary, figures), file=sys.stderr, flush=True)


def _say_memory(plan: MemoryPlan) -> None:
    """Tell how much of the weights stays in memory where not all of it does."""
    if plan.streamed:
        print(
            f"tpimpi: {plan.resident / 2**20:.0f} of {(plan.resident + plan.streamed) / 2**20:.0f} "
            "MiB of rank 0's weights stay in memory, the others stream from disk for each token "
            "(`tpimpi plan` tells more)",
            file=sys.stderr,
        )


def _say_length(asked: int, length: int, context: int, most: int) -> None:
    """Warn where the text will end before the tokens that were asked for."""
    if length < asked:
        why = "" if context == most else ", which is what the memory budget allows,"
        print(
            f"tpimpi: the context of {context} tokens{why} leaves room for {length} new tokens "
            f"of {asked}",
            file=sys.stderr,
        )


def _write_text(args, config, engine, tokenizer, ids, sampler, length) -> dict:
    """Generate on rank 0, showing the text as it is made."""
    show = args.output == "text"
    stream = TextStream(tokenizer, ids, args.stop)
    eos = () if args.ignore_eos else config.eos_token_ids
    start, first, reason = time.perf_counter(), 0.0, "length"
    generated: list[int] = []
    parts: list[str] = []

    def emit(text: str) -> None:
        parts.append(text)
        if show and text:
            print(text, end="", flush=True)

    if show:
        print(args.prefix + args.prompt if args.prompt is not None else "", end="", flush=True)
    for token in engine.generate(ids, sampler, length, eos):
        first = first or time.perf_counter() - start
        generated.append(token)
        if token in eos:
            reason = "stop"
            break
        emit(stream.push(token))
        if stream.stopped:
            break
    emit(stream.finish())
    if stream.stopped:
        reason = "stop"
    if show:
        print(flush=True)
    total = time.perf_counter() - start
    return {"generated_ids": generated, "text": "".join(parts), "finish_reason": reason,
            "first": first, "total": total}  # fmt: skip
