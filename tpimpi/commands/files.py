"""The user's own files: texts that are read, reports that are written."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from tpimpi.errors import UserError

FIRST_BYTE_SECONDS, SILENCE_SECONDS = 10.0, 1.0


def read_text(path: str, flag: str) -> str:
    """Return the UTF-8 text of the file that `flag` names; - is standard input."""
    try:
        if path == "-":
            return _read_stdin().decode()
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flag} {path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path} is no UTF-8 text ({error.reason})") from error


def _read_stdin() -> bytes:
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return sys.stdin.buffer.read()
    # Open MPI's launcher never passes the end of stdin on: silence has to stand for it.
    data, patience = b"", FIRST_BYTE_SECONDS
    while select.select([sys.stdin], [], [], patience)[0]:
        part = os.read(sys.stdin.fileno(), 1 << 16)
        if not part:
            break
        data, patience = data + part, SILENCE_SECONDS
    return data


def check_folder(path: str, flag: str) -> None:
    """Refuse a file to be written, named by `flag`, that could not be."""
    # Found out now rather than after an hour of work.
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: that folder does not exist; make it first")
    if Path(path).is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: that folder may not be written to; choose another")
