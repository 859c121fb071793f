"""The command line: from words to a command and its options, TPI-LLM's old spellings included."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tpimpi import __version__
from tpimpi.commands import COMMANDS
from tpimpi.commands.flags import number
from tpimpi.errors import UserError
from tpimpi.status import TIMEOUT

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


@dataclass(frozen=True)
class Invocation:
    """What is to be run: a command's `run`, its options, the threads that were asked for."""

    run: Callable[[Any, Any, int], None]  # options, group, threads; collective
    options: Any
    threads: int | None
    examines: bool  # also ranks of different code
    timeout: float  # seconds of silence


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        if message.endswith("expected one argument"):
            flag = message.removeprefix("argument ").split(":")[0].split("/")[0]
            message += f" (one that begins with a dash is written as {flag}=TEXT)"
        raise UserError(f"{message}; see `{self.prog} --help`")


def parse(argv: Sequence[str]) -> Invocation:
    """Return what the command line asks for.

    Raises UserError, or SystemExit for --help and --version.
    """
    parser = _Parser(
        prog="tpimpi",
        description="Run large language models in full precision on weak machines together.",
        epilog="Under mpirun every process is one rank: mpirun -np 4 tpimpi generate ...",
    )
    parser.add_argument("--version", action="version", version=f"tpimpi {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flags: dict[str, dict[str, bool]] = {}
    parsers: dict[str, _Parser] = {}
    for name in COMMANDS:
        module = import_module(f"tpimpi.commands.{name}")
        subparser = subparsers.add_parser(name, help=module.SUMMARY)
        module.add_flags(subparser)
        subparser.add_argument(
            "--timeout", type=number(float, 5), default=TIMEOUT, metavar="SECONDS",
            help="end when nothing was heard of a rank for so long, however slow a rank may be: it "
            "is stopped or can't be reached (default: %(default)g)",
        )  # fmt: skip
        subparser.set_defaults(module=module)
        flags[name], parsers[name] = _flags(subparser), subparser
    args, unknown = parser.parse_known_args(_normalized(argv, flags))
    if unknown:
        parsers[args.command].error(_unknown(unknown[0], flags[args.command]))
    options = args.module.options(args)
    return Invocation(
        args.module.run, options, getattr(args, "threads", None),
        getattr(args.module, "EXAMINES", False), args.timeout,
    )  # fmt: skip


def _unknown(word: str, known: dict[str, bool]) -> str:
    """Return what is wrong with a word that is neither a flag nor the value of one."""
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag; a text with spaces is put between quotes"
    like = difflib.get_close_matches(word.partition("=")[0], known, 1)
    return f"there is no flag {word}" + (f"; did you mean {like[0]}?" if like else "")


def _flags(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """Return all spellings of a parser's flags, and whether a value follows each."""
    actions = parser._actions  # argparse has no public way to ask
    return {name: action.nargs is None for action in actions for name in action.option_strings}


def _normalized(argv: Sequence[str], flags: dict[str, dict[str, bool]]) -> list[str]:
    """Write old spellings (--memory_window=2) anew, and refuse flags that have no meaning now.

    Values stay as they are. One that begins with a dash is joined to its flag, unless it is a flag
    of this command, too: argparse would take every such word for a flag.
    """
    command = next((word for word in argv if not word.startswith("-")), None)
    known = flags.get(command, {})
    result: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*result, word, *words]
        name, equals, value = _renamed(word)
        if name in REMOVED:
            raise UserError(f"{word.partition('=')[0]} is gone: {REMOVED[name]}")
        result.append(name + equals + value)
        if not equals and any(known[flag] for flag in _meant(name, known)):
            following = next(words, None)
            if following is None:
                break
            if not following.startswith("-"):
                result.append(following)
            elif _is_flag(following, known):
                words = iter([following, *words])
            else:
                result[-1] += f"={following}"
    return result


def _renamed(word: str) -> tuple[str, str, str]:
    """Return a word's name in today's spelling, and what follows it: an equals sign, a value."""
    if not word.startswith("--"):
        return word, "", ""
    name, equals, value = word.partition("=")
    return name.replace("_", "-"), equals, value


def _meant(name: str, known: dict[str, bool]) -> list[str]:
    """Return the flags that argparse would take for this one: itself, or those that begin so."""
    if name in known:
        return [name]
    return [flag for flag in known if name.startswith("--") and flag.startswith(name)]


def _is_flag(word: str, known: dict[str, bool]) -> bool:
    name = _renamed(word)[0]
    if any(letter.isspace() for letter in name):
        return False
    glued = not name.startswith("--") and name[:2] in known  # -n5
    return glued or name in REMOVED or bool(_meant(name, known))
