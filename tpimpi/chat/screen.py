"""Where answers and what is said about them are shown: a terminal, or two streams."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from tpimpi import status
from tpimpi.console import say

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# A terminal would take them for orders; a text has no use for them.
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """A terminal by its open file, or, where that is None, standard output and standard error.

    Thinking and notes are dim on a terminal. In streams an answer goes to the first, notes to the
    second, and thinking is left out.
    """

    def __init__(self, terminal: int | None):
        self.terminal = terminal
        self.file: TextIO = sys.stdout
        if terminal is not None:
            self.file = open(terminal, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
        self._dims = terminal is not None and not plain
        self._within_line = self._dim = False

    def write(self, text: str, thinking: bool = False) -> None:
        """Show a piece of an answer, or of the thinking before it."""
        if thinking and self.terminal is None:
            return
        if self.terminal is not None:
            text = _ORDERS.sub("", text)
        if not text:
            return
        self._set_dim(thinking)
        self.file.write(text)
        self.file.flush()
        self._within_line = status.current.within_line = not text.endswith("\n")

    def end_line(self) -> None:
        """End the line of an answer if it has not ended, and what is dim."""
        self._set_dim(False)
        if self._within_line:
            self.file.write("\n")
        self.file.flush()
        self._within_line = status.current.within_line = False

    def note(self, text: str) -> None:
        """Say something about the conversation, on lines of its own."""
        self.end_line()
        if self.terminal is None:
            for line in text.splitlines():
                if line.strip():
                    say(line)
            return
        self._set_dim(True)
        self.file.write(_ORDERS.sub("", text))
        self._set_dim(False)
        self.file.write("\n")
        self.file.flush()

    def gap(self) -> None:
        """Leave a line empty where people read."""
        if self.terminal is not None:
            self.file.write("\n")
            self.file.flush()

    def ask(self, prompt: str) -> None:
        """Show that a line is waited for, where a terminal edits it."""
        if self.terminal is not None:
            self.file.write(prompt)
            self.file.flush()

    def _set_dim(self, dim: bool) -> None:
        if self._dims and dim != self._dim:
            self.file.write(_DIM if dim else _PLAIN)
        self._dim = dim
