"""What the user asks of memory: budgets as text, a window of blocks, or everything.

`3GiB` for every rank, `3GiB,1GiB,...` one for each, `@FILE` with a line `HOST BYTES` for each host,
`auto` for what the node can spare, `max` for all that it has.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from tpimpi.errors import UserError
from tpimpi.units import MIB

AUTO, MAX = "auto", "max"
LARGEST = 1 << 60  # bytes, more than any machine has
_LONGEST = 1 << 20  # bytes of a file of hosts

_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)\s*(?P<prefix>[kmgtp]?)(?P<binary>i?)b?")
_PREFIXES = ("", "k", "m", "g", "t", "p")


def parse_budget(text: str) -> str | int:
    """Return one budget: `auto`, `max`, or bytes. Raises ValueError."""
    word = text.strip()
    if word in (AUTO, MAX):
        return word
    found = _SIZE.fullmatch(word.lower())
    if not found or (found["binary"] and not found["prefix"]):
        raise ValueError(
            f"{shortened(word)!r} is no size; write bytes with a unit (3GiB, 1500MB), auto or max"
        )
    number, base = float(found["number"]), 1024 if found["binary"] else 1000
    nbytes = number * base ** _PREFIXES.index(found["prefix"])
    if nbytes > LARGEST:
        raise ValueError(f"{shortened(word)} is more memory than any machine has")
    if nbytes < MIB:
        meant = f"{found['number']}{'GiB' if number < 64 else 'MiB'}" if number else "3GiB"
        raise ValueError(
            f"{shortened(word)} is less than 1 MiB, too little for any process "
            f"(did you mean {shortened(meant)}?)"
        )
    return int(nbytes)


def shortened(text: str) -> str:
    """Return a user's text for a sentence about it: a long one is cut."""
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Budgets:
    """What `--memory-budget` says: for all ranks, for each rank, or for each host."""

    ranks: tuple[str | int, ...] = ()
    hosts: tuple[tuple[str, str | int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Budgets:
        """Read the flag's value. Raises ValueError, also where its file can't be read."""
        if text.startswith("@"):
            return cls(hosts=_read_hosts(Path(text[1:])))
        return cls(ranks=tuple(parse_budget(part) for part in text.split(",")))

    def of(self, rank: int, size: int, host: str) -> str | int:
        """Return the budget of a rank. Raises UserError where there is none for it."""
        if self.hosts:
            known = dict(self.hosts)
            for name in (host, host.partition(".")[0], "*"):
                if name in known:
                    return known[name]
            raise UserError(
                f"the file of --memory-budget has no line for host {host}; add one, or a line "
                "that begins with * for all others"
            )
        if len(self.ranks) not in (1, size):
            raise UserError(
                f"--memory-budget lists {len(self.ranks)} budgets, but there are {size} ranks; "
                "give one for all or one for each"
            )
        return self.ranks[rank if len(self.ranks) > 1 else 0]


@dataclass(frozen=True)
class MemoryRequest:
    """The memory flags: budgets, or a window of blocks, or everything; and the prompt chunk."""

    budgets: Budgets = Budgets((AUTO,))
    window: int | None = None
    everything: bool = False
    chunk: int | None = None


def _read_hosts(path: Path) -> tuple[tuple[str, str | int], ...]:
    try:
        status = path.stat()  # a pipe would be waited for, and only one rank could read it
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST:
            raise ValueError(f"{path} can't be read: it is not a file of lines HOST BYTES")
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} can't be read: it is not UTF-8 text") from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ValueError(
                f"{path}, line {number}: {shortened(line.strip())!r} is not HOST BYTES"
            )
        try:
            found.append((words[0], parse_budget(words[1])))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ValueError(f"{path} has no line HOST BYTES")
    return tuple(found)
