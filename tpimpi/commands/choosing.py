"""The flags that say how to choose tokens and where to end, of several commands."""

from __future__ import annotations

import argparse
from typing import Any

from tpimpi.commands import flags
from tpimpi.engine.settings import MOST_BIAS, MOST_PENALTY

# Flags, value, its type, what it is where nothing is said, what it does.
_FLAGS = (
    (("--temperature", "--temp"), "T", flags.number(float, 0), 1.0,
     "divide the logits by T; 0 takes the likeliest token always"),
    (("--top-k", "--k"), "K", flags.number(int, 0), 0,
     "choose among the K likeliest; 0: all"),
    (("--top-p", "--p"), "P", flags.number(float, 0, 1), 0.9,
     "... among those whose probabilities add up to P; 1: all"),
    (("--min-p",), "P", flags.number(float, 0, 1), 0.0,
     "... at least P times as likely as the likeliest; 0: all"),
    (("--repeat-penalty",), "X", flags.number(float, 1e-3), 1.0,
     "divide the logits of tokens seen by X; 1: off"),
    (("--presence-penalty",), "X", flags.number(float, -MOST_PENALTY, MOST_PENALTY), 0.0,
     "subtract X from the logits of tokens that the text has"),
    (("--frequency-penalty",), "X", flags.number(float, -MOST_PENALTY, MOST_PENALTY), 0.0,
     "... for each time that it has them"),
    (("--seed",), "N", flags.number(int, 0), 42, "seed of the random numbers"),
)  # fmt: skip
# By the names that GenerationSettings.of has for them.
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
          "frequency_penalty", "seed")  # fmt: skip


def add_choice(parser: argparse.ArgumentParser, lasts: str, seed: str) -> None:
    """Add the flags; `lasts` tells how long a text gets where --length is silent, `seed` likewise.

    None of them has a default: where one is silent the model's generation_config.json may speak.
    """
    choice = parser.add_argument_group("choosing tokens")
    choice.add_argument(
        "--length", "-n", "--max-new-tokens", type=flags.tokens(1), metavar="N",
        help=f"new tokens at most (default: {lasts})",
    )  # fmt: skip
    for names, metavar, kind, default, text in _FLAGS:
        told = seed if names == ("--seed",) else f"the model's own, or {default}"
        told = told if "penalty" not in names[0] or "repeat" in names[0] else str(default)
        choice.add_argument(*names, type=kind, metavar=metavar, help=f"{text} (default: {told})")
    choice.add_argument(
        "--logit-bias", action="append", default=[], type=flags.logit_bias, metavar="ID=X",
        help=f"add X to the logit of the token with this id: -{MOST_BIAS:.0f} never takes it; "
        "repeatable",
    )  # fmt: skip
    choice.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text, or at this special token; repeatable",
    )  # fmt: skip
    choice.add_argument(
        "--stop-id", action="append", default=[], type=flags.number(int, 0), metavar="ID",
        help="end at the token with this id; repeatable",
    )  # fmt: skip
    choice.add_argument("--ignore-eos", action="store_true", help="go on after an end token")


def said(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say, by the names of GenerationSettings.of."""
    given = {name: getattr(args, name) for name in _NAMES}
    given |= {
        "max_new_tokens": args.length, "logit_bias": tuple(args.logit_bias),
        "stop": tuple(args.stop), "stop_ids": tuple(args.stop_id), "ignore_eos": args.ignore_eos,
    }  # fmt: skip
    silent = (None, False, ())  # 0 is said
    return {n: v for n, v in given.items() if not any(v is one for one in silent)}
