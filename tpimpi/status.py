"""What this process is doing, in memory that its guard reads even when the process is dead.

Every text and number lies at a fixed place of one anonymous shared mapping: to set one costs about
a microsecond, and nobody has to answer when it is asked for.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct

STARTING, MEETING, RUNNING, LEAVING = range(4)  # before MPI_Init, in it, with heartbeats, after
TIMEOUT = 60.0  # seconds
UNKNOWN = 255  # per cent
AGAIN = "the same command starts again"

_TEXT = 200  # bytes of a text, with its length
_NUMBERS = 24  # bytes of a status's numbers


class _Number:
    """A number at a place of the mapping."""

    def __init__(self, offset: int, kind: str):
        self._offset, self._format = offset, struct.Struct(kind)

    def __get__(self, owner, _=None):
        return self._format.unpack_from(owner.memory, owner.start + self._offset)[0]

    def __set__(self, owner, value) -> None:
        self._format.pack_into(owner.memory, owner.start + self._offset, value)


class _Text:
    """A short text at a place of the mapping; a longer one is cut."""

    def __init__(self, offset: int):
        self._offset = offset

    def __get__(self, owner, _=None) -> str:
        at = owner.start + self._offset
        count = min(owner.memory[at], _TEXT - 1)
        return owner.memory[at + 1 : at + 1 + count].decode(errors="replace")

    def __set__(self, owner, text: str) -> None:
        data, at = text.encode()[: _TEXT - 1], owner.start + self._offset
        owner.memory[at : at + 1 + len(data)] = bytes([len(data)]) + data


class Peer:
    """What is known of one rank: it has beaten so often, and does this, on that host."""

    SIZE = 16 + 2 * _TEXT
    beats = _Number(0, "q")
    left = _Number(8, "?")  # it has told that it ends
    host = _Text(16)
    doing = _Text(16 + _TEXT)

    def __init__(self, memory: mmap.mmap, start: int):
        self.memory, self.start = memory, start


class Status:
    """This process's status, and what it has heard of the other ranks."""

    start = 0
    timeout = _Number(0, "d")  # seconds of silence that end everything
    stage = _Number(8, "B")
    said = _Number(9, "?")  # why it ends: nobody else must
    within_line = _Number(10, "?")  # standard output's last line has not ended yet
    alone = _Number(11, "?")  # it ends, and the others don't know
    unfinished = _Number(12, "?")  # the next start goes on with what this one has made
    takes_interrupts = _Number(13, "?")  # Ctrl-C is its own affair, and does not end it
    percent = _Number(14, "B")  # of what is being done; more than 100: nobody knows
    grace = _Number(16, "d")  # seconds that it takes to end by itself after a first signal
    figures = _Text(_NUMBERS)
    then = _Text(_NUMBERS + _TEXT)

    def __init__(self, rank: int = 0, ranks: int = 1):
        head = _NUMBERS + 2 * _TEXT
        self.memory = mmap.mmap(-1, head + ranks * Peer.SIZE)
        self.rank, self.guarded = rank, False
        self.peers = [Peer(self.memory, head + number * Peer.SIZE) for number in range(ranks)]
        self.own = self.peers[rank]
        self.timeout = TIMEOUT
        for peer in self.peers:
            peer.doing = "starting"
        self.own.host, self.then, self.percent = os.uname().nodename, AGAIN, UNKNOWN

    @property
    def has_other_hosts(self) -> bool:
        """Whether ranks have met that are on other machines than this one."""
        return any(peer.host not in ("", self.own.host) for peer in self.peers)

    def begin(self, doing: str, then: str | None = None, unfinished: bool = False) -> None:
        """Note what is begun (`computing`), and what the next start will do if it is changed.

        `unfinished`: that is worth a word even to somebody who ends it himself.
        """
        self.own.doing, self.figures, self.percent = doing, "", UNKNOWN
        if then is not None:
            self.then, self.unfinished = then, unfinished

    def ended_line(self, number: int) -> str | None:
        """Return one sentence for an end by a signal, with the figures so far.

        Open MPI sends SIGTERM for Ctrl-C, and where another rank has died, of which that one's
        guard speaks: so without figures there is nothing to be said of it.
        """
        if self.figures or number == signal.SIGINT:
            figures = f": {self.figures}" if self.figures else ""
            why = "interrupted" if number == signal.SIGINT else "ended"
            then = f"; {self.then}" if self.unfinished else ""
            return f"{why} while {self.own.doing}{figures}{then}"
        return None


current = Status()


def of_rank(rank: int, ranks: int) -> Status:
    """Make this process one of several ranks."""
    global current
    current = Status(rank, ranks)
    return current
