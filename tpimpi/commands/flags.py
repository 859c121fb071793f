"""Flags that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from tpimpi.comm import ALLREDUCES
from tpimpi.engine.settings import MOST_BIAS
from tpimpi.launch import available_cores
from tpimpi.memory.request import Budgets, MemoryRequest, shortened
from tpimpi.model.ratio import parse_ratio
from tpimpi.numba_settings import MOST_THREADS
from tpimpi.shards.request import ShardRequest

MAX_TOKENS = 1 << 24  # longer than any model's context
MAX_LAYERS = 4096  # some thirty times as many as the deepest model has
MAX_RANKS = 4096

_DELAY = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?)\s*(?P<unit>us|ms|s)")
_RATE = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?)\s*(?P<unit>[kmg])bit(/s)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}  # a second

_MODEL = (
    "Hugging Face directory: config.json, *.safetensors, tokenizer; or a model on its hub, "
    "ORG/NAME or ORG/NAME@REVISION, which is downloaded once"
)
_TOO_MANY_RANKS = ": no model has so many heads to share, so that the others would only wait"


def number(kind: Callable, low: float, high: float | None = None, why: str = "") -> Callable:
    """Return a flag's type: an int or float from `low` to `high`; `why` explains the limit."""

    def convert(text: str):
        if len(text) > 40:
            raise argparse.ArgumentTypeError(f"{shortened(text)} is too long for a number")
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not finite")
        if value < low or (high is not None and value > high):
            range_ = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {range_}{why}")
        return value

    return convert


def tokens(low: int) -> Callable:
    """Return a flag's type: a number of tokens, from `low` to more than any context holds."""
    return number(int, low, MAX_TOKENS, " tokens")


def threads(text: str) -> int:
    """Return the value of --threads; a flag's type."""
    why = f"; this machine has {available_cores()} cores"
    return number(int, 1, MOST_THREADS, why)(text)


def several(one: Callable) -> Callable:
    """Return a flag's type: values of the type `one` with commas between them."""
    return lambda text: tuple(one(part) for part in text.split(","))


def budgets(text: str) -> Budgets:
    """Return the value of --memory-budget; a flag's type."""
    try:
        return Budgets.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ratio(text: str) -> tuple[int, ...] | str:
    """Return the value of --ratio; a flag's type."""
    try:
        return parse_ratio(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def link(text: str) -> tuple[float, float]:
    """Return the value of --link, seconds and bytes a second; a flag's type."""
    delay, _, rate = (part.strip().lower() for part in text.partition(","))
    latency, speed = _DELAY.fullmatch(delay), _RATE.fullmatch(rate)
    if not latency or not speed or not float(speed["number"]):
        raise argparse.ArgumentTypeError(
            f"{shortened(text)!r} is no link; write the delay of one way and a rate above 0, such "
            "as 1ms,300mbit"
        )
    return (
        float(latency["number"]) * _SECONDS[latency["unit"]],
        float(speed["number"]) * _BITS[speed["unit"]] / 8,
    )


def logit_bias(text: str) -> tuple[int, float]:
    """Return the value of --logit-bias, an id and what is added to its logit; a flag's type."""
    token, equals, bias = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no ID=X, such as 13=-100")
    return number(int, 0)(token), number(float, -MOST_BIAS, MOST_BIAS)(bias)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "-m", "--model-path", required=True, metavar="MODEL",
        help=_MODEL,
    )  # fmt: skip


def add_model_or_shape(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --model and what stands in for it: --shape, --layers, --dtype."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--model", "-m", "--model-path", metavar="MODEL", help=_MODEL)
    source.add_argument(
        "--shape", metavar="NAME", help="a named shape such as llama2-70b; no checkpoint is needed"
    )
    parser.add_argument(
        "--layers",
        type=number(int, 1, MAX_LAYERS),
        metavar="N",
        help="layers of the shape, instead of its own number",
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "f16", "f32"), help="of the shape's weights (default: bf16)"
    )


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Add --ranks."""
    parser.add_argument(
        "--ranks", "-np", type=number(int, 1, MAX_RANKS, _TOO_MANY_RANKS), metavar="N",
        help="ranks to cut it over (default: those of this run)",
    )  # fmt: skip


def add_ratio(parser: argparse.ArgumentParser) -> None:
    """Add --ratio."""
    parser.add_argument(
        "--ratio", type=ratio, metavar="N,...",
        help="each rank's share of the work, such as 3,2,2,1 or 1.5,1; auto: as the ranks are "
        "measured, of which those with shards in the cache are preferred (default: equal shares)",
    )  # fmt: skip


def add_save_dir(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --save-dir; return the group it is in."""
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--save-dir", metavar="DIR",
        help="where each rank keeps its shard (default: a folder per model and partition in "
        "$XDG_CACHE_HOME/tpimpi or ~/.cache/tpimpi)",
    )  # fmt: skip
    return group


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add --save-dir, --split-bin and --local-checkpoint."""
    group = add_save_dir(parser)
    group.add_argument(
        "--split-bin", "--force-download", action="store_true",
        help="cut the shards again, and bring them to all ranks again, whatever is there",
    )  # fmt: skip
    group.add_argument(
        "--local-checkpoint", nargs="?", const="", metavar="DIR",
        help="a rank that has the same checkpoint in DIR on its own disk cuts its shard from there "
        "and isn't sent it (default DIR: that of --model)",
    )  # fmt: skip


def shard_request(args: argparse.Namespace) -> ShardRequest:
    """Return what the flags of `add_shards` and `add_ratio` say."""
    return ShardRequest(args.save_dir, args.ratio, args.split_bin, args.local_checkpoint)


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `memory_request` reads, and --threads."""
    group = parser.add_argument_group("memory and threads")
    memory = group.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory-budget", type=budgets, default=MemoryRequest.budgets, metavar="BYTES",
        help="the most memory that each rank's process takes, such as 3GiB or 1500MB; or one for "
        "each rank, 3GiB,1GiB; or @FILE with lines HOST BYTES; auto: most of what is free on the "
        "node; max: all of it. Weights beyond it stream from disk (default: auto)",
    )  # fmt: skip
    memory.add_argument(
        "--memory-window", metavar="N",
        type=number(int, 2, why=" blocks: one is computed while the next is read"),
        help="keep N blocks (half layers) in memory and stream the weights from disk, at least 2, "
        "in place of a budget",
    )  # fmt: skip
    memory.add_argument(
        "--disable-memory-schedule", action="store_true", help="keep all weights in memory"
    )
    group.add_argument(
        "--threads", type=threads, metavar="N",
        help="threads of each rank (default: cores of the node / ranks on it)",
    )  # fmt: skip
    group.add_argument(
        "--prompt-chunk", type=tokens(1), metavar="N",
        help="tokens of a prompt computed in one pass (default: 512 or what the budget allows; 256 "
        "with --memory-window)",
    )  # fmt: skip


def add_allreduce(parser: argparse.ArgumentParser) -> None:
    """Add --allreduce."""
    parser.add_argument_group("network").add_argument(
        "--allreduce", choices=ALLREDUCES, default=ALLREDUCES[0],
        help="how the ranks' partial sums are merged: mpi: MPI_Allreduce; star: by rank 0; mesh: "
        "everyone sends to everyone; scatter: each rank adds a part; recursive-doubling: in pairs; "
        "ring: from rank to rank; auto: the fastest here of all but the ring, which give the same "
        "bits (default: auto)",
    )  # fmt: skip


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a model runs: its shards and their shares, memory, sums."""
    add_shards(parser)
    add_ratio(parser)
    add_memory(parser)
    add_allreduce(parser)


def memory_request(args: argparse.Namespace) -> MemoryRequest:
    """Return what the memory flags say."""
    return MemoryRequest(
        args.memory_budget, args.memory_window, args.disable_memory_schedule, args.prompt_chunk
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add --report."""
    parser.add_argument("--report", metavar="FILE", help="write each rank's figures as JSON")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add --output."""
    parser.add_argument(
        "--output", choices=("text", "json"), default="text",
        help="text, or one JSON object on one line (default: text)",
    )  # fmt: skip
