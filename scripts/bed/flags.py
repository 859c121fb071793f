"""The flags of scripts/testbed; what is wrong with them is told in a sentence."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import NoReturn

from bed.quantities import BedMistake
from bed.topology import SHAPES


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise BedMistake in place of a page of usage."""
        message = message.removeprefix("argument ").replace("\n", " ")
        raise BedMistake(f"{message}; see `{self.prog} --help`")


def read(words: list[str], commands: dict[str, Callable]) -> argparse.Namespace:
    """Return what a command line asks for, its part after -- as `command`.

    Raises BedMistake for what no command takes.
    """
    cut = words.index("--") if "--" in words else len(words)
    parsed = parser(commands).parse_args(_joined(words[:cut]))
    parsed.command = words[cut + 1 :]
    if parsed.takes_command and not parsed.command:
        device = "DEVICE " * (parsed.word == "exec")
        raise BedMistake(f"write `testbed {parsed.word} {device}-- COMMAND`")
    if parsed.command and not parsed.takes_command:
        raise BedMistake("nothing goes after --")
    return parsed


def _joined(words: list[str]) -> list[str]:
    """Return the words with `--delay -1ms` as one, which else would be two flags."""
    joined: list[str] = []
    for word in words:
        before = joined[-1] if joined else ""
        if re.match(r"-[0-9.]", word) and re.fullmatch(r"--[a-z-]+", before):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def parser(commands: dict[str, Callable]) -> argparse.ArgumentParser:
    """Return what reads the command line; `commands` are the functions that do the words."""
    read = _Parser(
        prog="testbed",
        description="Virtual devices with slow links between them on this machine, as root.",
    )
    name = os.environ.get("TPIMPI_TESTBED", "bed")
    read.add_argument("--name", default=name, help="which bed, where there are several (bed)")
    words = read.add_subparsers(required=True, metavar="COMMAND")

    def add(word: str, text: str) -> argparse.ArgumentParser:
        command = words.add_parser(word, help=text, description=text)
        command.set_defaults(do=commands[word], word=word, takes_command=word in ("run", "exec"))
        return command

    one = add("up", "make the devices")
    one.add_argument("--devices", default="2", metavar="N", help="how many, up to 32 (2)")
    one.add_argument(
        "--topology",
        choices=SHAPES,
        default="switch",
        help="one switch, or a gateway for each device and one core router (switch)",
    )
    one.add_argument("--delay", default="0", help="one way, of each hop, up to 60s: 1ms (0)")
    one.add_argument(
        "--rate",
        default="0",
        help="of each link, each way: 300mbit, from 1kbit to 100gbit (0: no limit)",
    )
    one.add_argument("--memory", default="0", help="of each device: 3G, from 16MiB (0: no limit)")
    one.add_argument(
        "--cpu",
        metavar="CORES",
        help="how many cores' worth each device may compute: 0.5, from 0.1 (no limit)",
    )
    one.add_argument(
        "--disk-rate",
        default="0",
        help="reading and writing past the page cache: 50MB/s, from 100kB/s (0: no limit)",
    )
    one.add_argument(
        "--private",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that is another, empty one on each device; repeatable",
    )
    one.add_argument(
        "--folder",
        default="/var/lib/tpimpi-testbed",
        help="where the devices' files lie, a disk (/var/lib/tpimpi-testbed)",
    )
    one.add_argument("--subnet", default="10.99.7.0/24", help="inside the bed (10.99.7.0/24)")

    add("down", "end everything and remove it, also what a crash has left")
    add("lacks", "exit 1 with a sentence where this machine can't have a bed")
    add("status", "tell what is up, and the traffic of each link")

    one = add("run", "mpirun over all devices: a rank a device, started on the first")
    one.add_argument("-np", metavar="N", help="ranks, if not one a device")
    one.add_argument("--mpi", choices=("mpich", "openmpi"), help="where there are both")
    one.add_argument(
        "--check",
        action="store_true",
        help="measure the links first (as `test` does), and refuse where they are off",
    )

    one = add("exec", "run a command on one device")
    one.add_argument("device")

    add("test", "measure the links idle and under load; exit 1 where they are off by 10 %%")

    one = add("processes", "print the numbers of a device's processes")
    one.add_argument("device")

    one = add("login", "what mpirun starts in place of ssh")
    one.add_argument("device")
    one.add_argument("line")

    one = add("link", "show a device's link, cut it, mend it, or change its delay or rate")
    one.add_argument("device")
    one.add_argument("state", nargs="?", choices=("down", "up"), metavar="down|up")
    one.add_argument("--delay", help="one way, of each hop")
    one.add_argument("--rate", help="each way; 0: no limit")

    one = add("slow", "let a device compute at a fraction of its speed; 100%% lifts it")
    one.add_argument("device")
    one.add_argument("share", help="from 1%% to 100%%")
    return read
