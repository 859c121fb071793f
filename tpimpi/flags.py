"""The command line: subcommands, flags with their units and defaults, TPI-LLM's old spellings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from tpimpi import __version__
from tpimpi.budget import Budgets, MemoryRequest
from tpimpi.errors import UserError

REMOVED = {
    "--world-size": "`mpirun -np N` sets the number of ranks",
    "--rank": "mpirun numbers the ranks",
    "--master-ip": "mpirun connects the ranks (hostfile: `mpirun -f FILE`)",
    "--master-port": "mpirun connects the ranks",
    "--file-port": "shards are handed out over MPI by `tpimpi convert` or the first run",
    "--torch-dist": "MPI is the only transport",
    "--use-gpu": "the kernels run on CPUs only",
    "--model-type": "the type is read from config.json",
}


BENCH_MODES = ("window", "budget", "resident")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see `{self.prog} --help`")


def _number(kind: Callable, low: float, high: float | None = None, why: str = "") -> Callable:
    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not value >= low or (high is not None and value > high):
            range_ = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {range_}{why}")
        return value

    return convert


def _budgets(text: str) -> Budgets:
    try:
        return Budgets.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "-m", "--model-path", required=True, metavar="DIR",
        help="Hugging Face directory: config.json, *.safetensors, tokenizer",
    )  # fmt: skip


def _add_model_or_shape(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", "-m", "--model-path", metavar="DIR", help="Hugging Face model")
    source.add_argument(
        "--shape", metavar="NAME", help="a named shape such as llama2-70b; no checkpoint is needed"
    )
    parser.add_argument(
        "--layers", type=_number(int, 1), metavar="N", help="of the shape, instead of its own"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "f16", "f32"), help="of the shape's weights (default: bf16)"
    )


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", "-np", type=_number(int, 1), metavar="N",
        help="ranks to cut it over (default: those of this run)",
    )  # fmt: skip


def _add_shards(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--save-dir", metavar="DIR",
        help="where each rank keeps its shard (default: a folder per model and partition in "
        "$XDG_CACHE_HOME/tpimpi or ~/.cache/tpimpi)",
    )  # fmt: skip
    group.add_argument("--split-bin", action="store_true", help="cut the shards again")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and threads")
    memory = group.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory-budget", type=_budgets, default=MemoryRequest.budgets, metavar="BYTES",
        help="the most memory that each rank's process takes, such as 3GiB or 1500MB; or one for "
        "each rank, 3GiB,1GiB; or @FILE with lines HOST BYTES; auto: most of what is free on the "
        "node; max: all of it. Weights beyond it stream from disk (default: auto)",
    )  # fmt: skip
    memory.add_argument(
        "--memory-window", metavar="N",
        type=_number(int, 2, why=" blocks: one is computed while the next is read"),
        help="keep N blocks (half layers) in memory and stream the weights from disk, at least 2, "
        "in place of a budget",
    )  # fmt: skip
    memory.add_argument(
        "--disable-memory-schedule", action="store_true", help="keep all weights in memory"
    )
    group.add_argument(
        "--threads", type=_number(int, 1), metavar="N",
        help="threads of each rank (default: cores of the node / ranks on it)",
    )  # fmt: skip
    group.add_argument(
        "--prompt-chunk", type=_number(int, 1), metavar="N",
        help="tokens of a prompt computed in one pass (default: 512 or what the budget allows; 256 "
        "with --memory-window)",
    )  # fmt: skip


def _add_running(parser: argparse.ArgumentParser) -> None:
    _add_memory(parser)
    parser.add_argument("--report", metavar="FILE", help="write each rank's figures as JSON")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", choices=("text", "json"), default="text",
        help="text, or one JSON object on one line (default: text)",
    )  # fmt: skip


def _add_generate(commands) -> None:
    parser = commands.add_parser("generate", help="write text after a prompt")
    _add_model(parser)
    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", "-p", metavar="TEXT", help="the text to go on from")
    source.add_argument("--prompt-file", metavar="FILE", help="read it from a file; - is stdin")
    prompt.add_argument("--prefix", default="", metavar="TEXT", help="text put before the prompt")
    prompt.add_argument("--no-bos", action="store_true", help="don't begin with the BOS token")
    choice = parser.add_argument_group("choosing tokens")
    choice.add_argument(
        "--length", "-n", "--max-new-tokens", type=_number(int, 1), default=20, metavar="N",
        help="new tokens at most (default: 20)",
    )  # fmt: skip
    for names, kind, default, text in (
        (("--temperature", "--temp"), _number(float, 0), 1.0, "0 takes the likeliest token always"),
        (("--top-k", "--k"), _number(int, 0), 0, "choose among the K likeliest; 0: all"),
        (("--top-p", "--p"), _number(float, 0, 1), 0.9, "... among those that sum up to P"),
        (("--min-p",), _number(float, 0, 1), 0.0, "... at least P times as likely as the first"),
        (("--repeat-penalty",), _number(float, 1e-3), 1.0, "divide the logits of tokens seen"),
        (("--seed",), _number(int, 0), 42, "of the random numbers"),
    ):
        choice.add_argument(
            *names, type=kind, default=default, metavar="X", help=f"{text} (default: {default})"
        )
    choice.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable"
    )
    choice.add_argument("--ignore-eos", action="store_true", help="go on after an end token")
    _add_shards(parser)
    _add_running(parser)
    _add_output(parser)


def _several(kind: Callable, low: int) -> Callable:
    number = _number(kind, low)
    return lambda text: [number(part) for part in text.split(",")]


def _modes(text: str) -> list[str]:
    found = text.split(",")
    for mode in found:
        if mode not in BENCH_MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is none of {', '.join(BENCH_MODES)}")
    return found


def _add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure the machine's limits and a model's times")
    _add_model_or_shape(parser)
    parser.add_argument(
        "--context", type=_number(int, 1), metavar="N",
        help="tokens that memory is taken for (default: longest prompt)",
    )  # fmt: skip
    parser.add_argument(
        "--sparse", action="store_true",
        help="write no weights, only files that read as zeros: memory counts, times do not",
    )  # fmt: skip
    parser.add_argument(
        "--modes", type=_modes, metavar="MODE,...",
        help=f"among {', '.join(BENCH_MODES)} (default: all that fit)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=_several(int, 1), metavar="N,...",
        help="tokens of the prompts (default: those of 8,64,512 that the context holds)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_number(int, 1), default=5, metavar="N",
        help="of each measurement at most (default: 5)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=_number(float, 0.1), default=30.0, metavar="X",
        help="for the times of one mode; what would take most of it is left out (default: 30)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw the roofline and one token as PNG")
    _add_shards(parser)
    for name, kind, metavar, text in (
        ("--memory-window", _number(int, 2), "N", "blocks of mode window (default: 4)"),
        ("--memory-budget", _budgets, "BYTES", "of mode budget (default: the process and 60 %% of "
         "the weights)"),
        ("--prompt-chunk", _number(int, 1), "N", "tokens of a prompt computed in one pass"),
        ("--threads", _number(int, 1), "N", "threads of each rank (default: cores / ranks)"),
    ):  # fmt: skip
        parser.add_argument(name, type=kind, metavar=metavar, help=text)
    parser.set_defaults(memory_budget=MemoryRequest.budgets)


def _build() -> _Parser:
    parser = _Parser(
        prog="tpimpi",
        description="Run large language models in full precision on weak machines together.",
        epilog="Under mpirun every process is one rank: mpirun -np 4 tpimpi generate ...",
    )
    parser.add_argument("--version", action="version", version=f"tpimpi {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    convert = commands.add_parser("convert", help="cut a checkpoint into shards and stop")
    verify = commands.add_parser("verify", help="recompute every checksum of the shards")
    for parser_ in (convert, verify):
        _add_model(parser_)
        _add_shards(parser_)
    info = commands.add_parser("info", help="tell what the model is and how it would be cut")
    _add_model(info)
    _add_ranks(info)
    _add_output(info)
    perplexity = commands.add_parser("perplexity", help="score a text")
    _add_model(perplexity)
    perplexity.add_argument("--file", required=True, metavar="TEXT", help="the text to score")
    perplexity.add_argument(
        "--window", type=_number(int, 2), metavar="N",
        help="tokens of one window, BOS and N - 1 tokens of the text, each scored once "
        "(default: 512, or the model's context if that is shorter)",
    )  # fmt: skip
    _add_shards(perplexity)
    _add_running(perplexity)
    _add_output(perplexity)
    plan = commands.add_parser("plan", help="tell beforehand what memory holds and a token takes")
    _add_model_or_shape(plan)
    _add_ranks(plan)
    plan.add_argument(
        "--context", type=_number(int, 2), default=2048, metavar="N",
        help="tokens of prompt and text together; half of them are taken as the prompt "
        "(default: 2048, or the model's context if that is shorter)",
    )  # fmt: skip
    plan.add_argument(
        "--save-dir", metavar="DIR", help="where the shards lie or will lie: the disk to measure"
    )
    _add_memory(plan)
    _add_output(plan)
    _add_bench(commands)
    return parser


def _normalized(argv: Sequence[str]) -> list[str]:
    """Write old spellings (--memory_window=2) anew, and refuse flags that have no meaning now."""
    result = []
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            if name in REMOVED:
                raise UserError(f"{argument.partition('=')[0]} is gone: {REMOVED[name]}")
            argument = name + equals + value
        result.append(argument)
    return result


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; raises UserError, or SystemExit for --help and --version."""
    return _build().parse_args(_normalized(argv))


def memory_request(args: argparse.Namespace) -> MemoryRequest:
    """Return what the memory flags say."""
    return MemoryRequest(
        args.memory_budget, args.memory_window, args.disable_memory_schedule, args.prompt_chunk
    )
