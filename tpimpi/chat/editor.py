"""How a question is typed: by prompt_toolkit on a terminal, else line by line."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from tpimpi.chat.interrupts import Interrupts
from tpimpi.chat.keys import Keys
from tpimpi.chat.screen import Screen
from tpimpi.chat.terminal import END, INTERRUPT

PROMPT, MORE = "> ", "... "
QUOTES = '"""'  # around a question of several lines
_EARLY = 0.5  # seconds: what a launcher passes on until then was typed before the first prompt


class Editor(Protocol):
    """Where questions come from. `keys` tells what may be typed beside them, a line each."""

    keys: tuple[str, ...]

    def close(self) -> None:
        """Read no more."""

    def read(self) -> str:
        """Return the next one; EOFError at the end, KeyboardInterrupt for Ctrl-C and no text."""


def has_library() -> bool:
    """Whether prompt_toolkit is installed."""
    return find_spec("prompt_toolkit") is not None


def can_edit() -> bool:
    """Whether it is, and the terminal is one that can do what it needs."""
    return has_library() and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """Lines as they come, from a pipe or from a terminal that lets them be edited a little.

    A line that is only three quotes begins a question of several, up to the next such line.
    """

    def __init__(self, screen: Screen, interrupts: Interrupts):
        self._screen, self._interrupts = screen, interrupts
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._held, self._ended = b"", False
        self._on_terminal = screen.terminal is not None
        several = f"Several lines: write them between lines of {QUOTES}."
        leaves = "The end of the input leaves."
        if self._on_terminal:
            leaves = "Ctrl-C stops an answer; at an empty line twice, or Ctrl-D, it leaves."
        self.keys = (several, leaves)
        Keys(sys.stdin.fileno(), self._pieces.put, interrupts if self._on_terminal else None)

    def read(self) -> str:
        """Return the next question; empty lines are none."""
        with self._interrupts.typing():
            while True:
                line = self._line(PROMPT)
                if line.strip().startswith(QUOTES):
                    line = self._block(line.strip().removeprefix(QUOTES))
                if line.strip():
                    return line

    def close(self) -> None:
        """Read no more: the thread that reads ends with the process."""

    def _block(self, line: str) -> str:
        """Return the lines up to the next three quotes, or to the end of the input."""
        lines: list[str] = []
        while not line.rstrip().endswith(QUOTES):
            lines.append(line)
            try:
                line = self._line(MORE)
            except EOFError:
                line = QUOTES
        lines.append(line.rstrip().removesuffix(QUOTES))
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        self._screen.ask(prompt)
        while True:
            at = min((i for end in self._ends if (i := self._held.find(end)) >= 0), default=-1)
            if at >= 0:
                line, key = self._held[:at], self._held[at : at + 1]
                self._held = self._held[at + 1 :]
                if key == b"\n":
                    return line.removesuffix(b"\r").decode(errors="replace")
                self._screen.gap()
                if line and key == END:
                    return line.decode(errors="replace")
                if key == END:
                    raise EOFError
                if not line:
                    raise KeyboardInterrupt
                self._screen.ask(prompt)  # what was typed is thrown away
            elif self._ended:
                line, self._held = self._held, b""
                if not line:
                    raise EOFError
                return line.decode(errors="replace")
            else:
                piece = self._pieces.get()
                self._held, self._ended = self._held + piece, not piece

    @property
    def _ends(self) -> tuple[bytes, ...]:
        return (b"\n", INTERRUPT, END) if self._on_terminal else (b"\n",)


class Edited:
    """Questions edited on a terminal, with what was typed before at hand, kept in a file or not.

    Enter sends; Alt-Enter and Ctrl-J begin a new line; what is pasted may have several. The words
    are completed where they stand at the beginning. `close` gives the memory back.
    """

    keys = (
        "Several lines: Alt-Enter or Ctrl-J begins one; what is pasted may have several.",
        "Ctrl-C stops an answer; at an empty line twice, or Ctrl-D, it leaves.",
    )

    def __init__(
        self, screen: Screen, interrupts: Interrupts, words: Sequence[str], history: Path | None
    ):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.input import create_pipe_input
        from prompt_toolkit.output.vt100 import Vt100_Output
        from prompt_toolkit.shortcuts import CompleteStyle

        self._interrupts = interrupts
        self._pipe = create_pipe_input()
        self._input = self._pipe.__enter__()
        output = Vt100_Output.from_pty(screen.file, os.environ.get("TERM"))
        output.enable_cpr = False  # its answers would come among what is typed ahead
        self._session = PromptSession(
            input=self._input, output=output, key_bindings=_bindings(),
            history=_kept(history) if history else InMemoryHistory(),
            completer=WordCompleter(list(words), sentence=True), complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE, prompt_continuation=MORE,
        )  # fmt: skip
        # The library takes a long text slowly, and what is typed must be read at once, see `Keys`.
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._begin = time.monotonic()
        Keys(sys.stdin.fileno(), self._take, interrupts)
        threading.Thread(target=self._feed, name="feed", daemon=True).start()

    def read(self) -> str:
        """Return the next question; empty ones are none."""
        with self._interrupts.typing():
            while True:
                text = self._session.prompt(PROMPT)
                if text.strip():
                    return text

    def close(self) -> None:
        """Read no more."""
        self._pipe.__exit__(None, None, None)

    def _take(self, data: bytes) -> None:
        # Typed while the program was starting: the terminal still made a new line of Enter.
        if time.monotonic() < self._begin + _EARLY:
            data = data.replace(b"\n", b"\r")
        self._pieces.put(data)

    def _feed(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while data := self._pieces.get():
                self._input.send_bytes(data)
            self._input.close()


def _bindings():
    """Return the keys that are not prompt_toolkit's own."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def _kept(path: Path):
    """Return what was typed before, kept in a file."""
    from prompt_toolkit.history import FileHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # on a full disk it is known in this run only
                super().store_string(string)

    return Kept(path)
