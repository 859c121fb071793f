"""`tpimpi bench`: the machine's limits, and a model's times as fractions of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from tpimpi.bench.settings import MODES, PROMPTS, Settings
from tpimpi.commands import flags
from tpimpi.commands.files import check_folder, check_plot
from tpimpi.console import say
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.shards.request import ShardRequest

SUMMARY = "measure the machine's limits and a model's times"


@dataclass(frozen=True)
class Options:
    """A model or a shape, its shards, what to measure, and a plot's file."""

    model: str | None
    shape: str | None
    layers: int | None
    dtype: str | None
    sparse: bool
    shards: ShardRequest
    plot: str | None
    report: str | None
    json: bool
    settings: Settings


def _modes(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    for mode in found:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is none of {', '.join(MODES)}")
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model_or_shape(parser)
    parser.add_argument(
        "--context", type=flags.tokens(1), metavar="N",
        help="tokens that memory is taken for (default: longest prompt)",
    )  # fmt: skip
    parser.add_argument(
        "--sparse", action="store_true",
        help="write no weights, only files that read as zeros: memory counts, times do not",
    )  # fmt: skip
    parser.add_argument(
        "--modes", type=_modes, metavar="MODE,...",
        help=f"among {', '.join(MODES)} (default: all that fit)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=flags.several(flags.tokens(1)), metavar="N,...",
        help=f"tokens of the prompts (default: those of {','.join(map(str, PROMPTS))} that the "
        "context holds)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=flags.number(int, 1), default=Settings.repeats, metavar="N",
        help="repeats of each measurement at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=flags.number(float, 0.1), default=Settings.seconds, metavar="N",
        help="seconds for the times of one mode; what would take most of them is left out "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw the roofline and one token as PNG")
    parser.add_argument("--report", metavar="FILE", help="write all figures as JSON")
    flags.add_output(parser)
    flags.add_shards(parser)
    flags.add_allreduce(parser)
    flags.add_ratio(parser)
    for name, kind, metavar, text in (
        ("--memory-window", flags.number(int, 2), "N",
         f"blocks of mode window (default: {Settings.window})"),
        ("--memory-budget", flags.budgets, "BYTES", "of mode budget (default: the process and "
         "60 %% of the weights)"),
        ("--prompt-chunk", flags.tokens(1), "N", "tokens of a prompt computed in one pass"),
        ("--threads", flags.threads, "N", "threads of each rank (default: cores / ranks)"),
    ):  # fmt: skip
        parser.add_argument(name, type=kind, metavar=metavar, help=text)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    if args.model and (args.layers or args.dtype or args.sparse):
        raise UserError("--layers, --dtype and --sparse are for --shape, not for --model")
    if args.shape and args.local_checkpoint is not None:
        raise UserError("--local-checkpoint is for --model, not for --shape")
    settings = Settings(
        args.modes, args.prompts, args.context, args.repeats, args.seconds,
        args.memory_window or Settings.window, args.memory_budget, args.prompt_chunk,
        args.allreduce,
    )  # fmt: skip
    return Options(
        args.model, args.shape, args.layers, args.dtype, args.sparse, flags.shard_request(args),
        args.plot, args.report, args.output == "json", settings,
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Measure, then print a summary or one line of JSON on rank 0 (collective)."""
    from tpimpi.bench import summary
    from tpimpi.bench.run import measure, prompts_and_work
    from tpimpi.commands.report import write_json
    from tpimpi.engine.shares import settle

    with group.together():
        if options.report:
            check_folder(options.report, "--report")
        if options.plot:
            check_plot(options.plot)
    source = _source(options, group)
    request = MemoryRequest(options.settings.budgets or MemoryRequest.budgets)
    settle(group, source, options.shards, request, threads)
    with group.together():
        prompts, work = prompts_and_work(options.settings, source.config.max_positions)
    if source.sparse and group.rank == 0:
        why = "" if options.sparse else ", as the disk has no room for the shape"
        say(f"sparse files{why}: memory counts, times do not")
    source.shard(group, options.shards.again)[0].close()
    result, intervals = measure(group, source, options.settings, prompts, work, threads)
    if group.rank != 0:
        return
    if options.report:
        write_json(options.report, result)
    print(json.dumps(result) if options.json else summary.text(result), flush=True)
    if options.plot:
        from tpimpi.bench import plot

        plot.draw(options.plot, result, intervals)


def _source(options: Options, group):
    """Return the model directory or the shape as what ranks load from (collective)."""
    from tpimpi.model.shapes import shape_config
    from tpimpi.shards.source import Source
    from tpimpi.shards.synthetic import SyntheticSource

    if options.model:
        return Source(group, options.model, options.shards)
    config = None
    with group.together():
        config = shape_config(options.shape, options.layers)
    dtype = options.dtype or "bf16"
    return SyntheticSource(group, config, dtype, options.shards, options.sparse)
