"""A process of Python that works for this one: it is told lines, and answers lines of JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tpimpi.errors import MachineError


class Child(ABC):
    """A process that runs `program`; at the end of the `with` block it is no more."""

    def __init__(self, program: str, environment: Mapping[str, str]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child is left
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
        )  # fmt: skip
        self.answers = self._process.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            pipe.close()

    def tell(self, text: str) -> None:
        """Write to it. Raises MachineError where it has ended."""
        try:
            self._process.stdin.write(text.encode())
        except BrokenPipeError:
            raise self._failure() from None

    def answer(self) -> Any:
        """Return what it says next. Raises MachineError where it has ended."""
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            raise self._failure()
        return json.loads(line)

    @abstractmethod
    def in_words(self, code: int, last: str) -> MachineError:
        """Return the error for its sudden end with an exit code; `last` is the last it said."""

    def _failure(self) -> MachineError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        if code < 0:
            last = f"{signal.Signals(-code).name}: {last}"
        return self.in_words(code, last)
