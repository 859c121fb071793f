"""`tpimpi generate`: text that appears as it is made, on rank 0, with all ranks computing."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass

from tpimpi.commands import flags
from tpimpi.commands.files import check_folder, read_text
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest

SUMMARY = "write text after a prompt"


@dataclass(frozen=True)
class Options:
    """A prompt, how to go on from it, and what that may take."""

    model: str
    save_dir: str | None
    again: bool
    memory: MemoryRequest
    prompt: str | None
    prompt_file: str | None
    prefix: str
    no_bos: bool
    length: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int
    stop: tuple[str, ...]
    ignore_eos: bool
    report: str | None
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", "-p", metavar="TEXT", help="the text to go on from")
    source.add_argument("--prompt-file", metavar="FILE", help="read it from a file; - is stdin")
    prompt.add_argument("--prefix", default="", metavar="TEXT", help="text put before the prompt")
    prompt.add_argument("--no-bos", action="store_true", help="don't begin with the BOS token")
    choice = parser.add_argument_group("choosing tokens")
    choice.add_argument(
        "--length", "-n", "--max-new-tokens", type=flags.tokens(1), default=20, metavar="N",
        help="new tokens at most (default: 20)",
    )  # fmt: skip
    for names, metavar, kind, default, text in (
        (("--temperature", "--temp"), "T", flags.number(float, 0), 1.0,
         "0 takes the likeliest token always"),
        (("--top-k", "--k"), "K", flags.number(int, 0), 0,
         "choose among the K likeliest; 0: all"),
        (("--top-p", "--p"), "P", flags.number(float, 0, 1), 0.9,
         "... among those that add up to P"),
        (("--min-p",), "P", flags.number(float, 0, 1), 0.0,
         "... at least P times as likely as the first"),
        (("--repeat-penalty",), "X", flags.number(float, 1e-3), 1.0,
         "divide the logits of tokens seen"),
        (("--seed",), "N", flags.number(int, 0), 42, "of the random numbers"),
    ):  # fmt: skip
        choice.add_argument(
            *names, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )
    choice.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable"
    )
    choice.add_argument("--ignore-eos", action="store_true", help="go on after an end token")
    flags.add_shards(parser)
    flags.add_memory(parser)
    flags.add_report(parser)
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(
        args.model, args.save_dir, args.split_bin, flags.memory_request(args), args.prompt,
        args.prompt_file, args.prefix, args.no_bos, args.length, args.temperature, args.top_k,
        args.top_p, args.min_p, args.repeat_penalty, args.seed, tuple(args.stop), args.ignore_eos,
        args.report, args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Generate text after the prompt (collective)."""
    from tpimpi.checkpoint.tokenizer import load_tokenizer
    from tpimpi.commands import report
    from tpimpi.engine.figures import summary
    from tpimpi.engine.sampler import Sampler, SamplingSettings
    from tpimpi.engine.session import load
    from tpimpi.memory.account import Work
    from tpimpi.shards.source import Source

    begin = time.perf_counter()
    source, tokenizer, ids = Source(group, options.model, options.save_dir), None, []
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(options.model, source.config)
            ids = _prompt_ids(options, source.config, tokenizer)
            if options.report:
                check_folder(options.report, "--report")
    shard, _ = source.shard(group, options.again)
    prompt = group.comm.bcast(len(ids))
    context = min(prompt + options.length, source.config.max_positions)
    session = load(group, source, shard, options.memory, Work(prompt, context), threads)
    result: dict = {}
    with session:
        if group.rank == 0:
            settings = SamplingSettings(
                options.temperature, options.top_k, options.top_p, options.min_p,
                options.repeat_penalty, options.seed,
            )  # fmt: skip
            length = min(options.length, session.plan.context - len(ids))
            _say_memory(session.plan)
            _say_length(options.length, length, session.plan.context, source.config.max_positions)
            result = _write_text(options, source.config, session.engine, tokenizer, ids,
                                 Sampler(settings), length)  # fmt: skip
        figures = session.finish()
    if group.rank == 0:
        content = summary(figures, len(ids), len(result["generated_ids"]),
                                   result.pop("first"), result.pop("total"))  # fmt: skip
        content["launch_to_end_seconds"] = time.perf_counter() - begin
        if options.report:
            report.write(options.report, content, figures)
        if options.json:
            print(json.dumps({"prompt_ids": ids} | result | {"figures": content}), flush=True)
        else:
            print(report.line(content, figures), file=sys.stderr, flush=True)


def _prompt_ids(options: Options, config, tokenizer) -> list[int]:
    text = options.prompt
    if text is None:
        text = read_text(options.prompt_file, "--prompt-file")
    text = options.prefix + text
    if not text:
        raise UserError("the prompt is empty; give some text with --prompt or --prompt-file")
    ids = tokenizer.encode(text, add_bos=not options.no_bos)
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


def _say_memory(plan) -> None:
    """Tell how much of the weights stays in memory where not all of it does."""
    if plan.streamed:
        print(
            f"tpimpi: {plan.resident / 2**20:.0f} of {(plan.resident + plan.streamed) / 2**20:.0f} "
            "MiB of rank 0's weights stay in memory, the others stream from disk for each token "
            "(`tpimpi plan` tells more)",
            file=sys.stderr,
        )


def _say_length(wanted: int, length: int, context: int, most: int) -> None:
    """Warn where the text will end before the tokens that were asked for."""
    if length < wanted:
        why = "" if context == most else ", which is what the memory budget allows,"
        print(
            f"tpimpi: the context of {context} tokens{why} leaves room for {length} new tokens "
            f"of {wanted}",
            file=sys.stderr,
        )


def _write_text(options: Options, config, engine, tokenizer, ids, sampler, length) -> dict:
    """Generate on rank 0, showing the text as it is made."""
    from tpimpi.checkpoint.tokenizer import TextStream

    show = not options.json
    stream = TextStream(tokenizer, ids, options.stop)
    eos = () if options.ignore_eos else config.eos_token_ids
    start, first, reason = time.perf_counter(), 0.0, "length"
    generated: list[int] = []
    parts: list[str] = []

    def emit(text: str) -> None:
        parts.append(text)
        if show and text:
            print(text, end="", flush=True)

    if show:
        shown = "" if options.prompt is None else options.prefix + options.prompt
        print(shown, end="", flush=True)
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
