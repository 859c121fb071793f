"""The two kinds of failure a user sees, each one sentence long."""

from __future__ import annotations

import os


class UserError(ValueError):
    """Say what the user asked that cannot be done, with the numbers and the way out (exit 2)."""


class MachineError(RuntimeError):
    """Say what the machine could not do (disk full, a read that failed, a lost rank) (exit 1)."""


def describe(error: BaseException) -> str:
    """Return one sentence for an error of the operating system or of the program."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {os.fspath(error.filename)}" if error.filename else ""
        return f"{error.strerror}{name}"
    if isinstance(error, MemoryError):
        return "out of memory; use --memory-window, or more ranks on more machines"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by a signal"
    return f"{type(error).__name__}: {error}"
