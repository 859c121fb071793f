"""The command line: from words to a command and its options, TPI-LLM's old spellings included."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tpimpi import __version__
from tpimpi.commands import COMMANDS
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


@dataclass(frozen=True)
class Invocation:
    """What is to be run: a command's `run`, its options, the threads that were asked for."""

    run: Callable[[Any, Any, int], None]  # options, group, threads; collective
    options: Any
    threads: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
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
    for name in COMMANDS:
        module = import_module(f"tpimpi.commands.{name}")
        subparser = subparsers.add_parser(name, help=module.SUMMARY)
        module.add_flags(subparser)
        subparser.set_defaults(module=module)
    args = parser.parse_args(_normalized(argv))
    options = args.module.options(args)
    return Invocation(args.module.run, options, getattr(args, "threads", None))


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
